"""A trained Transformer as one whose later layers read an early layer: what distillation starts from.

Queries, outputs and channels are those of the trained model. k and v of a group are the mean of its layers' (of one
layer: its own), and the norm before them is the input norm of the first later layer. At l = L it is the model itself.
Source: Qiao et al. 2024, arXiv:2410.03960, as released.
"""

from collections.abc import Iterator
from typing import Any

import jax

from models import swiftkv
from models.growth import differences
from models.rewired import sizes
from models.spec import Spec

OWN = ("k", "v", "k_norm")  # Parts of attention that make keys and values.


def rewired(params: Any, old: Spec, new: Spec) -> Any:
    """The parameters of `new`, of kind "swiftkv", from those of the trained model `old`.

    Args:
      params: parameters of `LM(old)` as a plain dict, the layers in front of each of the stack.
      old: sizes of the trained model; new: the same but for `model.kind` and `model.swiftkv`.

    Raises:
      ValueError: with every reason of `problems`.
    """
    if found := list(problems(old, new)):
        raise ValueError("\n".join(found))
    first, share = sizes(new.options["swiftkv"], new.L)
    ((name, block),) = params["stack"]["period"].items()
    stack = {"period": {name: jax.tree.map(lambda x: x[:first], block)}}
    if first < new.L:
        mixer = block["mixer"]
        keys = {part: mixer[part] for part in OWN if part in mixer}
        late = {"keys": jax.tree.map(lambda x: swiftkv.merged_weights(x, first, share)[first::share], keys)}
        rest = block | {"mixer": {part: value for part, value in mixer.items() if part not in OWN}}
        for i in range(share):
            late[f"{i}_attention"] = jax.tree.map(lambda x, i=i: x[first + i :: share], rest)
        stack["late"] = late
        if "mixer_norm" in block:
            stack["norm"] = jax.tree.map(lambda x: x[first], block["mixer_norm"])
    return {name: part for name, part in params.items() if name != "stack"} | {"stack": stack}


def problems(old: Spec, new: Spec) -> Iterator[str]:
    """A sentence for everything that keeps a rewired model `new` from starting as the trained model `old`."""
    if old.kind != "lm" or new.kind != "swiftkv":
        yield (
            f"model.kind={new.kind!r} from {old.kind!r}: init.rewire_from makes 'swiftkv' of 'lm'; use init.warm_start "
            "for the same model."
        )
        return
    for key, was, wanted in differences(old, new, free=frozenset({"kind"})):
        if not key.startswith("model.swiftkv."):
            yield f"{key}={wanted!r} was {was!r}; rewiring changes model.kind alone, use {key}={was!r}."
    share = new.options["swiftkv"]["share"]
    if share > 1 and new.projection != "dense":
        yield (
            f"model.swiftkv.share={share} takes the mean of the layers' kernels, which model.projection="
            f"{new.projection!r} has not; use model.swiftkv.share=1."
        )
