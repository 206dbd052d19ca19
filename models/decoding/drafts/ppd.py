"""Drafter `ppd`: learned prompt tokens behind the nodes of a round make the guesses of the next one, in the same pass.

Source: Chen et al. 2024, "Parallel Prompt Decoding", arXiv:2405.18628; trained by the objective `prompt_tokens`. Behind
a node of depth d, prompt token j = 1..n stands at depth d + j and sees the node's path and the prompt tokens before it.
Where a walk ends at that node, one more token follows, which is the next root, and the features of prompt token j guess
the token that is j behind that root. With n prompt tokens at the last node that stayed, the next tree is up to n deep:
n is the state of a row, 0 at first.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.block import Pass
from models.decoding import keys
from models.decoding.drafts import Drafter, Probes, Seen, Tree, prompts, templates
from models.decoding.drafts.model import warped
from models.decoding.drafts.none import last_token

SAYS = "dynamic:LIMIT:CHANCES (dynamic:16:0.6,0.2/0.4,0.2/0.3,0.1: by depth / and rank), or a tree: 2x1x1, medusa"


@functools.cache
def named(name: str) -> prompts.States:
    """The rounds that a knob names: `SAYS`.

    "dynamic": `prompts.best_tree` of three states within LIMIT tokens, for the chance of each rank to be right, depth
    by depth. A tree (`templates.named`) has as many prompt tokens behind every node, the root included, as it is deep,
    so that all rounds but the first are alike.

    Errors: ValueError in one sentence.
    """
    kind, *rest = name.split(":")
    if kind != "dynamic":
        tree = templates.named(name)
        deep = int(tree.depth.max())
        paths: list[prompts.Path] = [()]
        for above, rank in zip(tree.parent[1:], tree.rank[1:], strict=True):
            paths.append((*paths[above], int(rank)))
        fits = lambda s: [path for path in paths[1:] if len(path) <= s]  # noqa: E731
        trees = [prompts.Tree(fits(s), [], [deep] * len(fits(s))) for s in range(1, deep + 1)]
        return prompts.states(trees, root=deep)
    try:
        limit = int(rest[0])
        chances = np.array([[float(x) for x in row.split(",")] for row in rest[1].split("/")])
        if len(chances) != 3 or limit < 4 or not ((chances >= 0) & (chances <= 1)).all():
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(f"{name!r} names no trees of prompt tokens; use {SAYS}.") from None
    return prompts.states(prompts.best_tree(chances, limit)[0])


@dataclasses.dataclass(frozen=True)
class PPD(Drafter):
    """See the module's docstring. `tree`: nodes and prompt tokens of a round, `named`.

    The side: features `[B, n, D]` of the prompt tokens behind the last node that stayed, and the state `[B]`, how many
    of them are there.
    """

    branches = True

    tree: str

    @property
    def states(self) -> prompts.States:
        """The rounds by state."""
        return named(self.tree)

    @property
    def nodes(self) -> int:
        """The last token, the drafts and the prompt tokens of the largest round."""
        return self.states.parent.shape[1] + self.states.above.shape[1]

    @property
    def depth(self) -> int:
        """See `Drafter`."""
        return int(self.states.depth.max()) + 1

    def problems(self, config: Any) -> Iterator[str]:
        """See `Drafter.problems`."""
        try:
            most = len(self.states.parent) - 1
        except ValueError as error:
            yield f"generate.ppd.tree={error}"
            return
        if config.objective != "prompt_tokens":
            yield (
                f"generate.drafter='ppd' needs the prompt tokens that objective='prompt_tokens' trains, which a model "
                f"of objective={config.objective!r} has not; use generate.drafter='lookup'."
            )
        elif most > (trained := config.prompt_tokens.tokens):
            yield (
                f"generate.ppd.tree={self.tree!r} needs {most} prompt tokens and the model has {trained}; use e.g. "
                f"generate.ppd.tree={'x'.join('1' * trained)!r}."
            )

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Drafter.init`."""
        spec, n = models["model"].spec, len(self.states.parent) - 1
        return {"feature": jnp.zeros((batch, n, spec.D), spec.dtype), "state": jnp.zeros((batch,), jnp.int32)}

    def read(self, models: Mapping[str, Any], side: Any, tokens: jax.Array, positions: jax.Array, made: Pass) -> Any:
        """See `Drafter.read`. Behind a piece of the prompt nothing is guessed."""
        return side | {"state": jnp.where(jnp.any(positions >= 0, axis=1), 0, side["state"])}

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`."""
        model, side = models["model"], p.side["ppd"]
        of = prompts.States(*(jnp.asarray(table)[side["state"]] for table in self.states))
        guesses = self._guesses(models, p, parts, side["feature"])  # [B, n, ranks]
        flat = jnp.maximum(of.depth - 1, 0) * guesses.shape[2] + of.rank
        token = jnp.take_along_axis(guesses.reshape(len(guesses), -1), flat, axis=1)
        token = token.at[:, 0].set(last_token(p.text, p.length)[:, 0])
        vector = model.heads["prompts"]()[of.step]
        return Tree(token, of.parent, None, of.node, Probes(vector, of.above, of.prompt)), side

    def _guesses(self, models: Mapping[str, Any], p: Any, parts: Any, feature: jax.Array) -> jax.Array:
        """The likeliest tokens 1..n behind the root, `[B, n, ranks]`."""
        request, found = jax.random.wrap_key_data(p.key), []
        logits = warped(models, models["model"].logits(feature), p, parts)
        for ahead in range(feature.shape[1]):
            own = keys.fold(request, p.length + ahead, keys.TOKEN)
            ranked = parts.verifier.candidates(own, logits[:, ahead])
            found.append(jax.lax.top_k(ranked, int(self.states.rank.max()) + 1)[1])
        return jnp.stack(found, axis=1).astype(jnp.int32)

    def observe(self, models: Mapping[str, Any], side: Any, seen: Seen) -> Any:
        """See `Drafter.observe`: the features of the prompt tokens behind the last node that stayed."""
        live, N = seen.count > 0, seen.tree.token.shape[1]
        last = jnp.take_along_axis(seen.path, jnp.maximum(seen.count - 1, 0)[:, None], axis=1)[:, 0]
        at = (side["state"], last)
        first, count = (jnp.asarray(table)[at] for table in (self.states.first, self.states.count))
        place = N + first[:, None] + jnp.arange(side["feature"].shape[1])
        place = jnp.minimum(place, seen.made.features.shape[1] - 1)
        feature = jnp.take_along_axis(seen.made.features, place[..., None], axis=1).astype(side["feature"].dtype)
        return {
            "feature": jnp.where(live[:, None, None], feature, side["feature"]),
            "state": jnp.where(live, count, side["state"]),
        }


PARTS = {"ppd": PPD}
