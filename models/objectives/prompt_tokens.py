"""Prompt tokens of parallel prompt decoding: n vectors behind a token of a frozen model's text guess what follows it.

Chen et al. 2024, "Hardware-Aware Parallel Prompt Decoding", arXiv:2405.18628, and its code. Behind token t of a text
stand v_1..v_n [D] at the places of x_{t+1}, .., x_{t+n}; v_i sees x_0..x_t and v_1..v_i, and its law q_i is a guess of
x_{t+i+1}. With the model's own law p_i of that token, behind the true text, such a place costs

    1/n sum_{i=1..n} decay^(i-1) KL(p_i || q_i)      target "law": published, decay 0.8
    1/n sum_{i=1..n} decay^(i-1) (-log q_i(x_{t+i+1}))      target "token": the code's other trainer

Every run of `every` tokens of a row has one such place, drawn evenly (the code: one place, the end of a text that is
cut at random), and all are read in one pass beside the text: a tree whose trunk is the text. The vectors alone are to
be trained (`optimizer.freeze`). Left out of the code: several vectors a prompt token, prefixes, averaged layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import masks
from models import parameters
from models.facts import Facts, listed
from models.lm import Head
from models.objectives.left_to_right import LeftToRight
from models.objectives.loss import Loss, per_scored
from models.objectives.next_token import over_logits, weighted_nll
from models.spec import Spec

Array = jax.Array


def decayed(losses: Array, decay: float) -> Array:
    """1/n sum_i decay^(i-1) losses_i of the n prompt tokens of a place: `[..., n]` -> `[...]`."""
    n = losses.shape[-1]
    return jnp.sum(losses * decay ** jnp.arange(n), axis=-1) / n


def divergence(guess: Array, law: Array) -> Array:
    """KL(p || q) = sum_v p_v (log p_v - log q_v) of logits of q and p, `[..., V]` each -> `[...]`, in nats."""
    log_p, log_q = jax.nn.log_softmax(law, axis=-1), jax.nn.log_softmax(guess, axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def parents(at: Array, length: int, tokens: int) -> Array:
    """Parents `[B, T + R n]` of a text of T tokens and n prompt tokens behind each of the places `at [B, R]`.

    The text is the trunk, token t behind t - 1; behind it all prompt tokens of the first place, then of the second.
    """
    B, R = at.shape
    trunk = jnp.broadcast_to(jnp.arange(length) - 1, (B, length))
    own = length + jnp.arange(R * tokens).reshape(R, tokens) - 1  # the one before
    behind = jnp.where(jnp.arange(tokens) == 0, at[..., None], own)
    return jnp.concatenate([trunk, behind.reshape(B, -1)], axis=1)


def reached(at: Array, tokens: int, scored: Array, segment_ids: Array | None = None) -> tuple[Array, Array]:
    """(t + i, whether guess i of place t counts), `[B, R, n]` each: at `[B, R]`, scored and segment_ids `[B, T]`.

    It counts where the target of token t + i does (its own next token), in the document of t.
    """
    T = scored.shape[1]
    place = at[..., None] + 1 + jnp.arange(tokens)
    inside = jnp.minimum(place, T - 1)
    look = lambda x, where: jnp.take_along_axis(x, where.reshape(len(x), -1), axis=1).reshape(where.shape)  # noqa: E731
    counts = (place < T) & look(scored, inside)
    if segment_ids is not None:
        counts = counts & (look(segment_ids, inside) == look(segment_ids, at)[..., None])
    return inside, counts


class Vectors(nnx.Module):
    """v_1..v_n `[n, D]`, scaled as embedded tokens are."""

    def __init__(self, spec: Spec, tokens: int, *, rngs: nnx.Rngs):
        init = parameters.normal(spec.init_std)
        self.table = parameters.param(init, rngs, (tokens, spec.D), (None, "embed"), "embedding", spec)
        self.dtype, self.scale = spec.dtype, spec.embedding_scale

    def __call__(self) -> Array:
        """`[n, D]`."""
        return (self.table[...] * self.scale).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class PromptTokens(LeftToRight):
    """Options of `config.prompt_tokens`: `tokens`, n above; see the formula."""

    tokens: int = 3
    every: int = 8
    decay: float = 0.8
    target: str = "law"

    adds_z_loss: ClassVar[bool] = False

    @property
    def share(self) -> float:
        """Prompt tokens that are read for each token of a row."""
        return self.tokens / self.every

    @property
    def copies(self) -> float:
        """Tokens that pass through the backbone for each token of a row."""
        return 1 + self.share

    @property
    def predictions(self) -> float:
        """Products of the vocabulary, three of them a prediction: nats and the model's laws have no gradient."""
        return (1 + 4 * self.share) / 3

    def keys(self, length: int) -> float:
        """`length` times the pairs that are seen for each pair that the row's own tokens see."""
        return length * (1 + self.share * (length + self.tokens + 2) / (length + 1))

    def heads(self, spec: Spec) -> Mapping[str, Head]:
        """`prompts`, the vectors."""
        return {"prompts": functools.partial(_make, spec, self.tokens)}

    def corrupt(self, batch: dict, key: Array) -> dict:
        """The batch with `places [B, R]`: one in every run of `every` tokens of a row, in order."""
        B, T = batch["tokens"].shape
        first = jnp.arange(0, T, self.every)
        drawn = first + jax.random.randint(key, (B, len(first)), 0, jnp.minimum(self.every, T - first))
        return batch | {"places": drawn}

    def loss(self, model: Any, batch: dict, key: Array, *, z_loss: float = 0.0) -> Loss:
        """`every` times the sum of the formula above over the places of a batch: a mean a scored token, all in all.

        Args:
          model: an `LM` with the vectors above; nothing else of it is meant to learn.
          batch: as `corrupt` made it, its tokens in their order.
          key, z_loss: not used.

        Returns:
          The sum to differentiate; `nll` of the model's own next token and `guess_i` of prompt token i (KL or nats as
          `target` says, not decayed), both a scored token of the batch; and the model's report.
        """
        tokens, segments, at = batch["tokens"], batch.get("segment_ids"), batch["places"]
        (B, T), R, n = tokens.shape, at.shape[1], self.tokens
        places = batch.get("positions")
        places = jnp.broadcast_to(jnp.arange(T) if places is None else places, (B, T))
        here = jnp.take_along_axis(places, at, axis=1)[..., None] + 1 + jnp.arange(n)
        vectors = jnp.broadcast_to(model.heads["prompts"](), (B, R, n, model.spec.D)).reshape(B, R * n, -1)
        if segments is not None:
            own = jnp.take_along_axis(segments, at, axis=1)[..., None]
            segments = jnp.concatenate([segments, jnp.broadcast_to(own, (B, R, n)).reshape(B, -1)], axis=1)
        embedded = model.embed(tokens)
        out = model(
            jnp.concatenate([embedded, vectors.astype(embedded.dtype)], axis=1),
            mask=masks.Tree(parents(at, T, n)),
            positions=jnp.concatenate([places, here.reshape(B, -1)], axis=1),
            segment_ids=segments,
        )
        own, guess = out.features[:, :T], out.features[:, T:]
        ahead, counts = reached(at, n, batch["scored"], batch.get("segment_ids"))
        wanted = jnp.take_along_axis(own, ahead.reshape(B, -1)[..., None], axis=1)
        target = jnp.take_along_axis(batch["targets"], ahead.reshape(B, -1), axis=1)
        each = self._each(model, guess, wanted, target).reshape(B, R, n) * counts * self.every
        _, nll = weighted_nll(model, own, batch["targets"], batch["scored"])
        sums = {"nll": nll} | {f"guess_{i + 1}": jnp.sum(each[..., i]) for i in range(n)}
        return Loss(jnp.sum(decayed(each, self.decay)), per_scored(sums, batch), out.report)

    def _each(self, model: Any, guess: Array, wanted: Array, target: Array) -> Array:
        """The loss of every guess, `[B, M]`, from features `[B, M, D]` of prompt tokens and of the text."""
        if self.target == "token":

            def nats(logits: Array, target: Array) -> Array:
                log_q = jax.nn.log_softmax(logits, axis=-1)
                return -jnp.take_along_axis(log_q, target[..., None], axis=-1)[..., 0]

            return over_logits(nats, model, guess, target)
        laws = jax.lax.stop_gradient(over_logits(lambda logits: logits, model, wanted))
        return over_logits(divergence, model, guess, laws)

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Mixers that cannot read a tree beside a text, and windows that count it."""
        others = [name for name in listed(facts.model["mixer"]) if name != "attention"]
        if others or facts.model["kind"] != "lm":
            key, value = ("mixer", facts.model["mixer"]) if others else ("kind", facts.model["kind"])
            yield (
                f"objective='prompt_tokens' reads prompt tokens beside the text, as a tree, which model.{key}="
                f"{value!r} does not; use model.{key}={'attention' if others else 'lm'!r}."
            )
        elif facts.model["attention"]["window"]:
            yield (
                f"model.attention.window={facts.model['attention']['window']} would count prompt tokens that stand "
                "behind the text; use model.attention.window=0 with objective='prompt_tokens'."
            )


def _make(spec: Spec, tokens: int, rngs: nnx.Rngs) -> Vectors:
    return Vectors(spec, tokens, rngs=rngs)


PARTS = {"prompt_tokens": PromptTokens}
