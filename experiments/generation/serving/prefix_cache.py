"""Blocks of the KV cache that several requests share: found by the hash of all tokens up to their end, counted by who
refers to them, the one unused for longest evicted first.

Only whole blocks are shared, and never the last token of a prompt: a row's next pass must read something.
"""

import dataclasses
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from experiments.generation.serving.jobs import Job


def chain(ids: Sequence[int], block: int) -> Iterator[bytes]:
    """Hash of each whole block: SHA-256 of the hash before it and of its tokens; it stands for all tokens up to it.

    ids: the tokens of a text; block: tokens of a block.
    """
    before = b""
    for end in range(block, len(ids) + 1, block):
        tokens = ",".join(map(str, ids[end - block : end]))
        before = hashlib.sha256(before + tokens.encode()).digest()
        yield before


@dataclasses.dataclass
class Block:
    """references: rows that use it; value: what it holds, of the engine; None in the simulator."""

    references: int = 0
    value: Any = None


class PrefixCache:
    """See the module's docstring.

    Args:
      block: tokens of a block.
      most: blocks that are kept, used and unused; those in use are never evicted.
    """

    def __init__(self, block: int, most: int = 1 << 30):
        self.block, self.most = block, most
        self.blocks: OrderedDict[bytes, Block] = OrderedDict()  # the one unused for longest first
        self.rows: dict[int, list[bytes]] = {}  # what each row refers to
        self._used = 0
        self.hits = self.misses = 0  # tokens of prompts that were found, and that were not
        self._keys: dict[int, tuple[Sequence[int], list[bytes]]] = {}  # of jobs that wait, so that each is hashed once

    @property
    def referenced(self) -> int:
        """Blocks in use."""
        return self._used

    def find(self, ids: Sequence[int]) -> list[bytes]:
        """The longest run of blocks from the beginning that are there; the last token is in none of them."""
        return self._there(chain(ids[:-1], self.block))

    def _there(self, keys: Iterable[bytes]) -> list[bytes]:
        return list(itertools.takewhile(self.blocks.__contains__, keys))

    def offer(self, row: int, ids: Sequence[int]) -> list[bytes]:
        """`find` for a row that waits: its text is hashed once, until `take` or `forget`."""
        known, keys = self._keys.get(row, ((), []))
        if known is not ids:
            keys = list(chain(ids[:-1], self.block))
            self._keys[row] = ids, keys
        return self._there(keys)

    def forget(self, row: int) -> None:
        """`row` waits no more."""
        self._keys.pop(row, None)

    def take(self, row: int, ids: Sequence[int]) -> list[Any]:
        """Values of the blocks that `find` finds, referred to by `row` until `release`."""
        if row in self.rows:
            raise ValueError(f"row {row} has taken its blocks; release it first.")
        self._keys.pop(row, None)
        found = self.find(ids)
        self.rows[row] = []
        for key in found:
            self._refer(row, key)
        self.hits += len(found) * self.block
        self.misses += len(ids) - len(found) * self.block
        return [self.blocks[key].value for key in found]

    def add(self, row: int, ids: Sequence[int], value: Callable[[int], Any] = lambda number: None) -> int:
        """Whole blocks of a text that was read are kept, and `row` refers to them; how many of them it refers to now.

        value(number) makes what block `number` holds; it is asked for blocks alone that are not there yet. Where there
        is no room it ends: what follows a block that is not there could not be found.
        """
        keys = list(chain(ids, self.block))
        mine = self.rows.setdefault(row, [])
        for number in range(len(mine), len(keys)):
            if keys[number] not in self.blocks:
                if len(self.blocks) >= self.most and not self._evict():
                    break
                self.blocks[keys[number]] = Block(value=value(number))
            self._refer(row, keys[number])
        return len(mine)

    def release(self, row: int) -> None:
        """`row` refers to nothing any more; what nobody refers to is kept until its room is needed."""
        for key in reversed(self.rows.pop(row, [])):  # The last block goes first: without it the others are of use.
            self.blocks[key].references -= 1
            self._used -= self.blocks[key].references == 0
            self.blocks.move_to_end(key)

    def shrink(self, most: int) -> None:
        """Evicts unused blocks until at most `most` are left."""
        while len(self.blocks) > most and self._evict():
            pass

    def _refer(self, row: int, key: bytes) -> None:
        self._used += self.blocks[key].references == 0
        self.blocks[key].references += 1
        self.blocks.move_to_end(key)
        self.rows[row].append(key)

    def _evict(self) -> bool:
        """Drops the block that was unused for longest; False where all are in use."""
        key = next((key for key, block in self.blocks.items() if not block.references), None)
        if key is None:
            return False
        del self.blocks[key]
        return True

    # Jobs of the simulator.

    def offered(self, job: Job) -> Job:
        """A waiting job as it would begin now: what is found is read, and shared where another row uses it."""
        if job.kept or not job.ids:
            return job
        keys = self.offer(job.id, job.ids)
        used = sum(self.blocks[key].references > 0 for key in keys)
        return dataclasses.replace(job, read=len(keys) * self.block, shared=used * self.block)

    def taken(self, job: Job) -> Job:
        """A job that begins: what is found is read and shared."""
        if not job.ids:
            return job
        tokens = len(self.take(job.id, job.ids)) * self.block
        return dataclasses.replace(job, read=tokens, shared=tokens)

    def kept(self, job: Job) -> Job:
        """A job whose prompt is read: its whole blocks are shared with whoever comes."""
        if not job.ids or not job.ready or job.id not in self.rows:
            return job
        ids = job.ids[: job.first_prompt]
        return dataclasses.replace(job, shared=self.add(job.id, ids) * self.block)
