"""Parameters of role `running`: numbers that no gradient trains and that their part renews once a step.

They are saved, restored, placed and exported as all parameters are. models/channels.py says how a part renews them. A
model's `segmenter` is such a part, too; it is told the entries of the report that are of no layer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models import reports
from models.lm import LM

READERS = ("advance", "within", "figures")  # Methods of a channel that reads its own report.


def held(roles: Any, params: Any) -> Any:
    """`params`, with the gradient of those of role "running" stopped."""
    return jax.tree.map(lambda role, p: jax.lax.stop_gradient(p) if role == "running" else p, roles, params)


def advance(model: LM, report: Mapping[str, Any]) -> dict[str, dict]:
    """New running parameters of every part that has any, as the model's tree of parameters holds them.

    Args:
      model: inside a trace, with the parameters after the optimizer's update.
      report: of the whole global batch, `[L', ...]` in front (models/reports.py).

    Raises:
      ValueError: the result of a part's `advance` has other names or shapes than its argument.
    """
    return _renewed(model, report, "advance")


def within(model: LM, report: Mapping[str, Any]) -> dict[str, dict]:
    """As `advance`, for the next microbatch of a step: by `within` of the parts that have it, and kept for no longer.

    `report` is of the microbatches before it.
    """
    return _renewed(model, report, "within")


def _renewed(model: LM, report: Mapping[str, Any], method: str) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for path, part, mine in _parts(model, report):
        if not hasattr(part, method):
            continue
        old = nnx.to_pure_dict(nnx.state(part, lambda _, v: isinstance(v, nnx.Param) and _role(v) == "running"))
        new = getattr(part, method)(old, mine)
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (old, new)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{type(part).__name__}.{method} gives {shapes[1]}; it must give {shapes[0]}.")
        new = jax.tree.map(lambda o, n: jnp.asarray(n, o.dtype), old, new)
        for name in reversed(path):
            new = {name: new}
        found = _merged(found, new)
    return found


def _parts(model: LM, report: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, dict[str, Any]]]:
    """(where its parameters are, part, its own part of the report) of what may renew some."""
    for name, mine in by_block(model, report):
        yield ("stack", "period", name, "channel"), getattr(model.stack.period, name).channel, mine
    if hasattr(model, "segmenter"):
        yield ("segmenter",), model.segmenter, {name: report[name] for name in model.reported if name in report}


def figures(model: LM, report: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What channels read off the report of a whole batch, by `figures(report)`: name -> `[L']`, a number a layer."""
    each = {}
    for name, mine in by_block(model, report):
        part = getattr(model.stack.period, name).channel
        each[name] = part.figures(mine) if hasattr(part, "figures") else {}
    return reports.join(each)


def put(params: dict, new: Mapping[str, dict]) -> dict:
    """The parameters of an `LM` as a plain dict, with the result of `advance` put in."""
    return _merged(params, new)


def by_block(model: LM, report: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each block's name and its own part of a report, the repeats in front: `reports.join` backwards."""
    blocks, repeats = model.stack.period.blocks, model.stack.repeats
    own = {entry: x for entry, x in report.items() if entry not in getattr(model, "reported", ())}
    # What not every layer reports is of the channels that read reports; where layers differ, one kind of them does.
    some = [name for name, block in blocks.items() if any(hasattr(block.channel, method) for method in READERS)]
    for name in blocks:
        mine = {}
        for entry, values in own.items():
            count = jax.tree.leaves(values)[0].shape[0]
            of = [*blocks] if count == repeats * len(blocks) else some
            if name in of:
                at, size = of.index(name), len(of)
                cut = lambda x, at=at, size=size: x.reshape(repeats, size, *x.shape[1:])[:, at]  # noqa: E731
                mine[entry] = jax.tree.map(cut, values)
        yield name, mine


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(new, Mapping):
        return new
    return {**old, **{name: _merged(old.get(name, {}), value) for name, value in new.items()}}


def _role(variable: nnx.Variable) -> str:
    return variable.get_metadata("role")
