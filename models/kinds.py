"""Socket Model: what kind of model maps tokens to features? All have the face of `models.lm.LM`."""

from collections.abc import Mapping

from flax import nnx

from models.hamburger import Hamburger
from models.lm import LM, Head
from models.rewired import Rewired
from models.segmented import Segmented
from models.spec import Spec

MODELS: dict[str, type[LM]] = {"lm": LM, "segmented": Segmented, "hamburger": Hamburger, "swiftkv": Rewired}


def make(spec: Spec, *, rngs: nnx.Rngs, heads: Mapping[str, Head] | None = None) -> LM:
    """The model that `config.model.kind` names."""
    return MODELS[spec.kind](spec, rngs=rngs, heads=heads)
