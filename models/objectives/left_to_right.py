"""What objectives say of themselves that train a model of the next token, and something beside it."""

from typing import Any, ClassVar

import jax

from kernels import masks
from models.objectives import next_token


class LeftToRight:
    """Base of such objectives: what is evaluated, and what writes text, is the model of the next token."""

    mask: ClassVar[masks.Mask] = next_token.mask
    bound: ClassVar[str] = next_token.bound
    causal: ClassVar[bool] = next_token.causal
    generator: ClassVar[str] = next_token.generator
    extra_tokens: ClassVar[int] = 0
    copies: ClassVar[int] = 1
    adds_z_loss: ClassVar[bool] = True

    def corrupt(self, batch: dict, key: jax.Array) -> dict:
        """The batch as it is."""
        return batch

    def row_nll(self, model: Any, batch: dict, key: jax.Array) -> jax.Array:
        """Nats of each row's valid next tokens under the whole model, `[B]`."""
        return next_token.row_nll(model, batch, key)
