"""Batches by step number: `loader.batch(step)` is arithmetic, so resuming and resharding need no state but the step."""

import dataclasses
import functools
import sys
from typing import Any

import numpy as np

from data import messages, order, packing
from data.splits import Mixture, Rows, Tokens

PACKINGS = {"stream": packing.Stream, "first_fit": packing.first_fit, "alone": packing.Alone}
_BLOCK = 4096  # rows whose order is computed together


class Loader:
    """Rows of `length` tokens in an order fixed by `seed`, in global batches, of which this process takes its slice.

    The order is that of global row indices and knows nothing of processes: 1, 2 or 4 of them read the same rows at the
    same step, each `batch_size / process_count` consecutive rows of the global batch.

    Args:
      tokens: a split of a corpus. The parts of a `Mixture` take turns by weight, each through its own epochs. A split
        of a task (`data.tasks`) makes its rows itself, one per sequence, whatever `packing` is.
      batch_size: rows of the GLOBAL batch, a multiple of `process_count`.
      length: T, tokens per row.
      seed: of the order of rows; every epoch has its own order.
      pad: the id of places without a token (`tokenizer.pad`).
      shuffle: False reads the rows in their order.
      isolate: False gives every token of a row segment 1 and its place in the row as position, whatever its document.
        `scored` is the same in both.
      epochs: None repeats for ever. A number ends after that many passes, with rows of padding to fill the last batch;
        a mixture is then read part after part (or shuffled as one), each row once per pass, and weights do not apply.
      packing: "stream", "first_fit" or "alone" (see `data.packing`).
      kinds: batches have `kinds`, too: uint8 of `data.roles`, anything at padding.

    Errors: ValueError with one sentence: the argument, its value, and a value that works.
    """

    def __init__(
        self,
        tokens: Tokens | Mixture,
        *,
        batch_size: int,
        length: int,
        pad: int,
        seed: int = 0,
        shuffle: bool = True,
        isolate: bool = True,
        process_index: int = 0,
        process_count: int = 1,
        epochs: int | None = None,
        packing: str = "stream",
        kinds: bool = False,
    ):
        mixed = isinstance(tokens, Mixture)
        parts = tokens.parts if mixed else (tokens,)
        _check(parts, batch_size, length, process_index, process_count, epochs, packing)
        self.batch_size, self.length, self.pad, self.seed = batch_size, length, pad, seed
        self.shuffle, self.isolate, self.epochs, self.kinds = shuffle, isolate, epochs, kinds
        self._first_row = batch_size // process_count * process_index
        self._local = batch_size // process_count
        self._packed = [
            PACKINGS[packing](part, length) if isinstance(part, Tokens) else part.packed(length) for part in parts
        ]
        self._weights = tokens.weights if mixed else (1,)
        self._part_rows = np.array([packed.num_rows for packed in self._packed], np.int64)
        self._block = functools.lru_cache(maxsize=4)(self._ordered)

    @property
    def num_rows(self) -> int:
        """Rows of one pass over all parts."""
        return int(self._part_rows.sum())

    @property
    def steps_per_epoch(self) -> int:
        """Global batches that hold one pass, the last one perhaps in part."""
        return -(-self.num_rows // self.batch_size)

    @property
    def num_steps(self) -> int | None:
        """Global batches until the end; None when there is no end."""
        return None if self.epochs is None else -(-self.num_rows * self.epochs // self.batch_size)

    def __len__(self) -> int:
        return sys.maxsize if self.num_steps is None else self.num_steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return self.batch(step)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of global batch `step`, arrays of `[B, T]`, B being `batch_size / process_count`.

        `tokens` int32; `targets` int32, the next token of the same document; `positions` int32, 0 at the start of each
        document and of each row; `segment_ids` int32, 1, 2, ... in each row, 0 at padding; `scored` bool, whether the
        target counts (the same document, not padding). Where it does not, `targets` is `pad`.

        Errors: IndexError for a step below 0 or past the end.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"step={step} is not in the data; use 0 to {len(self) - 1}.")
        component, row = self._rows(step * self.batch_size + self._first_row, self._local)
        if len(self._packed) == 1:
            rows = self._packed[0].rows(row)
        else:
            rows = self._gather(component, row)
        return packing.finish(rows, pad=self.pad, isolate=self.isolate, kinds=self.kinds)

    def iterate(self, start_step: int = 0) -> Any:
        """A grain iterator over batches from `start_step`, one batch ahead on a thread of its own.

        Its `get_state()` is the next step, `{"next_index": step}`, and `set_state()` goes to it, in a new process and
        with another number of processes as well; `grain.checkpoint.CheckpointSave` takes it.
        """
        import grain  # slow to import, and not needed for `batch`

        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        iterator = iter(grain.MapDataset.source(self).to_iter_dataset(options))
        if start_step:
            iterator.set_state({"next_index": start_step})
        return iterator

    def _rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(component, row of it; -1 past the end) of `count` global rows from `start` on, each `[count]`."""
        blocks = [self._block(k) for k in range(start // _BLOCK, (start + count - 1) // _BLOCK + 1)]
        component, row = blocks[0] if len(blocks) == 1 else map(np.concatenate, zip(*blocks, strict=True))
        at = start % _BLOCK
        return component[at : at + count], row[at : at + count]

    def _ordered(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The result of `_rows` for the global rows of one block."""
        index = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.int64)
        if self.epochs is not None:
            return self._ordered_once(index)
        component, rank = order.interleave(index, self._weights)
        row = np.empty_like(rank)
        for k, count in enumerate(self._part_rows.tolist()):
            mine = component == k
            epoch, place = np.divmod(rank[mine], count)
            # Each part has a seed of its own, so that two parts of one size do not move in step.
            shuffle = self.shuffle and not getattr(self._packed[k], "in_order", False)
            row[mine] = order.permute(place, count, self.seed + (k << 40), epoch) if shuffle else place
        return component, row

    def _ordered_once(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for a finite number of passes: all parts as one list of rows."""
        epoch, place = np.divmod(index, self.num_rows)
        if self.shuffle and not any(getattr(packed, "in_order", False) for packed in self._packed):
            place = order.permute(place, self.num_rows, self.seed, epoch)
        ends = np.cumsum(self._part_rows)
        component = np.searchsorted(ends, place, "right")
        row = place - (ends - self._part_rows)[component]
        return component, np.where(epoch < self.epochs, row, -1)

    def _gather(self, component: np.ndarray, row: np.ndarray) -> Rows:
        """Rows of several parts: one gather per part that is present."""
        made: dict[str, np.ndarray] = {}
        for k in np.unique(component):
            mine = np.flatnonzero(component == k)
            part = self._packed[k].rows(row[mine])
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                dtype = np.int32 if value.dtype.kind == "u" else value.dtype
                made.setdefault(field.name, np.empty((len(row), self.length), dtype))[mine] = value
        return Rows(**made)


def _check(
    parts: tuple[Tokens, ...],
    batch_size: int,
    length: int,
    process_index: int,
    process_count: int,
    epochs: int | None,
    packing: str,
) -> None:
    """Refuses arguments that cannot be loaded, in one sentence."""
    if packing not in PACKINGS:
        raise messages.unknown("packing", packing, PACKINGS)
    if length < 1:
        raise ValueError(f"length={length} is not a number of tokens; use 1 or more, such as 256.")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} is not one of process_count={process_count}; use 0 of 1.")
    if batch_size < 1 or batch_size % process_count:
        valid = max(1, round(batch_size / process_count)) * process_count
        raise ValueError(f"batch_size={batch_size} does not divide among {process_count} processes; use {valid}.")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs={epochs} is not a number of passes; use 1 or more, or None to repeat for ever.")
    for k, part in enumerate(parts):
        if not isinstance(part, Tokens):  # rows that are made as they are read check their length themselves
            continue
        count = len(part.tokens)
        where = f" of components[{k}]" if len(parts) > 1 else ""
        if count == 0:
            raise ValueError(
                f"tokens{where} is an empty split; use a corpus with text, and validation=0.05 to keep some."
            )
        if length > count and packing != "alone":
            raise ValueError(f"length={length} is longer than the whole split{where}; use {count} or less.")
