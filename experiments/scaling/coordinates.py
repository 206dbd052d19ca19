"""Coordinate check: how much activations move in the first steps of training, at several widths.

    from experiments.scaling import coordinates
    found = coordinates.measure(config, widths=(32, 64, 128, 256))
    print(coordinates.table(found))
    plots.save(plots.coordinates(found), "coordinates")

Where hyperparameters carry over from one width to another, the change of an activation in a step has the same size at
all widths: the slope of its logarithm over that of the width is 0. A slope of 1/2 or 1 means that the wider model takes
larger steps, so that its learning rate has to fall. A negative slope means that parts of it learn ever less (Yang et
al. 2022, arXiv:2203.03466, appendix D.1).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.program import build, global_batch, inputs, sharding
from models.mixers import Context
from models.objectives import OBJECTIVES


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Root mean squares over a batch and the width.

    widths: W of them.
    names: of the A activations.
    size: `[W, steps + 1, A]`, of each activation before and after each step.
    moved: `[W, steps, A]`, of its change since the start.
    """

    widths: tuple[int, ...]
    names: tuple[str, ...]
    size: np.ndarray
    moved: np.ndarray

    def slopes(self) -> dict[str, float]:
        """d log(moved) / d log(width) of each activation after the last step, by least squares."""
        moved = np.log(self.moved[:, -1])
        return dict(zip(self.names, np.polyfit(np.log(self.widths), moved, 1)[0].tolist(), strict=True))


def sized(config: Any, width: int) -> Any:
    """`config` at `width`: as many heads where `model.mup.base_head_dim` says that they widen, else more of them."""
    made = config.copy_and_resolve_references().unlock()
    model = made.model
    if not model.mup.base_head_dim:
        head = model.head_dim or model.width // model.num_heads
        if width % head:
            raise ValueError(f"widths: {width} is no multiple of the head width {head}; use e.g. {4 * head}.")
        model.num_heads = width // head
    model.width = width
    return made


def measure(config: Any, widths: Sequence[int], *, steps: int = 4) -> Coordinates:
    """Trains `config` at each of `widths` for `steps` steps on one batch, and measures the activations on that batch.

    The activations: embedded tokens, the residual stream after each layer, and the logits. ValueError for a width that
    is no multiple of the head width, and for an objective whose batches need more than tokens.
    """
    if not OBJECTIVES[config.objective].causal:
        raise ValueError(f"objective={config.objective!r} hides tokens; use objective='next_token' for coordinates.")
    found = [_run(sized(config, width), steps) for width in widths]
    values = {name: np.array([[step[name] for step in run] for run in found]) for name in found[0][0]}
    names = tuple(name for name in values if not name.startswith("moved "))
    size = np.stack([values[name] for name in names], axis=-1)
    moved = np.stack([values[f"moved {name}"] for name in names], axis=-1)[:, 1:]
    return Coordinates(tuple(widths), names, size, moved)


def _run(config: Any, steps: int) -> list[dict[str, float]]:
    """The results of `_sizes` before and after each step; one program."""
    corpus = inputs.load(config)
    program = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=sharding.make_mesh(config))
    batch = global_batch(inputs.prepare(config, corpus, inputs.train_loader(config, corpus).batch(0)), program)

    def look(state: Any) -> dict[str, jax.Array]:
        return _activations(program.merge(state["params"]), batch, program.objective)

    @jax.jit
    def whole(state: Any) -> tuple[Any, Any]:
        start = look(state)

        def one(state: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
            state, _ = program.step(state, batch)
            return state, _sizes(look(state), start)

        return _sizes(start, start), jax.lax.scan(one, state, None, length=steps)[1]

    first, rest = jax.device_get(whole(program.init()))
    rows = [first, *({name: values[k] for name, values in rest.items()} for k in range(steps))]
    return [{name: float(value) for name, value in row.items()} for row in rows]


def _activations(model: Any, batch: dict, objective: Any) -> dict[str, jax.Array]:
    """Embedded tokens, the residual stream after every layer and the logits of `batch`, `[B, T, D | V]` each."""
    mask, tokens = objective.mask, batch["tokens"]
    positions = batch.get("positions", jnp.arange(tokens.shape[1])[None])
    context = Context(positions, batch.get("segment_ids"), mask, taps=("residual",))
    x = model.embed(tokens)
    out, names = model.stack(x, context), model.stack.period.names
    found = {"embedding": x}
    for i, x in enumerate(out.report["residual"]):
        found[f"layer {i // len(names)} {names[i % len(names)].partition('_')[2]}"] = x
    return found | {"logits": model.logits(model.norm(out.features))}


def _sizes(now: dict[str, jax.Array], start: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Root mean squares of the activations and, under "moved ...", of their change since the start."""

    def root(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))

    return {name: root(x) for name, x in now.items()} | {f"moved {k}": root(x - start[k]) for k, x in now.items()}


def table(found: Coordinates) -> str:
    """Text: how far each activation moved at each width, and its slope."""
    slopes, wide = found.slopes(), max(map(len, found.names))
    lines = [f"{'moved by':<{wide}}  " + "  ".join(f"D {width:>6}" for width in found.widths) + "     slope"]
    for k, name in enumerate(found.names):
        moved = "  ".join(f"{value:8.2e}" for value in found.moved[:, -1, k])
        lines.append(f"{name:<{wide}}  {moved}  {slopes[name]:+8.3f}")
    return "\n".join(lines)
