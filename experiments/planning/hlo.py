"""The text of a compiled program, read: its collectives, how often each runs, over which mesh axes, beside what."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
         "ragged-all-to-all")  # fmt: skip
WORK = ("fusion", "convolution", "dot", "custom-call", "while", "call", "conditional")  # What hides a transfer.
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16, "token": 0}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.+)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `shape` is the text of its result, `rest` what follows the operands."""

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str

    @property
    def place(self) -> int:
        """The number of a parameter in its computation; it stands in the place of operands."""
        return int(self.operands[0])


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    axes: mesh axes that its groups span.
    group: devices that take part together.
    sent: bytes that each device sends each time, on a ring.
    times: how often it runs a step.
    overlapped: whether other work is scheduled between its start and its end.
    name: the operation of the source that it belongs to.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    sent: float
    times: int
    overlapped: bool
    name: str


def computations(text: str) -> dict[str, list[Instruction]]:
    """Name -> instructions in the order of the schedule; the entry is called "ENTRY"."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if line.startswith("}"):
            current = None
        elif line and not line[0].isspace() and line.rstrip().endswith("{"):
            name = "ENTRY" if line.startswith("ENTRY") else line.split()[0].lstrip("%")
            current = found.setdefault(name, [])
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(_instruction(match[1], match[2]))
    return found


def _instruction(name: str, text: str) -> Instruction:
    shape, rest = _balanced(text) if text.startswith("(") else text.split(" ", 1)
    op, _, rest = rest.strip().partition("(")
    operands, rest = _balanced("(" + rest)
    names = tuple(word.split()[-1].lstrip("%") for word in _split(operands[1:-1]) if word.strip())
    return Instruction(name, shape, op, names, rest)


def _balanced(text: str) -> tuple[str, str]:
    """The bracketed beginning of `text`, and what follows."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "({[") - (c in ")}]")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def _split(text: str) -> Iterator[str]:
    """Parts between the commas outside of brackets; /*index=5*/ marks are left out."""
    text = re.sub(r"/\*.*?\*/", "", text)
    depth, start = 0, 0
    for i, c in enumerate(text):
        depth += (c in "({[") - (c in ")}]")
        if c == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]


def size(shape: str) -> float:
    """Bytes of a shape such as `f32[2,3]{1,0}` or a tuple of them."""
    total = 0.0
    for kind, dims in re.findall(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]", shape):
        width = _BYTES[kind] if kind in _BYTES else int(re.search(r"\d+", kind)[0]) / 8
        total += width * math.prod(int(d) for d in dims.split(",") if d)
    return total


def dims(shape: str) -> tuple[int, ...]:
    """Of one array: the dimensions of a shape such as `f32[2,3]{1,0}`."""
    return tuple(int(d) for d in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if d)


def times(found: Mapping[str, list[Instruction]]) -> dict[str, int]:
    """How often each computation runs a step: a loop's body as often as it is known to repeat, else once."""
    counts: dict[str, int] = collections.Counter()

    def visit(name: str, count: int) -> None:
        counts[name] += count
        for instruction in found[name]:
            repeat = _trips(instruction, found) if instruction.op == "while" else 1
            for called in bodies(instruction, found):
                visit(called, count * repeat)

    visit("ENTRY", 1)
    return dict(counts)


def _trips(loop: Instruction, found: Mapping[str, list[Instruction]]) -> int:
    """Turns of a loop: as the compiler says, or its condition, a counter (of scans, from 0) below a constant; else 1.

    The TPU compiler of libtpu 0.0.42 writes no known trip counts.
    """
    if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(told[1])
    named = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    inside = {each.name: each for each in found.get(named[1], ())} if named else {}
    for test in inside.values():
        limit = inside.get(test.operands[-1]) if test.op == "compare" and "direction=LT" in test.rest else None
        if limit is not None and limit.op == "constant" and limit.operands[0].isdigit():
            return int(limit.operands[0])
    return 1


def bodies(instruction: Instruction, found: Mapping[str, Any]) -> list[str]:
    """Computations that an instruction runs; the scalar ones of reductions are not worth a visit."""
    names = re.findall(r"(?:calls|body|condition|called_computations)=\{?%?([\w.\-]+)", instruction.rest)
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    names += [b.strip().lstrip("%") for b in branches[1].split(",")] if branches else []
    if instruction.op == "call" and (target := re.search(r"to_apply=%?([\w.\-]+)", instruction.rest)):
        names.append(target[1])
    return [name for name in names if name in found]


def collectives(found: Mapping[str, list[Instruction]], mesh: Mapping[str, int]) -> list[Collective]:
    """Every collective of a compiled program on a mesh of these axis sizes, in the order of the mesh.

    A TPU program may cut a collective into fusions that begin it, work beside it, and end it, each of which names it:
    it is counted where it begins. A fusion called all-reduce-scatter keeps each device's own part of a sum.
    """
    count = times(found)
    result = []
    for name, instructions in found.items():
        stage = {target for i in instructions for target in re.findall(r'"AsyncCollective(\w+)"', i.rest)}
        if name not in count or name.startswith("async_collective_fusion") or "Done" in stage:
            continue
        shapes = {i.name: i.shape for i in instructions}
        for at, instruction in enumerate(instructions):
            kind = instruction.op.removesuffix("-start")
            if kind not in KINDS:
                continue
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
            payload = sum(size(shapes.get(operand, "")) for operand in instruction.operands)
            together = groups(instruction.rest, math.prod(mesh.values()))
            ways = len(together[0]) if kind != "collective-permute" else 2
            if ways < 2:
                continue
            result.append(
                Collective(
                    kind, _axes(together, mesh), ways, sent(kind, ways, payload), count[name],
                    "Start" in stage or (instruction.op.endswith("-start") and _beside(instructions, at)),
                    _source(instruction),
                )
            )  # fmt: skip
    return result


def sent(kind: str, n: int, payload: float) -> float:
    """Bytes that a device sends for `payload` bytes of its own, by the ring algorithms."""
    if kind == "all-gather":
        return (n - 1) * payload
    if kind == "all-reduce":
        return 2 * (n - 1) / n * payload
    return payload if kind in ("collective-permute", "collective-broadcast") else (n - 1) / n * payload


def groups(rest: str, devices: int) -> list[list[int]]:
    """The groups of devices in the text of a collective, by their place in the mesh; for a permute its pairs."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        return [[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)", pairs[0])]
    if explicit := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", explicit[1])]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims, order = ([int(n) for n in part.split(",")] if part else [] for part in iota.groups())
        return np.arange(math.prod(dims)).reshape(dims).transpose(order or None).reshape(shape).tolist()
    if named := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", rest):
        sizes = {k: int(v) for k, v in re.findall(r"'([^']+)'=(\d+)", named[1])}
        inside = [list(sizes).index(name) for name in re.findall(r"'([^']+)'", named[2])]
        outside = [i for i in range(len(sizes)) if i not in inside]
        grid = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        ways = math.prod(grid.shape[i] for i in inside)
        return grid.transpose(outside + inside).reshape(-1, ways).tolist()
    return [list(range(devices))]


def _axes(groups: list[list[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes along which the members of a group differ."""
    places = [np.stack(np.unravel_index(group, tuple(mesh.values()))) for group in groups]
    return tuple(axis for i, axis in enumerate(mesh) if any(np.ptp(place[i]) for place in places))


def _beside(instructions: list[Instruction], start: int) -> bool:
    """Whether any work is scheduled between the start at this place and the instruction that waits for it."""
    waiting = {instructions[start].name}
    for later in instructions[start + 1 :]:
        if later.op.endswith("-done") and waiting & set(later.operands):
            return False
        if later.op in ("get-tuple-element", "bitcast") and waiting & set(later.operands):
            waiting.add(later.name)
        elif later.op in WORK:
            return True
    return False


def _source(instruction: Instruction) -> str:
    named = re.search(r'op_name="([^"]*)"', instruction.rest)
    return named[1] if named else instruction.name


def short(name: str) -> str:
    """An operation's name without the prefix that all of them share."""
    return re.sub(r"^(jit\(\w+\)/)+", "", name)


def scheduled(found: Mapping[str, list[Instruction]]) -> Iterator[tuple[int, list[Instruction]]]:
    """(times, instructions) of the computations that run by themselves: entry, loops, branches, but no fusions."""
    count, names = times(found), {"ENTRY"}
    while True:
        instructions = [i for name in names for i in found[name] if i.op in ("while", "conditional", "call")]
        more = {name for i in instructions for name in bodies(i, found)} - names
        if not more:
            return iter([(count[name], found[name]) for name in names])
        names |= more


FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota",
        "after-all", "partition-id", "replica-id", "copy-done", "slice-done", "optimization-barrier")  # fmt: skip


def in_hbm(shape: str) -> float:
    """Bytes of the arrays of a shape that lie in HBM: memory space 1 and up is on the chip."""
    return sum(
        size(part) for part in re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", shape) if not re.search(r"S\([1-9]", part)
    )


def largest(found: Mapping[str, list[Instruction]], count: int = 8) -> list[tuple[float, str]]:
    """(bytes, shape and operation) of the largest arrays in HBM that the program makes, each operation once."""
    seen: dict[str, float] = {}
    for _, instructions in scheduled(found):
        for i in instructions:
            if i.op not in FREE and not i.shape.startswith("("):
                label = f"{i.shape.split('{')[0]} {short(_source(i))}"
                seen[label] = max(seen.get(label, 0.0), in_hbm(i.shape))
    return sorted(((s, label) for label, s in seen.items() if s), reverse=True)[:count]
