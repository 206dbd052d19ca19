"""Splitwise: one pool of machines reads prompts, another writes tokens, and the memory of a prompt is sent between them
(Patel et al. 2023, arXiv:2311.18677).

Placement is that of the released simulator (Mutinifni/splitwise-sim).
"""

import dataclasses
from collections.abc import Sequence


def kv_bytes(tokens: float, layers: int, width: int, bytes_each: float = 2) -> float:
    """2 tokens width layers bytes: keys and values of a text; `width` of all key heads together."""
    return 2 * tokens * width * layers * bytes_each


def shortest(pending: Sequence[float]) -> int:
    """Index of the smallest queue, the first of equal ones: join the shortest queue, in pending tokens."""
    return min(range(len(pending)), key=pending.__getitem__)


def serial_transfer(prefill: float, size: float, bandwidth: float, latency: float = 0.0) -> float:
    """prefill + latency + size / bandwidth: when all is there, sent behind the prompt's pass."""
    return prefill + latency + size / bandwidth


def layered_transfer(prefill: float, size: float, bandwidth: float, layers: int, latency: float = 0.0) -> float:
    """latency + max(prefill + x, prefill / L + L x), x = size / (L bandwidth): when all is there, sent layer by layer.

    A layer is sent as soon as it is computed and the link is free; layers are equal.
    """
    each = size / (layers * bandwidth)
    return latency + max(prefill + each, prefill / layers + layers * each)


def transfer(prompt: int, prefill: float, size: float, bandwidth: float, layers: int, latency: float = 0.0) -> float:
    """When all is there: prompts of under 512 tokens are sent behind their pass, longer ones layer by layer."""
    if prompt < 512:
        return serial_transfer(prefill, size, bandwidth, latency)
    return layered_transfer(prefill, size, bandwidth, layers, latency)


def released_transfer(prefill: float, size: float, bandwidth: float) -> float:
    """prefill + size / (10 bandwidth): the released simulator takes nine tenths as hidden."""
    return serial_transfer(prefill, size, 10 * bandwidth)


def prompt_batch(prompts: Sequence[int], most: int = 2048) -> int:
    """How many prompts of the queue are read in one pass: first come first served up to `most` tokens, at least one."""
    total = 0
    for count, tokens in enumerate(prompts):
        total += tokens
        if count and total > most:
            return count
    return len(prompts)


@dataclasses.dataclass(frozen=True)
class Machine:
    """pending: tokens that wait for it; memory: that is promised; capacity: of its memory, in the same unit.

    queued: requests in its queue; pool: "prompt", "token" or "mixed".
    """

    pool: str
    pending: float = 0
    memory: float = 0
    capacity: float = float("inf")
    queued: int = 0


@dataclasses.dataclass(frozen=True)
class Placed:
    """prompt, token: indices of the machines; moved: index -> "mixed", of machines that change their pool."""

    prompt: int
    token: int
    moved: dict[int, str]


def place(machines: Sequence[Machine], prompt: int, memory: float, *, most: float = 2048) -> Placed:
    """Which machines read and continue a request with `prompt` tokens that will hold `memory`.

    Prompt: the fewest pending tokens of the prompt pool unless its queue is long (something waits, and pending + prompt
    > most), else of the mixed pool, else a machine of the token pool becomes mixed. Token: the least memory of the
    token pool unless memory + this >= capacity, else of the mixed pool, else the emptiest of the prompt pool becomes
    mixed. If there is still none for one of them, the machine with the fewest pending tokens does both.
    """
    pools = {pool: [i for i, m in enumerate(machines) if m.pool == pool] for pool in ("prompt", "mixed", "token")}
    pending, held = (lambda i: machines[i].pending), (lambda i: machines[i].memory)
    reads = writes = None
    for pool in ("prompt", "mixed"):
        if reads is None and pools[pool]:
            best = min(pools[pool], key=pending)
            long = machines[best].queued > 0 and machines[best].pending + prompt > most
            reads = None if long else best
    for pool in ("token", "mixed"):
        if writes is None and pools[pool]:
            best = min(pools[pool], key=held)
            writes = None if machines[best].memory + memory >= machines[best].capacity else best
    moved = {}
    if reads is None and pools["token"]:
        reads = min(pools["token"], key=pending)
        moved[reads] = "mixed"
        pools["token"].remove(reads)
        pools["mixed"].append(reads)
    if writes is None and pools["prompt"]:
        writes = min(pools["prompt"], key=held)
        moved[writes] = "mixed"
        pools["prompt"].remove(writes)
        pools["mixed"].append(writes)
    if reads is None or writes is None:
        reads = writes = min([*pools["prompt"], *pools["mixed"], *pools["token"]], key=pending)
    return Placed(reads, writes, moved)
