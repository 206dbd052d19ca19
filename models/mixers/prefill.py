"""How a prompt is read: `generate.prefill=minference` gives every head of attention a pattern (docs/cache.md)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kernels.attention.sparse import KINDS, Pattern, block_of


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Patterns of the layers of attention, each of one head or of all of them: static under jit.

    One layer stands for all layers, one pattern for all heads of its layer.
    """

    layers: tuple[tuple[Pattern, ...], ...]

    @classmethod
    def of(cls, generate: Mapping[str, Any]) -> "Prefill | None":
        """What `config.generate`, as a plain dict, asks for; None: every query sees everything."""
        if generate.get("prefill", "dense") == "dense":
            return None
        return parsed(generate["minference"]["patterns"])

    def by_layer(self, heads: Sequence[int]) -> tuple[tuple[Pattern, ...], ...]:
        """Patterns of every layer's heads, `heads` of them each, 0: a layer without attention, which has none.

        Errors: ValueError where there are others than these layers and heads.
        """
        if problem := next(self.problems(heads), None):
            raise ValueError(problem)
        layers = iter(self.layers if len(self.layers) > 1 else self.layers * len(heads))
        mine = [next(layers) if count else () for count in heads]
        return tuple(each * count if len(each) == 1 else each for each, count in zip(mine, heads, strict=True))

    def problems(self, heads: Sequence[int]) -> Iterator[str]:
        """What does not go with layers of `heads`, 0 for one without attention: a sentence each."""
        counts = [count for count in heads if count]
        key = "generate.minference.patterns"
        if len(self.layers) not in (1, len(counts)):
            yield f"{key} is of {len(self.layers)} layers, and {len(counts)} have attention; use one for all."
            return
        for number, layer in enumerate(self.layers):
            mine = counts[number] if len(self.layers) > 1 else counts[0] if counts else 1
            if len(layer) not in (1, mine):
                yield f"{key} has {len(layer)} heads in layer {number} of {mine}; use one pattern for all of them."
            try:
                block_of(layer)
            except ValueError as problem:
                yield f"{key}: {problem}"


def parsed(text: str) -> Prefill:
    """`KIND:FIRST:SECOND` of all heads, or a comma list of a layer's heads; layers are parted by semicolons.

    Errors: ValueError for a kind that is none, or sizes that are no numbers from 1 on.
    """
    return Prefill(tuple(tuple(map(_pattern, layer.split(","))) for layer in text.split(";")))


def _pattern(text: str) -> Pattern:
    kind, *sizes = text.strip().split(":")
    right = len(sizes) == 2 and all(size.isascii() and size.isdigit() and int(size) for size in sizes)
    if kind not in KINDS or not right:
        raise ValueError(
            f"generate.minference.patterns: {text.strip()!r} is no pattern of {', '.join(KINDS)} with two whole "
            "numbers from 1 on; use e.g. 'vertical_slash:100:800'."
        )
    return Pattern(kind, int(sizes[0]), int(sizes[1]))


def written(found: Mapping[str, Any]) -> str:
    """The text that `parsed` reads of what `eval.patterns` found: the best pattern of each head of each layer."""
    words = [":".join(map(str, candidate)) for candidate in found["candidates"]]
    return "; ".join(",".join(words[i] for i in layer) for layer in found["best"])
