"""`--mode=bench --tune`: for each question that a row's kernels ask of `kernels.choices`, what is fastest here.

Answers are tried one question at a time, the others standing. Each is checked against the default's results, all that
compile and are right are timed in turn with it, and the fastest is timed against the default once more, alone: of many
the fastest seems faster than it is. What is `LEAST` times as fast in three of four rounds of that run is written to
the op's table; else the table loses what it said.
"""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from experiments import workdir as files
from experiments.bench import ops, timing
from experiments.bench.comparison import Comparison, Planned
from kernels import choices

LEAST = 1.03
ROUNDS = 15  # of the last run
# Two results of one sum differ by what both are off: roundings between inputs and the last gradient, twice.
ROUNDINGS, TERMS = 2 * 8, 1 << 13


def row(plan: Planned, console: Console) -> list[dict[str, Any]]:
    """The choices of one row of the bench: a record for each question that has answers to try."""
    made = plan.build()
    if made.again and (wrong := made.check()):
        console.print(f"{plan.name}: WRONG, not tuned: {wrong}")
        return []
    found = []
    for name, again in made.again.items():
        for question, asked in questions(again).items():
            found.append(_best(made, name, question, asked))
            console.print(f"{plan.name}, {said(found[-1])}")
    if not found:
        console.print(f"{plan.name}: nothing to choose")
    jax.clear_caches()
    return found


def questions(again: Callable[[], Any]) -> dict[choices.Question, choices.Asked]:
    """What a candidate that `again` compiles asks, where this device can answer and there is more than a default."""
    jax.clear_caches()
    with choices.asking() as asked:
        again()
    here = jax.devices()[0].platform
    return {question: told for question, told in asked.items() if told.platform == here and told.tried}


def said(record: dict[str, Any]) -> str:
    """One line of a record."""
    numbers = ", ".join(f"{choice} {times:.2f}" for choice, times in record["times_faster"].items())
    kept = f"{record['choice']} is kept, {record['again']:.2f} times the default" if record["choice"] else "it stays"
    left = f"; not {', '.join(record['left_out'])}" if record["left_out"] else ""
    return f"{record['op']}: {record['of']}: default {record['default']}; {numbers or 'none is right'}; {kept}{left}"


def _best(made: Comparison, name: str, question: choices.Question, asked: choices.Asked) -> dict[str, Any]:
    calls, left_out = {asked.default: _answered(made, name, question, asked.default)}, []
    expected = jax.tree.leaves(calls[asked.default]())
    for choice in asked.tried:
        if choice in calls:
            continue
        try:
            call = _answered(made, name, question, choice)
            right = all(_near(a, b) for a, b in zip(jax.tree.leaves(call()), expected, strict=True))
        except Exception as error:  # What does not fit is refused by compilers and devices in their own ways.
            left_out.append(f"{choice} ({type(error).__name__})")
            continue
        if right:
            calls[choice] = call
        else:
            left_out.append(f"{choice} (wrong)")
    faster = {choice: statistics.median(times) for choice, times in _rounds(calls, asked.default, made).items()}
    best = max(faster, key=faster.get)
    times, low = 1.0, 0.0
    if best != asked.default:
        again = _rounds({choice: calls[choice] for choice in (asked.default, best)}, asked.default, made, ROUNDS)[best]
        times, low = statistics.median(again), statistics.quantiles(again, n=4)[0]
    written = {"choice": best, "default": asked.default, "times_faster": round(times, 3), "row": made.name}
    chip = jax.devices()[0].device_kind
    if low >= LEAST or question.of in choices.table(question.op).get(chip, {}):
        files.write_file(*choices.edited(question.op, chip, question.of, written if low >= LEAST else {}))
        choices.table.cache_clear()
    return {
        "row": made.name, "candidate": name, **question._asdict(), "default": asked.default,
        "times_faster": {str(choice): value for choice, value in faster.items()}, "again": times,
        "choice": best if low >= LEAST else None, "left_out": left_out,
    }  # fmt: skip


def _answered(made: Comparison, name: str, question: choices.Question, choice: choices.Choice) -> Callable[[], Any]:
    with choices.given({question: choice}):
        return made.again[name]()


def _near(got: jax.Array, expected: jax.Array) -> bool:
    """Whether two results differ by no more than both are off, as a share of the largest value."""
    wide = expected.astype(jnp.float32)
    allowed = ops.tolerance(str(expected.dtype), ROUNDINGS, TERMS)
    return bool(jnp.max(jnp.abs(got.astype(jnp.float32) - wide)) <= allowed * jnp.max(jnp.abs(wide)))


def _rounds(calls: dict, default: choices.Choice, made: Comparison, rounds: int = 0) -> dict[choices.Choice, list]:
    """By how much each is ahead of the default, round by round: in CPU seconds on a CPU, which others share."""
    timings = timing.interleave(calls, rounds=rounds or made.rounds, calls=made.calls)
    clock = "cpu" if jax.devices()[0].platform == "cpu" else "wall"
    base = getattr(timings[default], clock)
    return {
        choice: [y / x for x, y in zip(getattr(found, clock), base, strict=True)] for choice, found in timings.items()
    }
