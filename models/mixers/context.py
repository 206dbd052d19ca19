"""Arguments that every part of one forward pass shares: positions of the tokens, their mask, and values by layer."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from kernels import masks
from models.mixers.slots import Slots

SITES = ("mixer", "channel", "residual")  # x_next = x + mixer + channel; residual: x_next
EXPERTS = "experts"  # a tap beside the sites: the experts of each token, [B, T, K], where the channel has any
Edit = Callable[[jax.Array, Mapping[str, Any]], jax.Array]


class Asked(NamedTuple):
    """The requests whose rows a pass of decoding reads."""

    prompt: jax.Array  # [B] tokens of each prompt; a token at position >= prompt[b] - 1 is read by a round
    key: jax.Array  # [B, 2] uint32: the key of each request, for noise that is the row's own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """See the module's docstring. Arrays in `layers` have L in front for a model, and are one layer's inside a layer.

    A site is one of three arrays `[B, T, D]` of a layer: the mixer's and the channel's addition to the residual stream,
    and the stream after both. An edit changes the array; a tap reads it after the edits.
    """

    positions: jax.Array  # [B|1, T]: the token's place in its document
    segment_ids: jax.Array | None  # [B, T]: document within the row, 0 = padding; None = one document a row
    mask: masks.Mask  # the objective's mask, over places in the row (training) or positions (decoding)
    slots: Slots | None = None  # decoding: where tokens stand, the new ones included
    start: jax.Array | None = None  # decoding: [B] the slot of each row's first new token
    # Decoding: the new tokens are drafts in a tree: [1|B, T, T] of each its ancestors and itself (`slots.ancestors`).
    paths: jax.Array | None = None
    fresh: bool = dataclasses.field(default=False, metadata={"static": True})  # decoding: no token came before these
    asked: Asked | None = None  # decoding: whose rows these are; None where no engine reads them
    layers: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # name -> values of each layer
    flow: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)  # name -> [B, T, ...] of the layer before
    taps: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})  # sites that the report shows
    edits: tuple[tuple[str, Edit], ...] = dataclasses.field(default=(), metadata={"static": True})  # (site, edit)
    key_bias: jax.Array | None = None  # training: [B, T] added to the scores of each key, whoever asks
    # Of layers that have no keys of their own (models/rewired.py): keys and values [B, T, K, H], not rotated.
    given: tuple[jax.Array, jax.Array] | None = None
    # Decoding, of a fresh pass: patterns of the heads of each of the layers at hand, () = attention to everything.
    prefill: tuple[tuple[Any, ...], ...] = dataclasses.field(default=(), metadata={"static": True})
    # Decoding, of memories that keep keys unrotated: (x [B, T, N|K, H], positions [B, T]) -> x.
    rotate: Callable[..., jax.Array] | None = dataclasses.field(default=None, metadata={"static": True})
    # With it: whether rotate(rotate(x, a), b) is rotate(x, a + b) whatever the text.
    steady: bool = dataclasses.field(default=False, metadata={"static": True})
    # Decoding: which tokens take which layers (models/depth.py); None = all.
    depth: Any = dataclasses.field(default=None, metadata={"static": True})
    # Decoding, of a fresh pass: [B, T, T] which new tokens (columns) each (row) may see; None = as the mask says.
    among: jax.Array | None = None
    # Decoding, of rows that are read together (`models.together`): the passes that the tokens [1, n] here belong to.
    parts: tuple["Context", ...] = ()

    @property
    def decoding(self) -> bool:
        """Whether the tokens are read behind a state."""
        return self.slots is not None or bool(self.parts)

    def at(self, site: str, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`x` at a site after its edits, and the entry of the report where the site is tapped."""
        for name, edit in self.edits:
            if name == site:
                y = edit(x, self.layers)
                if y.shape != x.shape:
                    raise ValueError(f"the edit of site {site!r} gives shape {y.shape}; it must give {x.shape}.")
                x = y.astype(x.dtype)
        return x, {site: x} if site in self.taps else {}


def check_sites(taps: tuple[str, ...], edited: Mapping) -> None:
    """Raises ValueError for a name that is no site; `EXPERTS` may be tapped and not edited."""
    for name in (*(tap for tap in taps if tap != EXPERTS), *edited):
        if name not in SITES:
            raise ValueError(f"site {name!r} is unknown; use one of {', '.join(SITES)}.")
