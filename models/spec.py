"""The sizes and choices of one backbone, resolved from `config.model` into plain, hashable values."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from models.facts import listed, merged
from models.parametrization import Parametrization
from models.partition import Partition


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a part may know about the model that it is built into. Capital letters are the house's dimensions."""

    V: int  # vocabulary, padded
    D: int  # model width
    L: int  # layers
    N: int  # query heads
    K: int  # key/value heads
    H: int  # head width
    mixers: tuple[str, ...]  # repeats over depth
    channel: str  # one name, or as many as mixers
    projection: str
    norm: str
    norm_place: str
    norm_scale: bool
    norm_offset: bool
    norm_bias: bool
    norm_eps: float
    final_norm: str
    parallel: bool
    residual_scale: float
    positions: int
    tied: bool
    logit_scale: float
    softcap: float
    embedding_scale: float
    time_features: int
    self_condition: bool
    roles: int
    init: str
    init_std: float
    dtype: Any
    param_dtype: Any
    remat: str
    unroll: int
    options: Mapping[str, Mapping[str, Any]]  # one group per part, by the part's name
    by_position: tuple[Mapping[str, Any], ...] = ()  # what differs at each place of the period, by group
    partition: Partition = Partition()  # layout on the mesh
    sizes: Parametrization = Parametrization()  # multipliers that follow from the sizes
    kind: str = "lm"  # of models.kinds

    @classmethod
    def from_config(cls, model: Mapping[str, Any], *, vocab_size: int, partition: Partition = Partition()) -> "Spec":  # noqa: B008 (immutable)
        """Resolves `config.model` (as a plain dict); `vocab_size` is what tokenizer and objective need."""
        model = dict(model)
        D, N, L = model["width"], model["num_heads"], model["num_layers"]
        sizes = Parametrization.of(model)
        tuned = D if sizes.rule.logits == 0 else model["mup"]["base_width"]
        vocab = max(model["vocab_size"], vocab_size)
        return cls(
            V=-(-vocab // model["vocab_multiple"]) * model["vocab_multiple"],
            D=D,
            L=L,
            N=N,
            K=model["num_kv_heads"] or N,
            H=model["head_dim"] or D // N,
            mixers=listed(model["mixer"]),
            # The square roots are those of the base where a rule says how the rest follows the width.
            logit_scale=(model["logit_scale"] or 1 / math.sqrt(tuned)) * sizes.logits,
            embedding_scale=model["embedding_scale"] or math.sqrt(tuned),
            dtype=jnp.dtype(model["dtype"]),
            param_dtype=jnp.dtype(model["param_dtype"]),
            unroll=model["unroll"] or (L if L <= 12 and model["remat"] == "none" else 1),
            options=MappingProxyType(
                {k: MappingProxyType(dict(v)) for k, v in model.items() if isinstance(v, Mapping)}
            ),
            by_position=tuple(dict(each) for each in model["by_position"]),
            partition=partition,
            sizes=sizes,
            **{k: model[k] for k in _COPIED},
        )

    def at(self, position: int) -> "Spec":
        """What the block at a place of the period is built from: its channel, these options, and what differs there."""
        names = listed(self.channel)
        found = self if len(names) == 1 else dataclasses.replace(self, channel=names[position])
        if not self.by_position or not self.by_position[position]:
            return found
        options = {k: MappingProxyType(v) for k, v in merged(self.options, self.by_position[position]).items()}
        return dataclasses.replace(found, options=MappingProxyType(options))


_COPIED = (
    "channel", "projection", "norm", "norm_place", "norm_scale", "norm_offset", "norm_bias", "norm_eps", "final_norm",
    "parallel", "residual_scale", "positions", "tied", "softcap", "init", "init_std", "remat", "time_features",
    "self_condition", "roles", "kind",
)  # fmt: skip
