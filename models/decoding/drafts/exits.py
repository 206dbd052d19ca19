"""Drafter `exit`: the model's own first layers, its final norm and its head write the drafts.

Source: Zhang et al. 2023, "Draft & Verify", arXiv:2309.08168; Elhoushi et al. 2024, "LayerSkip", arXiv:2404.16710.
The layers have read the text when the whole model has, so that drafts cost no state of their own. A model whose
sub-models were trained together (S2D's sorted fine-tuning, objective `sorted`) is meant to draft better.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from kernels import masks
from models.block import Unstacked
from models.decoding.commit import rewinds
from models.decoding.drafts import Drafter, Tree
from models.decoding.drafts.model import written
from models.decoding.drafts.none import last_token


def shallow(model: Any, state: Any, layers: int) -> tuple[Any, Any]:
    """An `LM` for decoding and its state, cut to the first `layers` layers; the parameters are the model's own.

    Of mixers that take turns whole turns are kept: at least so many layers.
    """
    turns = -(-layers // len(model.stack.periods[0].names))
    first = copy.copy(model)
    vars(first)["stack"] = Unstacked(model.stack.periods[:turns])  # Of the copy: inside a loop a module takes no part.
    return first, {"slots": state["slots"], "layers": state["layers"][:turns]}


@dataclasses.dataclass(frozen=True)
class Exit(Drafter):
    """See the module's docstring. `length` drafts a round of the first `layers` layers, fewer where they are unsure:
    no draft whose likeliest token has less than `threshold`, and none behind it (S2D, arXiv:2407.01955; `adaptive`)."""

    draws = True

    layers: int
    length: int
    threshold: float

    @property
    def nodes(self) -> int:
        """The last token and the drafts."""
        return self.length + 1

    def problems(self, config: Any) -> Iterator[str]:
        """See `Drafter.problems`."""
        if self.layers >= (layers := config.model.num_layers):
            yield (
                f"generate.exit.layers={self.layers} leaves nothing for the rest of {layers} layers to verify; use at "
                f"most generate.exit.layers={layers - 1}."
            )

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`. The side is what the layers wrote."""
        model, state = shallow(models["model"], p.state, self.layers)
        here = jnp.where(p.live, p.length - 1, -1)[:, None]
        token = last_token(p.text, p.length)
        feature, state, _ = model(token, mask=masks.Causal(), positions=here, state=state)
        tree, state = written(models, p, parts, model, (state, feature), self.length, self.threshold)
        return tree, state["layers"]

    def left(self, state: Any, side: Any) -> tuple[Any, Any]:
        """See `Drafter.left`. The whole model reads the drafts again, into the slots where these layers wrote them."""
        if not rewinds(state):
            return state, {}
        return state | {"layers": (*side, *state["layers"][len(side) :])}, {}


PARTS = {"exit": Exit}
