"""Drafter `heads`: the model's own heads of the tokens further on (objective `multi_token`), several tokens at once.

Source: Stern et al. 2018, "Blockwise Parallel Decoding", arXiv:1811.03115; Cai et al. 2024, "Medusa", arXiv:2401.10774;
Gloeckle et al. 2024, arXiv:2404.19737. From the feature f of the token before the last one, head i predicts the token
that is i further on: i = 1 was the last token itself, i = 2 is the first draft. All drafts of one depth have the same
candidates, whatever stands before them; a tree takes several of each.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.block import Pass
from models.decoding import keys
from models.decoding.drafts import Seen, Tree, templates
from models.decoding.drafts.model import warped
from models.decoding.drafts.none import last_token
from models.decoding.drafts.templated import Templated


@dataclasses.dataclass(frozen=True)
class Ahead(Templated):
    """See the module's docstring. `template`: the tree (`templates.named`), as deep as there are heads.

    The side is the feature `[B, D]` of the token before the last one; zeros where there is none.
    """

    def problems(self, config: Any) -> Iterator[str]:
        """See `Drafter.problems`."""
        yield from (wrong := [*templates.problems("generate.heads.template", self.template)])
        if config.objective != "multi_token":
            yield (
                f"generate.drafter='heads' needs heads of the tokens ahead, which a model of objective="
                f"{config.objective!r} has not; use generate.drafter='lookup'."
            )
        elif not wrong and self.depth > config.multi_token.tokens:
            most = config.multi_token.tokens - 1
            yield (
                f"generate.heads.template={self.template!r} is {self.depth - 1} deep and the model has {most} heads of "
                f"tokens ahead; use e.g. generate.heads.template={'x'.join('1' * most) or 'none'!r}."
            )

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Drafter.init`."""
        spec = models["model"].spec
        return {"feature": jnp.zeros((batch, spec.D), spec.dtype)}

    def read(self, models: Mapping[str, Any], side: Any, tokens: jax.Array, positions: jax.Array, made: Pass) -> Any:
        """See `Drafter.read`."""
        count = jnp.sum(positions >= 0, axis=1)
        return {"feature": newest(made.features, jnp.maximum(count - 1, 0), count > 0, side["feature"])}

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`."""
        model, tree, side = models["model"], self.tree, p.side["heads"]
        request, token = jax.random.wrap_key_data(p.key), [last_token(p.text, p.length)]
        for depth in range(1, self.depth):
            feature = model.heads[f"ahead_{depth + 1}"](side["feature"][:, None])
            logits = warped(models, model.logits(feature), p, parts)[:, 0]
            own = keys.fold(request, p.length + depth - 1, keys.TOKEN)
            ranks = tree.rank[tree.depth == depth]
            best = jax.lax.top_k(parts.verifier.candidates(own, logits), int(ranks.max()) + 1)[1]
            token.append(best[:, ranks].astype(jnp.int32))
        drafts = jnp.concatenate(token, axis=1)
        return Tree(drafts, jnp.asarray(tree.parent)[None], None, jnp.ones(drafts.shape, bool)), side

    def observe(self, models: Mapping[str, Any], side: Any, seen: Seen) -> Any:
        """See `Drafter.observe`."""
        last = jnp.take_along_axis(seen.path, jnp.maximum(seen.count - 1, 0)[:, None], axis=1)[:, 0]
        return {"feature": newest(seen.made.features, last, seen.count > 0, side["feature"])}


def newest(features: jax.Array, at: jax.Array, there: jax.Array, old: jax.Array) -> jax.Array:
    """features `[B, T, D]` at `at [B]` where `there [B]` holds, else `old [B, D]`."""
    found = jnp.take_along_axis(features, at[:, None, None], axis=1)[:, 0]
    return jnp.where(there[:, None], found.astype(old.dtype), old)


PARTS = {"heads": Ahead}
