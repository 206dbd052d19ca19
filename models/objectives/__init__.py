"""Socket Objective: what is learned?

Losses are pure functions of arrays and callables, one file per family of models. A module of this folder says which
objectives it brings, `PARTS = {"mine": Mine}`; the table is all of them. `config.objective` names one, and
`config.<objective>` holds its options.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax

from kernels import masks
from models import tables
from models.facts import Facts
from models.lm import Head
from models.objectives import next_token
from models.objectives.loss import Loss
from models.spec import Spec


class Objective(Protocol):
    """What the training loop, evaluation and generation know of an objective.

    A batch's `scored` says which tokens count: a `causal` objective scores `targets`, the next tokens, and any other
    the tokens themselves. Where devices share a sequence its tokens may be permuted, and `order [B, T]` holds the place
    of each. `corrupt` draws all noise of a step for the GLOBAL batch, before it is cut into microbatches and over
    devices, so that no cut changes a number. `loss` hands on the report of every pass that it makes.
    """

    mask: masks.Mask  # what a token sees in a plain pass: `Causal()`, `Full()`, ...
    bound: str  # of the reported nats: "=" exact, "<=" an upper bound of the negative log-likelihood, "~" neither
    causal: bool  # predicts the next token from those before it; else it needs mixers that run under other masks, too
    generator: str  # what writes text with its models: a name of experiments.generation.GENERATORS
    context_parallel: bool  # works where devices share a sequence: heeds `order` (one that does not say so does not)
    extra_tokens: int  # ids beyond the tokenizer's
    copies: float  # tokens that pass through the backbone for each token of a row
    # One that does not say so does not:
    adds_z_loss: bool  # heeds `z_loss`; of others the log-partition is part of what they learn
    timed: bool  # tells the model a time, for `model.time_features`
    tells_roles: bool  # hands the model `roles` of the batch, for `model.roles`
    predicts_twice: bool  # hands the model an earlier prediction, for `model.self_condition`
    laid_out_twice: bool  # a row passes the backbone with a copy of itself, so that windows would count both
    # Of those that ask for more than the backbone; see docs/house.md:
    companions: tuple[str, ...]  # trained models that `loss` reads beside its own: names of `config.companions`
    predictions: int  # times that the head reads a token's features, 1 where it does not say

    def corrupt(self, batch: dict, key: jax.Array) -> dict: ...

    def loss(self, model: Any, batch: dict, key: jax.Array, *, z_loss: float = 0.0) -> Loss:
        """With `companions: dict[str, LM]` as one more keyword, by name, where the objective names some."""
        ...

    def row_nll(self, model: Any, batch: dict, key: jax.Array) -> jax.Array:
        """Nats of each row, `[B]`. `key`: one key of each row, `[B]`, from which that row alone draws its noise, so
        that a row has one number in every batch; or one key, which is split among the rows."""
        ...

    def heads(self, spec: Spec) -> Mapping[str, Head]:
        """Parts that the objective adds to the model, by name: `model.heads[name]`. It may be left away."""
        ...

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Sentences about options that do not go with the rest of the config; see `models.facts`. Optional."""
        ...


OBJECTIVES = {"next_token": next_token, **tables.found(__name__)}  # as it is, or a class where it has options


def make(name: str, options: Mapping[str, Any], *, vocab_size: int) -> Objective:
    """The objective `name` for a tokenizer of `vocab_size` ids; the first id beyond them is `mask_id`."""
    entry = OBJECTIVES[name]
    if not isinstance(entry, type):
        return entry
    ids = {"mask_id": vocab_size} if "mask_id" in {field.name for field in dataclasses.fields(entry)} else {}
    return entry(**ids, **options)


def heads(objective: Objective, spec: Spec) -> Mapping[str, Head]:
    """The parts that an objective adds to a model of these sizes; none where it does not say."""
    return objective.heads(spec) if hasattr(objective, "heads") else {}


def companions(objective: Objective) -> tuple[str, ...]:
    """Names of the trained models that an objective reads beside its own; none where it does not say."""
    return getattr(objective, "companions", ())
