"""Bench rows of what guards a run: the training step of shape a with a check in every step, and without."""

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.bench import training
from experiments.bench.comparison import Comparison, Planned
from experiments.training import stopping
from experiments.workdir import states

SHAPE = "a"


def planned() -> Iterator[Planned]:
    """All rows of this module."""
    yield Planned(f"checks/{SHAPE}", _checks)


def _checks() -> Comparison:
    """A run checks its numbers and hashes its files once a save; here both are done in every step.

    Candidates: the step; the step with a look for a signal; with the check that all numbers are finite, on which the
    loop waits; and with the checksums of as many bytes as its state has, taken by a thread beside it, as saves do.
    """
    D, L, N, F, V, T, B = training.SHAPES[SHAPE]
    made = training.program_of(SHAPE)
    tokens = np.random.default_rng(0).integers(0, V, (B, T + 1)).astype(np.int32)
    batch = jax.device_put({"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "scored": np.ones((B, T), bool)})
    step_fn, now, stop = made.train_step(), {"state": made.init()}, stopping.Stop()
    data = np.zeros(sum(leaf.nbytes for leaf in jax.tree.leaves(now["state"]) if hasattr(leaf, "nbytes")), np.uint8)

    def step() -> Any:
        now["state"], metrics = step_fn(now["state"], batch)
        return jax.block_until_ready(metrics)

    def look() -> Any:
        stop.look(0)
        return step()

    def finite() -> Any:
        metrics = step()
        if wrong := states.not_finite(now["state"]):
            raise FloatingPointError(wrong[0])
        return metrics

    def hashed() -> Any:
        beside = threading.Thread(target=lambda: hashlib.sha256(data).hexdigest())
        beside.start()
        metrics = step()
        beside.join()
        return metrics

    def check() -> str:
        broken = jax.tree.map(lambda x: x, made.init())
        broken["params"]["embedding"] = broken["params"]["embedding"].at[0, 0].set(np.nan)
        return "" if states.not_finite(broken) == ["['params']['embedding']"] else "a NaN is not seen"

    return Comparison(
        name=f"checks/{SHAPE}",
        candidates={"step": step, "look": look, "finite": finite, "hashed": hashed},
        baseline="step",
        check=check,
        work=(B * T, "tokens"),
        counted=("bytes hashed", {"step": 0, "look": 0, "finite": 0, "hashed": data.nbytes}),
        rounds=7,
    )
