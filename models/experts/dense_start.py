"""A trained dense model as a mixture of experts that begins with the same function: copies or slices of its layers.

F of the dense channel is cut into k_s slices of the experts' width, and there are N = E / k_s copies. The router's
columns of a copy are equal, so that a token has all slices of its best copies; gates that sum to `scale` = k_s then
weigh each copy's slices by as much as they were cut. Source: He et al. 2024, arXiv:2410.07524, and Dynamic-DINO (Lu et
al. 2025, arXiv:2507.17436); copies alone are Komatsuzaki et al. 2022, arXiv:2212.05055.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.experts import upcycling
from models.experts.options import Options
from models.growth import differences
from models.lm import LM
from models.spec import Spec

DENSE = {"mlp": False, "swiglu": True}  # channels that can be cut, and whether they are gated


def upcycled(params: Any, old: Spec, new: Spec, key: jax.Array) -> Any:
    """The parameters of `new`, a mixture of experts, that compute what `params` compute under `old`.

    Args:
      params: parameters of `LM(old)` as a plain dict, the channel's kernels `[L, D, F]` and `[L, F, D]`.
      old: sizes of the dense model.
      new: the same but for `model.channel` "moe" and its options.
      key: draws the router.

    Raises:
      ValueError: with every reason of `problems`.
    """
    if found := list(problems(old, new)):
        raise ValueError("\n".join(found))
    born = nnx.to_pure_dict(nnx.state(LM(new, rngs=nnx.Rngs(params=key)), nnx.Param))
    kept = {name: params[name] for name in params.keys() & {"heads"}}
    blocks = params["stack"]["period"]
    made = {name: blocks[name] | {"channel": _channel(blocks[name]["channel"], each["channel"], new)}
            for name, each in born["stack"]["period"].items()}  # fmt: skip
    return params | {"stack": params["stack"] | {"period": made}} | kept


def _channel(dense: Any, born: Any, new: Spec) -> Any:
    """A layer of experts from a dense one; what is not a copy is as it is born."""
    options = Options.of(new.options["moe"])
    F = dense["down"]["kernel"].shape[-2]
    pieces = F // options.hidden_width(new.D)
    copies = options.kinds.ffn // pieces
    cut = {
        "up": lambda w: upcycling.slices_up(w, pieces, copies),
        "gate": lambda w: upcycling.slices_up(w, pieces, copies),
        "down": lambda w: upcycling.slices_down(w, pieces, copies),
    }
    experts = {name: jax.vmap(cut[name])(dense[name]["kernel"]) for name in dense}
    router = jax.vmap(lambda w: upcycling.router_rows(w[:, ::pieces], pieces))(born["router"])
    return born | {"experts": experts, "router": jnp.asarray(router, born["router"].dtype)}


def problems(old: Spec, new: Spec) -> Iterator[str]:
    """A sentence for everything that keeps a mixture `new` from beginning as the dense model `old`."""
    if old.channel not in DENSE or new.channel != "moe":
        yield (
            f"model.channel={new.channel!r} from {old.channel!r}: upcycling makes 'moe' of one of {', '.join(DENSE)}; "
            "use init.warm_start for the same model."
        )
        return
    for key, was, wanted in differences(old, new, free=frozenset({"channel", "by_position"})):
        if not key.startswith(tuple(f"model.{name}." for name in (*DENSE, "moe"))):
            yield f"{key}={wanted!r} was {was!r}; upcycling changes the channel alone, use {key}={was!r}."
    options, dense = Options.of(new.options["moe"]), old.options[old.channel]
    F = dense["hidden"] or (4 * old.D if old.channel == "mlp" else -(-8 * old.D // 3 // 64) * 64)
    width, E, k = options.hidden_width(new.D), options.kinds.ffn, options.k
    if dense["bias"]:
        yield f"model.{old.channel}.bias=True: experts have none; upcycle a model with model.{old.channel}.bias=False."
    for name, was in (("gated", DENSE[old.channel]), ("activation", dense["activation"])):
        if getattr(options, name) != was:
            mine = getattr(options, name)
            yield f"model.moe.{name}={mine!r} and the model has {was!r}; use model.moe.{name}={was!r}."
    beside = [
        name
        for name in ("bias", "limit", "shared", "small", "constant", "copy", "zero", "null")
        if getattr(options, name)
    ]
    for name in (*beside, *(["residual"] if options.residual else [])):
        value = getattr(options, name)
        yield f"model.moe.{name}={value!r} is not in the dense model; use model.moe.{name}={type(value)()!r}."
    if F % width:
        yield f"model.moe.hidden={width} does not divide the {F} of the dense model; use e.g. model.moe.hidden={F}."
        return
    pieces = F // width
    for name, value in (("experts", E), ("k", k)):
        if value % pieces:
            near = -(-value // pieces) * pieces
            yield f"model.moe.{name}={value} are no whole copies of {pieces} slices; use model.moe.{name}={near}."
    sums = options.router == "softmax_after" or (
        options.router in ("softmax_before", "sigmoid_bias") and options.renormalise
    )
    if not sums:
        yield (
            f"model.moe.router={options.router!r} has gates that do not sum to model.moe.scale; use "
            "model.moe.router='softmax_after'."
        )
    elif options.scale != upcycling.gate_scale(pieces, renormalised=True):
        yield f"model.moe.scale={options.scale} with {pieces} slices of a layer; use model.moe.scale={pieces}.0."
    if options.capacity:
        yield f"model.moe.capacity={options.capacity} drops what the dense model computes; use model.moe.capacity=0."
