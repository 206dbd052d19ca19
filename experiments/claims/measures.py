"""What a claim may measure of finished runs: one table, read by the checks `contrast` and `table`."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax

from experiments.bench import timing
from experiments.claims import answers, held_out, places, routed
from experiments.program import build, counting, global_batch, inputs, sharding
from experiments.settings.errors import Refused
from experiments.settings.keys import suggest
from experiments.sweep import trials

ROUNDS = 5  # of steps that take turns, for "share"
Runs = Mapping[Hashable, Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of finished runs.

    label: of an axis.
    sign: -1 if less is better, else 1.
    of: `(row) -> figures` of one finished run, by name, the measure's own among them; None if runs are measured
      together.
    together: `(base, cells, runs) -> values` by cell, from what each cell sets on `base` ({dotted key: value}) and its
      finished runs.
    text: `(kind, mean) -> str`, an arm by its kind of likelihood ("=", "<=", "~") and mean figures.
    difference: the format of (mean, low, high) of a difference.
    """

    label: str
    sign: int
    of: Callable[[Mapping[str, Any]], dict[str, float]] | None = None
    together: Callable[[Any, Mapping[Hashable, Mapping[str, Any]], Runs], dict[Hashable, list[float]]] | None = None
    text: Callable[[str, Mapping[str, float]], str] = lambda kind, mean: ""
    difference: str = "{0:+.3f} [{1:+.3f}, {2:+.3f}]"


def measure(name: str, key: str) -> Measure:
    """`MEASURES[name]`. Refused where the claim's `key` names another."""
    if name not in MEASURES:
        hint = suggest(name, MEASURES)
        raise Refused(f"{key}={name!r} of the claim is unknown; {hint}choose one of: {', '.join(MEASURES)}.")
    return MEASURES[name]


def values(
    name: str, base: Any, cells: Mapping[Hashable, Mapping[str, Any]], runs: Runs
) -> dict[Hashable, list[float]]:
    """The measure `name` of every run, by cell; as `Measure.together` has it."""
    made = MEASURES[name]
    if made.together:
        return made.together(base, cells, runs)
    return {cell: [made.of(row)[name] for row in rows] for cell, rows in runs.items()}


def program(base: Any, changes: Mapping[str, Any], use: Callable[[Any], Any]) -> Any:
    """`use(program)` of the config that `changes` make of `base`, on one device."""
    (trial,) = trials.resolve(base, [dict(changes)])
    corpus = inputs.load(trial.config)
    mesh = sharding.make_mesh(trial.config, jax.devices()[:1])
    return use(build(trial.config, vocab_size=corpus.tokenizer.vocab_size, mesh=mesh))


def _answers(row: Mapping[str, Any]) -> dict[str, float]:
    return answers.score(row["workdir"])


def _by_lengths(name: str, words: str) -> Measure:
    """Exact sums among those whose numbers and answer have lengths that agree modulo `group`, or the others."""
    of = lambda row: {name: answers.by_lengths(row["workdir"])[name]}  # noqa: E731
    text = lambda kind, mean: f"{100 * mean[name]:.1f}% exact where lengths {words}"  # noqa: E731
    return Measure("exact answers", 1, of, text=text, difference="{0:+.1%} [{1:+.1%}, {2:+.1%}]")


def _bytes_a_token(row: Mapping[str, Any]) -> dict[str, float]:
    """Held-out bytes of a token: nats a token over nats a byte."""
    return {"bytes_per_token": row["loss"] / (row["eval/bits_per_byte"] * math.log(2))}


def _shown(kind: str, mean: Mapping[str, float]) -> str:
    return f"{100 * mean['exact']:.1f}% exact ({mean['length']:.1f} symbols, {mean['calls']:.1f} calls)"


def _shares(base: Any, cells: Mapping[Hashable, Mapping[str, Any]], runs: Runs) -> dict[Hashable, list[float]]:
    """Training steps of all cells take turns; a value a round."""
    made = {cell: program(base, changes, _step) for cell, changes in cells.items()}
    rate = counting.matmul_rate(seconds=0.5)
    timed = timing.interleave({cell: step for cell, (step, _) in made.items()}, rounds=ROUNDS)
    return {cell: [made[cell][1] / seconds / rate for seconds in timed[cell].wall] for cell in cells}


def _step(built: Any) -> tuple[Callable[[], Any], float]:
    """A call that trains one step, and its FLOPs."""
    config = built.config
    batch = global_batch(next(iter(inputs.eval_batches(config, inputs.load(config)))), built)
    state, step = [built.init()], built.train_step()

    def call() -> Any:
        state[0], metrics = step(state[0], batch)
        return metrics

    tokens = config.eval.batch_size or config.data.batch_size // config.train.accumulation
    return call, counting.flops_per_token(built)["total"] * tokens * config.data.length


def _routed(name: str, label: str, sign: int, text: str, difference: str = "{0:+.3f} [{1:+.3f}, {2:+.3f}]") -> Measure:
    """A figure of the load of experts."""
    of = lambda row: {name: routed.figures(row["workdir"])[name]}  # noqa: E731
    return Measure(label, sign, of, text=lambda kind, mean: text.format(mean[name]), difference=difference)


MEASURES = {
    "exact": Measure("exact answers", 1, _answers, text=_shown, difference="{0:+.1%} [{1:+.1%}, {2:+.1%}]"),
    "exact_alike": _by_lengths("exact_alike", "agree"),
    "exact_apart": _by_lengths("exact_apart", "differ"),
    "accuracy": Measure(
        "accuracy", 1, _answers, text=lambda kind, mean: f"{100 * mean['accuracy']:.1f}% of answered tokens right",
        difference="{0:+.1%} [{1:+.1%}, {2:+.1%}]",
    ),
    "bits_per_byte": Measure(
        "held-out bits per byte", -1, lambda row: {"bits_per_byte": row["eval/bits_per_byte"]},
        text=lambda kind, mean: f"{kind} {mean['bits_per_byte']:.3f} bits per byte",
    ),
    "lowest": Measure(
        "lowest held-out bits per byte of the curve", -1, held_out.figures,
        text=lambda kind, mean: f"{kind} {mean['lowest']:.3f} bits per byte at its lowest, after "
        f"{mean['epochs_at_lowest']:.3g} epochs",
    ),
    "rise": Measure(
        "held-out bits per byte, the last less the lowest", -1, held_out.figures,
        text=lambda kind, mean: f"{mean['rise']:.3f} bits per byte above its lowest",
    ),
    "bytes_per_token": Measure(
        "held-out bytes a token", 1, _bytes_a_token,
        text=lambda kind, mean: f"{mean['bytes_per_token']:.3f} bytes a token",
    ),
    "loss": Measure(
        "held-out loss, nats", -1, lambda row: {"loss": row["loss"]},
        text=lambda kind, mean: f"{kind} {mean['loss']:.4f} nats a token", difference="{0:+.4f} [{1:+.4f}, {2:+.4f}]",
    ),
    "fall": Measure(
        "nats that the loss falls from a row's second eighth to its last", 1, lambda row: places.along(row["workdir"]),
        text=lambda kind, mean: f"{mean['eighth 2']:.4f} to {mean['eighth 8']:.4f} nats a token",
        difference="{0:+.4f} [{1:+.4f}, {2:+.4f}]",
    ),
    "share": Measure("share of matmul rate", 1, together=_shares),
    "specialisation": _routed(
        "specialisation", "I(text; expert), nats", 1, "{:.4f} nats of I(text; expert)", "{0:+.4f} [{1:+.4f}, {2:+.4f}]"
    ),
    "imbalance": _routed("imbalance", "imbalance of four devices", -1, "imbalance {:.4f}"),
    "costly": _routed("costly", "experts of a token that cost something", -1, "{:.3f} costly experts a token"),
    "token_sparsity": _routed("token_sparsity", "token sparsity", 1, "token sparsity {:.3f}"),
    "chunk_sparsity": _routed("chunk_sparsity", "sparsity of 8 tokens", 1, "sparsity of 8 tokens {:.3f}"),
}  # fmt: skip
