"""Memory `keyformer`: softmax of noisy logits at a rising temperature (Adnan et al. 2024, arXiv:2403.09054)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from kernels.attention.noise import gumbel
from kernels.column_sums import Noise
from models.mixers.memory import scores
from models.mixers.memory.kept import Kept, Rated, Row, policy


@policy
@dataclasses.dataclass(frozen=True)
class Keyformer(Kept):
    """See the module's docstring. `told["step"] [B]`: tokens after the prompt. `frozen_keys`: as released, what leaves
    the recent tokens never stays."""

    name: ClassVar[str] = "keyformer"
    draws: ClassVar[bool] = True

    @classmethod
    def ruled(cls, sizes, options):
        rule = super().ruled(sizes, options)
        return dataclasses.replace(rule, steps=rule.steps or max(1, sizes.drawn or sizes.length))

    @classmethod
    def remembered(cls, rule, sizes):
        return {"step": jnp.zeros((sizes.batch,), jnp.int32)}

    def asks(self, query, newest, dtype):
        return {"all": (query >= 0).astype(dtype)}

    @property
    def noise(self):
        return Noise(self.rule.seed) if self.rule.noise else None

    def rate(self, row: Row) -> Rated:
        if row.sums and not row.one:
            return Rated.of(row, row.score + row.sums["all"])
        N = row.p.shape[0]
        key = jnp.repeat(row.position, N // len(row.position), axis=0)[:, None]
        head = jnp.arange(N)[:, None, None]
        noise = gumbel(self.rule.seed, head, row.query[None, :, None], key, row.x.dtype) if self.rule.noise else 0.0
        step = row.told["step"] + row.one
        tau = scores.keyformer_temperature(step, self.rule.steps, self.rule.end)
        y = scores.keyformer(row.x, noise, tau if row.one else 1.0, row.x > -jnp.inf)
        y = jnp.where((row.query >= 0)[:, None], y, 0)
        score = row.score + scores.by_key_head(scores.column_sums(y), row.K)
        return Rated.of(row, score, told={"step": step})

    def stays(self, rated: Rated, row: Row) -> jax.Array:
        if not self.rule.frozen_keys:
            return super().stays(rated, row)
        bounds = self.bounds(row.prompt)
        budget, recent = bounds["budget"], bounds["recent"]
        old = row.held & (row.position <= row.newest - recent)
        heavy = scores.keep_best(rated.score, old, budget - recent, row.position)
        kept = heavy | (row.held & (row.position > row.newest + 1 - recent))
        return jnp.where(row.length <= budget, row.held, kept)


PARTS = {"keyformer": Keyformer}
