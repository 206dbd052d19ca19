"""Parameters of a model of this house from foreign files: checked by name and shape first, then read piece by piece."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from configs.families import Unreadable, describe, kind
from configs.knobs import nested
from experiments.pretrained import copying, names
from experiments.pretrained.names import Theirs
from experiments.pretrained.tensors import Tensors, open_tensors
from models.spec import Spec

STACK = "stack/period/"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter of ours is from: one tensor for each layer that it stacks, `(None,)` where it stacks none.

    experts: E where each layer has as many tensors, else 0.
    """

    theirs: Theirs
    layers: tuple[int | None, ...]
    experts: int = 0

    def name(self, layer: int | None, expert: int = 0) -> str:
        name = self.theirs.name if layer is None else self.theirs.name.replace("{i}", str(layer))
        return name.replace("{e}", str(expert))

    def names(self) -> list[str]:
        """Of all its tensors."""
        return [self.name(layer, expert) for layer in self.layers for expert in range(self.experts or 1)]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by path, joined by "/"."""
    if not isinstance(tree, Mapping):
        return {prefix.removesuffix("/"): tree}
    return {name: leaf for key, value in tree.items() for name, leaf in flatten(value, f"{prefix}{key}/").items()}


def places(spec: Spec, parameters: Any, tables: tuple[Mapping[str, Theirs], Mapping[str, Theirs]]) -> dict[str, Place]:
    """For every parameter (by path) where a table says that it is from; those of no table are left out."""
    outer, layer = tables
    found, period = {}, len(spec.mixers)
    for path, leaf in flatten(parameters).items():
        if path.startswith(STACK):
            block, _, inner = path.removeprefix(STACK).partition("/")
            first = int(block.split("_")[0])
            if inner in layer:
                experts = leaf.shape[1] if layer[inner].by_expert else 0
                found[path] = Place(layer[inner], tuple(range(first, spec.L, period)), experts)
        elif path in outer:
            found[path] = Place(outer[path], (None,))
    return found


def ours(theirs: Theirs, x: np.ndarray, spec: Spec, F: int) -> np.ndarray:
    """A tensor of theirs as the parameter of ours that it is, or the part of it that is; a view where it can be."""
    x = x.swapaxes(-1, -2) if theirs.turned else x
    if theirs.pairs:
        x = x.reshape(*x.shape[:-1], -1, spec.H // 2, 2).swapaxes(-1, -2).reshape(x.shape)
    if not theirs.part:
        return x
    if theirs.by_head:
        at, cut = theirs.parts.index(theirs.part), x.reshape(*x.shape[:-1], spec.N, len(theirs.parts), spec.H)
        return cut[..., at, :].reshape(*x.shape[:-1], spec.N * spec.H)
    if theirs.mixed:
        return x[..., theirs.parts.index(theirs.part) :: len(theirs.parts)]
    sizes = widths(spec, F)
    first = sum(sizes[part] for part in theirs.parts[: theirs.parts.index(theirs.part)])
    return x[..., first : first + sizes[theirs.part]]


def widths(spec: Spec, F: int) -> dict[str, int]:
    """Outputs of the maps that other libraries fuse."""
    return {"q": spec.N * spec.H, "k": spec.K * spec.H, "v": spec.K * spec.H, "gate": F, "up": F}


def their_shape(theirs: Theirs, shape: tuple[int, ...], spec: Spec, F: int) -> tuple[int, ...]:
    """The shape that a tensor of theirs has for a parameter of ours of `shape`, without the layers in front.

    Nor the experts, where each is a tensor.
    """
    if theirs.part:
        shape = (*shape[:-1], sum(widths(spec, F)[part] for part in theirs.parts))
    return (*shape[:-2], *shape[:-3:-1]) if theirs.turned else shape


def hidden(parameters: Mapping[str, Any]) -> int:
    """F, from the map up of the first channel; 0 where there is none."""
    ends = ("channel/up/kernel", "channel/experts/up")
    return next((leaf.shape[-1] for path, leaf in parameters.items() if path.endswith(ends)), 0)


def _named(source: Tensors, places_: Mapping[str, Place]) -> Callable[[str], str]:
    """How tensors are called in this file: with the model's prefix, or without it, as a bare model is saved."""
    wanted = {name for place in places_.values() for name in place.names()}
    prefixes = {
        name.split(".")[0] + "." for name in wanted if name.split(".")[0] in ("model", "transformer", "gpt_neox")
    }
    bare = not any(name.startswith(tuple(prefixes)) for name in source.shapes) if prefixes else False

    def called(name: str) -> str:
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        return name.removeprefix(prefix) if bare else name

    return called


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model's files beside the parameters that they become; made by `reader`, which has checked both."""

    source: Tensors
    spec: Spec
    abstract: dict[str, Any]
    places: dict[str, Place]
    called: Callable[[str], str]

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding as it lies in the files."""
        return self.source.shapes[self.called(self.places["embedding"].name(None))][0]

    def piece(self, path: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of a parameter, of the parameter's type."""
        leaf, place, F = self.abstract[path], self.places[path], hidden(self.abstract)
        stacked = place.layers != (None,)
        layers = place.layers[index[0]] if stacked else place.layers
        index = index[1:] if stacked else index
        shape = leaf.shape[1:] if stacked else leaf.shape
        cut = tuple(len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True))
        out = copying.empty((len(layers), *cut), leaf.dtype)
        if place.experts:
            self._experts(out, place, layers, index)
            return out

        def fill(row: int) -> None:
            x = ours(place.theirs, self.source.read(self.called(place.name(layers[row]))), self.spec, F)
            if x.shape == shape:
                copying.copy(out[row], x[index])
                return
            first, last, _ = index[0].indices(shape[0])  # A vocabulary that is rounded up: rows that are never targets.
            x = x[min(first, len(x)) : min(last, len(x)), index[1]]
            copying.copy(out[row, : len(x)], x)
            out[row, len(x) :] = 0

        copying.on_all_cores(fill, len(layers))
        return out if stacked else out[0]

    def _experts(self, out: np.ndarray, place: Place, layers: Sequence[int | None], index: tuple[slice, ...]) -> None:
        """Fills `out` `[layers, experts, ...]` from a tensor an expert."""
        wanted = range(*index[0].indices(place.experts))

        def fill(at: int) -> None:
            row, e = divmod(at, len(wanted))
            x = self.source.read(self.called(place.name(layers[row], wanted[e])))
            copying.copy(out[row, e], ours(place.theirs, x, self.spec, 0)[index[1:]])

        copying.on_all_cores(fill, len(layers) * len(wanted))

    def parameters(self, shardings: Any, progress: Callable[[int, int], None] = lambda done, total: None) -> Any:
        """The parameters as arrays that lie as `shardings` say; each device reads what it holds.

        progress: is told numbers read, and how many there are.
        """
        total, done, found = sum(leaf.size for leaf in self.abstract.values()), 0, {}
        placed = flatten(shardings)
        for path, leaf in self.abstract.items():
            read = lambda index, path=path: self.piece(path, index)  # noqa: E731
            found[path] = jax.make_array_from_callback(leaf.shape, placed[path], read)
            done += leaf.size
            progress(done, total)
        return nested(found, "/")


def reader(spec: Spec, abstract: Any, path: str | os.PathLike) -> Reader:
    """What reads the model at `path` into parameters of the shapes of `abstract`, after everything was checked.

    Errors: Unreadable with one sentence: files damaged, cut off or missing, types not handled, tensors that are
    missing, of another shape, or not known.
    """
    flat, source = flatten(abstract), open_tensors(path)
    family = describe(path)[0]
    tables = names.GGUF[family] if kind(path) == "gguf" else names.HUGGING_FACE[family]
    found = places(spec, abstract, tables)
    if alone := [name for name in flat if name not in found]:
        raise Unreadable(f"the model has the parameters {alone[0]!r}, which {family} has not; leave that part away.")
    called, F = _named(source, found), hidden(flat)
    for problem in _problems(source, spec, flat, found, called, F):
        raise Unreadable(problem)
    return Reader(source, spec, flat, found, called)


def _problems(
    source: Tensors, spec: Spec, flat: Mapping[str, Any], found: Mapping[str, Place], called: Callable, F: int
) -> Iterator[str]:
    used = set()
    for path, place in found.items():
        stacked = (place.layers != (None,)) + (place.experts > 0)
        wanted = their_shape(place.theirs, flat[path].shape[stacked:], spec, F)
        for name in map(called, place.names()):
            used.add(name)
            there = source.shapes.get(name)
            if there is None:
                yield f"{source.where} lacks the tensor {name!r}; bring the whole model back from a copy."
            padded = path in ("embedding", "head") and there and there[0] <= wanted[0] and there[1:] == wanted[1:]
            if there is not None and there != wanted and not padded:
                yield f"{source.where}: tensor {name!r} has the shape {there}, and the config asks for {wanted}."
    tied = {"lm_head.weight", "embed_out.weight"} if "head" not in flat else set()
    rest = [n for n in source.shapes if n not in used | tied and not n.endswith(names.COMPUTED)]
    if rest:
        yield f"{source.where} has the tensor {rest[0]!r}, which no part of this model reads; it may be another model."
