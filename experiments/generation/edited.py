"""PIE: text behind a prompt that was edited, from the cache of the prompt as it was.

Keys of tokens that both prompts have are turned to their new places, what was inserted is read anew, before it what was
kept and behind it nothing: He et al. 2024, arXiv:2407.03157. Values, and keys of deeper layers, keep what their tokens
knew of the text before; `drift` says what that does to the logits.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generation.between import entering
from experiments.generation.text import Generator
from experiments.preflight.segments import STEPPED
from experiments.program import Program, counting
from experiments.settings.errors import ConfigError
from kernels import masks
from models.mixers.memory import edit
from models.mixers.memory.full import Full
from models.mixers.slots import Slots


@dataclasses.dataclass(frozen=True)
class Drift:
    """What the logits behind an edited prompt are beside those of a full recompute.

    Attributes:
      apart: the largest difference of a logit.
      nats: KL(full || edited).
      same: whether the likeliest token is the same.
    """

    apart: float
    nats: float
    same: bool


class Edited(Generator):
    """A `Generator` for one prompt that was `old` before. `said`: what was saved, and what it did to the logits."""

    reads = False

    def __init__(self, program: Program, tokenizer: Any, old: str):
        super().__init__(program, tokenizer)
        self.old, self.said = self.encode(old), ""
        self._turn = program.jit(self._turned, static_argnames=("width",))
        self._after = program.jit(self._logits, static_argnames=("width",))

    def _begun(self, weights: Any, rows: tuple, told: dict) -> Any:
        parts, (text, length, *_) = told["parts"], rows
        if problems := [*self._problems(parts, len(text))]:
            raise ConfigError(problems)
        width, n = told["capacity"] + parts.drafter[1].nodes - 1, int(length[0])
        new = np.asarray(text[0, :n])
        script = edit.edited(self.old.tolist(), new.tolist())
        state = self.read(weights, new, script.source, width)
        begun = self.decoder.start(weights, *rows, **(told | {"size": 0}))
        spec = self.program.spec
        linear = counting.flops_per_token(self.program)["matmul"] / 3 - 2 * spec.V * spec.D
        saved = edit.saved(script.source, linear=linear, pair=4 * spec.N * spec.H * spec.L)
        drift = self.drift(weights, new, state, width)
        self.said = (
            f"{int((script.source < 0).sum())} of {n} tokens of the prompt are computed anew: {saved:.1%} of the FLOPs "
            f"of a full recompute are saved; the logits behind it differ by at most {drift.apart:.3g} from that, "
            f"KL {drift.nats:.3g} nats, the likeliest token is {'the same' if drift.same else 'another'}"
        )
        return dataclasses.replace(begun, state=state)

    def read(self, weights: Any, new: np.ndarray, source: np.ndarray, width: int) -> Any:
        """The decoding state of all tokens of `new [n]` but the last: those of `source [n]` >= 0 from the old cache.

        `width`: tokens that it has room for.
        """
        kept = np.flatnonzero(source >= 0)
        anew = np.flatnonzero(source[:-1] < 0)
        row = lambda x: np.asarray(x, np.int32)[None]  # noqa: E731
        pairs = (row(source[kept]), row(kept)), (row(new[anew]), row(anew))
        return self._turn(
            weights, _padded(self.old, max(width, len(self.old))), np.int32(len(self.old)), *pairs, width=width
        )

    def drift(self, weights: Any, new: np.ndarray, state: Any, width: int) -> Drift:
        """Logits behind `new [n]` from the state of an edit, and from a full recompute."""
        n = len(new)
        whole = _padded(new, width), np.where(np.arange(width) < n - 1, np.arange(width), -1)[None].astype(np.int32)
        ours, full = jax.device_get(self._after(weights, state, whole, np.int32(new[-1]), np.int32(n - 1), width=width))
        p, q = (np.asarray(jax.nn.log_softmax(x.astype(np.float64))) for x in (full, ours))
        return Drift(float(np.abs(ours - full).max()), float((np.exp(p) * (p - q)).sum()),
                     bool(np.argmax(ours) == np.argmax(full)))  # fmt: skip

    def _problems(self, parts: Any, rows: int) -> Any:
        """What cannot be read from an old cache."""
        model, key = self.program.config.model, "generate.edit_of"
        if rows != 1:
            yield f"{key} is of one prompt and there are {rows} rows; use one --prompt on one device."
        if entering(parts):
            yield f"{key} takes keys of another text, and generate.control changes how it is read; leave one away."
        if parts.memory.name != "full":
            name = parts.memory.name
            yield f"{key} turns the keys of all tokens, and generate.memory={name!r} drops some; use 'full'."
        if any(name.strip() != "attention" for name in model.mixer.split(",")) or model.kind in STEPPED:
            yield f"{key} turns keys of attention, and model.mixer={model.mixer!r} has others; use --prompt alone."
        if model.positions:
            yield f"{key} turns rotary keys, and model.positions={model.positions} are learned; use --prompt alone."
        if model.attention.rope_scaling.kind not in ("none", "linear", "llama3"):
            yield (
                f"{key} turns keys by a difference of places, which model.attention.rope_scaling.kind="
                f"{model.attention.rope_scaling.kind!r} does not add up; use --prompt alone."
            )

    def _turned(self, weights, old, count, kept, anew, *, width):
        return after_edit(self.decoder.models(weights)["model"], old, count, kept, anew, width=width)

    def _logits(self, weights, state, whole, last, place, *, width):
        """Logits `[V]` of the token `last` at `place` from a state, and from the tokens `whole` before it."""
        model = self.decoder.models(weights)["model"]
        rule = {"mask": masks.Causal()}
        full = model(whole[0], positions=whole[1], state=model.init_state(1, width), fresh=True, **rule).state
        step = functools.partial(model, last[None, None], positions=place[None, None], **rule)
        return tuple(model.logits(step(state=each).features)[0, 0] for each in (state, full))


def after_edit(
    model: Any, old: jax.Array, count: jax.Array, kept: tuple, anew: tuple, *, width: int, turn: bool = True
) -> Any:
    """The decoding state of edited prompts, inside a trace; the same edit in all rows.

    Args:
      model: an `LM` for decoding.
      old: `[B, S]` ids of the prompts before, the first `count` of which there are.
      kept: (old, new) places of the tokens that stay, `[1, n]` each.
      anew: (ids `[B, m]`, places `[1, m]`) of those that are read.
      width: tokens that the state has room for, at least n + m.
      turn: False leaves keys as they stood: what the rotation is worth.
    """
    rule, (B, S) = {"mask": masks.Causal()}, old.shape
    at = jnp.arange(S)[None]
    read = {"positions": jnp.where(at < count, at, -1), "state": model.init_state(B, S), "fresh": True}
    layers = model(old, **read, **rule).state["layers"]
    still = lambda x, places: x  # noqa: E731
    moved = tuple(
        {name: _moved(memory, *kept, own[name].rotate if turn else still, width) for name, memory in layer.items()}
        for layer, own in zip(layers, model.stack.mixers, strict=True)
    )
    slots = Slots.empty(B, width).append(jnp.broadcast_to(kept[1], (B, kept[1].shape[1])))
    state = {"slots": slots, "layers": moved}
    return model(anew[0], positions=anew[1], state=state, **rule).state if anew[0].shape[1] else state


def _moved(memory: Full, old: jax.Array, new: jax.Array, rotate: Any, size: int) -> Full:
    """Slots `old [1, n]` side by side, keys turned to the places `new [1, n]`, then zeros: `size` slots."""
    k, v = (jnp.take_along_axis(x, old[:, None, :, None], axis=2) for x in (memory.k, memory.v))
    k = rotate(k.swapaxes(1, 2), new - old).swapaxes(1, 2)
    more = ((0, 0), (0, 0), (0, size - k.shape[2]), (0, 0))
    return Full(*(jnp.pad(x, more) for x in (k, v)))


def _padded(x: np.ndarray, width: int) -> np.ndarray:
    """`[1, width]` int32: numbers `x`, then zeros."""
    return np.pad(np.asarray(x, np.int32), (0, width - len(x)))[None]
