"""Controls of depth: SkipDecode's schedule, and exits by classifiers; both count what every layer did for a row."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.block import Pass
from models.decoding.control import Control, depth
from models.decoding.drafts import Seen, Tree
from models.depth import Exiting, Skipping


class Counted(Control):
    """Base of both: the side's `took [B, L]` counts the tokens of a row that took each layer, `read [B]` its tokens."""

    alone = True
    whole = True

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        return {
            "took": jnp.zeros((batch, models["model"].spec.L), jnp.int32),
            "read": jnp.zeros((batch,), jnp.int32),
        }

    def read(self, models: Mapping[str, Any], side: Any, tokens: jax.Array, positions: jax.Array, made: Pass) -> Any:
        """See `Control.read`."""
        return self.counted(side, made, jnp.sum(positions >= 0, axis=1, dtype=jnp.int32))

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        return self.counted(side, seen.made, (seen.count > 0).astype(jnp.int32))

    def counted(self, side: Any, made: Pass, many: jax.Array) -> Any:
        """The side after a pass over `many [B]` tokens of the rows; padding takes no layer."""
        took = jnp.sum(made.report["took"], axis=2, dtype=jnp.int32).T
        return side | {"took": side["took"] + took, "read": side["read"] + many}


@dataclasses.dataclass(frozen=True)
class Skip(Counted):
    """SkipDecode: the number of layers falls along the answer, from all to `least` at its limit; 0 is off.

    `depth.layers_at` and `depth.active`; a token that skips a layer writes no keys that are read.
    """

    dials = ("skip.least",)

    least: int = 0
    warm_up: int = 1

    def problems(self, config: Any, parts: Any) -> Iterator[str]:
        """See `Control.problems`."""
        if self.warm_up > config.model.num_layers:
            yield (
                f"generate.skip.warm_up={self.warm_up} is more than model.num_layers={config.model.num_layers}; use at "
                "most as many."
            )
        yield from refused("skip", config, parts)

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`."""
        least, L = options["skip"]["least"], sizes["took"].shape[-1]
        if least and not max(1, self.warm_up) <= least <= L:
            raise ValueError(
                f"generate.skip.least={least} layers are asked of {L}; use one from {max(1, self.warm_up)}, the first "
                f"ones that always run, to {L}."
            )
        return {}

    def enters(self, models: Mapping[str, Any], side: Any, p: Any) -> Mapping[str, Any]:
        """See `Control.enters`."""
        L = models["model"].spec.L
        asked = p.dials["skip.least"].astype(jnp.int32)
        least = jnp.where(asked > 0, asked, L)
        n = depth.layers_at(p.length - 1, p.prompt, p.limit, L, least)
        return {"layers": {"active": depth.active(n, L, self.warm_up).T}, "depth": Skipping()}


@dataclasses.dataclass(frozen=True)
class EarlyExit(Counted):
    """Exits by the classifiers that objective=exits trains: a token of the answer leaves at the first layer whose class
    "exit" has a chance of `threshold` at least; above 1 is off. `stops`: where it is "stop", the answer ends.

    Layers above write its keys and values from the state that left (`depth.exit_cost` with fill).
    """

    dials = ("early_exit.threshold",)

    threshold: float = 2.0
    stops: bool = True
    eos: int = -1

    def problems(self, config: Any, parts: Any) -> Iterator[str]:
        """See `Control.problems`."""
        if config.objective != "exits":
            yield (
                f"generate.control='early_exit' reads classifiers that objective={config.objective!r} does not train; "
                "use a run of objective='exits'."
            )
        yield from refused("early_exit", config, parts)

    def enters(self, models: Mapping[str, Any], side: Any, p: Any) -> Mapping[str, Any]:
        """See `Control.enters`."""
        head, L = models["model"].heads["exits"], models["model"].spec.L
        threshold = jnp.broadcast_to(p.dials["early_exit.threshold"], (L, len(p.length)))
        values = {"kernel": head.kernel[...], "bias": head.bias[...], "threshold": threshold}
        return {"layers": {"exits": values}, "depth": Exiting(self.stops and self.eos >= 0)}

    def shown(self, models: Mapping[str, Any], side: Any, made: Pass) -> Any:
        """See `Control.shown`: whether a layer's class is to stop."""
        return side | {"stop": jnp.any(made.report["decision"] == depth.STOP, axis=(0, 2))}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        end = jnp.where(jnp.arange(logits.shape[-1]) == self.eos, 0.0, -jnp.inf).astype(logits.dtype)
        return jnp.where(side["stop"][:, None, None], end, logits), None


def refused(name: str, config: Any, parts: Any) -> Iterator[str]:
    """Sentences about models and memories whose layers every token must take."""
    if any(word.strip() != "attention" for word in config.model.mixer.split(",")):
        yield (
            f"generate.control={name!r} leaves layers out, and the state of model.mixer={config.model.mixer!r} would "
            "lack these tokens; use a model of attention."
        )
    if parts.memory.name != "full":
        yield (
            f"generate.control={name!r} leaves keys out of layers, which generate.memory={parts.memory.name!r} would "
            "count as there; use generate.memory='full'."
        )
    if other := [key for key, part in parts.control if type(part).placed is not Control.placed]:
        yield (f"generate.control={name!r} counts layers by places in a text, which {other[0]!r} moves; leave one out.")
    if getattr(config.model, "kind", "lm") != "lm":
        yield f"generate.control={name!r} is for model.kind='lm'; this run has {config.model.kind!r}."


PARTS = {"skip": Skip, "early_exit": EarlyExit}
