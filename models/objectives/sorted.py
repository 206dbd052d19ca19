"""Sorted fine-tuning: the first layers of a model are models themselves, and all of them learn in one step.

Kavehzadeh et al. 2024, "Sorted LLaMA", arXiv:2309.08968, and "S2D: Sorted Speculative Decoding", arXiv:2407.01955. The
sub-model of m layers is the stream after layer m through the model's own final norm and unembedding, p_m. A scored
token costs

    sum_m w_m (-log p_m(target)),   sum_m w_m = 1        choice "all"
    -log p_m(target), one m a step, drawn with the chances w_m        choice "random": the same on average

over the exits and the whole model. Nats; what is evaluated and what writes text is the whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from models.facts import Facts, listed
from models.objectives.left_to_right import LeftToRight
from models.objectives.loss import Loss, per_scored
from models.objectives.next_token import weighted_nll

Array = jax.Array
SITE = "residual"


def shares(weights: Sequence[float], count: int) -> tuple[float, ...]:
    """w_1..w_count of sum 1, from numbers of any sum; equal ones where none are given."""
    given = tuple(weights) or (1.0,) * count
    return tuple(weight / sum(given) for weight in given)


def weighted(losses: Sequence[Array] | Array, weights: Sequence[float]) -> Array:
    """sum_m w_m losses_m: `[M, ...]`, `[M]` -> `[...]`. Equal weights: `adaptive.sorted_loss`."""
    return jnp.tensordot(jnp.asarray(weights, jnp.float32), jnp.asarray(losses), axes=1)


@dataclasses.dataclass(frozen=True)
class Sorted(LeftToRight):
    """Options of `config.sorted`.

    exits: layers after which a sub-model ends, a comma list. weights: of the exits in their order, then of the whole
    model; none: equal. choice: "all" or "random".
    """

    exits: str = "1"
    weights: str = ""
    choice: str = "all"

    @property
    def layers(self) -> tuple[int, ...]:
        """Of the exits."""
        return tuple(int(name) for name in listed(self.exits))

    @property
    def shares(self) -> tuple[float, ...]:
        """w_m of the exits and, last, of the whole model."""
        return shares([float(name) for name in listed(self.weights) if name], len(self.layers) + 1)

    @property
    def predictions(self) -> int:
        """Times that the head reads a token's features."""
        return len(self.layers) + 1 if self.choice == "all" else 1

    def corrupt(self, batch: dict, key: Array) -> dict:
        """The batch; with choice "random" also `chosen [B]`, the step's sub-model, the same in every row."""
        if self.choice == "all":
            return batch
        one = jax.random.choice(key, len(self.shares), p=jnp.asarray(self.shares))
        return batch | {"chosen": jnp.full(batch["tokens"].shape[:1], one)}

    def loss(self, model: Any, batch: dict, key: Array, *, z_loss: float = 0.0) -> Loss:
        """The sum of the formula above over the valid targets of a batch, in nats, plus the z-loss of each sub-model.

        Args:
          model: an `LM`.
          batch: as `next_token.loss` reads it, and `chosen` of `corrupt`.
          key: not used.
          z_loss: weight of the squared log-partition.

        Returns:
          The sum to differentiate; `nll` of the whole model and, of the exit behind m layers, `nll_m`, a target (with
          choice "random" `nll` of the sub-model that was drawn); and the model's report.
        """
        told = {name: batch.get(name) for name in ("positions", "segment_ids")}
        out = model(batch["tokens"], mask=self.mask, taps=(SITE,), **told)
        streams = [out.report[SITE][m - 1] for m in self.layers]
        report = {name: value for name, value in out.report.items() if name != SITE}
        features = [*(model.norm(stream) for stream in streams), out.features]
        cost = lambda x: weighted_nll(model, x, batch["targets"], batch["scored"], z_loss=z_loss)  # noqa: E731
        if self.choice == "random":
            total, nll = cost(jnp.stack(features)[batch["chosen"][0]])
            return Loss(total, per_scored({"nll": nll}, batch), report)
        totals, nats = zip(*map(cost, features), strict=True)
        sums = {"nll": nats[-1]} | {f"nll_{m}": each for m, each in zip(self.layers, nats[:-1], strict=True)}
        return Loss(weighted(totals, self.shares), per_scored(sums, batch), report)

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Exits that are no layers of the model, and weights that do not belong to them."""
        L, period = facts.model["num_layers"], len(listed(facts.model["mixer"]))
        exits, weights = options["exits"], options["weights"]
        layers = listed(exits)
        whole = [name for name in layers if name.isdigit() and 0 < int(name) < L and int(name) % period == 0]
        fits = sorted({int(name) for name in whole})
        if fits != [int(name) if name.isdigit() else 0 for name in layers]:
            yield (
                f"sorted.exits={exits!r} must rise over layers 1..{L - 1} of model.num_layers={L}, whole turns of "
                f"model.mixer; use e.g. sorted.exits={str(max(period, L // 2 // period * period))!r}."
            )
        elif weights and not _are_weights(weights, len(layers) + 1):
            yield (
                f"sorted.weights={weights!r} must be {len(layers) + 1} numbers above 0, of the exits and of the whole "
                f"model; use e.g. sorted.weights={','.join('1' * (len(layers) + 1))!r}."
            )
        if facts.model["kind"] != "lm":
            yield f"objective='sorted' needs model.kind='lm' and has {facts.model['kind']!r}; use model.kind='lm'."


def _are_weights(text: str, count: int) -> bool:
    try:
        found = [float(name) for name in listed(text)]
    except ValueError:
        return False
    return len(found) == count and all(0 < weight < float("inf") for weight in found)


PARTS = {"sorted": Sorted}
