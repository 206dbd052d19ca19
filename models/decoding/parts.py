"""The parts of a round that a config names, and the settings of requests as arrays."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.decoding import sampling
from models.decoding.control import CONTROLS, Control
from models.decoding.drafts import DRAFTERS
from models.decoding.stream import Parts
from models.decoding.verify import VERIFIERS
from models.mixers.memory import Policy, group
from models.mixers.prefill import Prefill

SAMPLING = ("temperature", *sampling.RULES)


def make(
    requests: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, Any],
    *,
    vocab_size: int = 0,
    banned: tuple[int, ...] = (),
    eos: int = -1,
    every: bool = False,
    roles: int = 0,
    shared: Mapping[str, Any] | None = None,
) -> Parts:
    """Parts for requests that are served together: `config.generate` of each, as plain dicts.

    Sockets and groups of options are the same for all of them; dials and `Control.own` are each request's. An entry
    that is idle, or whose dials and own fields are off for all, is left out; where every temperature is 0 no random
    number is drawn.

    Args:
      requests: at least one.
      defaults: `generate` at its defaults: the values at which dials are off.
      vocab_size, banned: see `control.warp.Allowed`.
      eos: see `stream.Parts`.
      every: leaves no entry out.
      roles: `model.roles`.
      shared: the settings that the parts are made of; None: those of the first request.
    """
    first = requests[0] if shared is None else shared
    options = lambda name: dict(value) if isinstance(value := first.get(name), Mapping) else {}  # noqa: E731
    greedy = all(request["temperature"] == 0 for request in requests)
    chosen: list[tuple[str, Control]] = [("allowed", CONTROLS["allowed"](vocab_size, banned))]  # ty: ignore
    if roles:
        chosen.append(("roles", CONTROLS["roles"](count=roles)))  # ty: ignore
    for name in order(first["control"]):
        part = control(name, options(name), eos)
        turned = (*part.dials, *(f"{name}.{field}" for field in part.own if name in defaults))
        still = all(_at(request, key) == _at(defaults, key) for request in requests for key in turned)
        off = part.idle or (bool(turned) and still)
        idle = greedy or (off and name != "temperature") if name in SAMPLING else off
        if every or not idle:
            chosen.append((name, part))
    verifier = "greedy" if greedy else first["verifier"]  # At temperature 0 every rule keeps the likeliest token.
    return Parts(
        memory=Policy.of(first),
        drafter=(first["drafter"], DRAFTERS[first["drafter"]](**options(first["drafter"]))),
        verifier=VERIFIERS[verifier](**options(verifier)),
        control=tuple(chosen),
        eos=eos,
        prefill=Prefill.of(first),
    )


def control(name: str, group: Mapping[str, Any], eos: int) -> Control:
    """An entry made of its group; what requests set for themselves is not in it, so that it is one part for all."""
    made = CONTROLS[name]
    mine = {f"{name}.{key}": key for key in group}
    free = {mine.get(dial) for dial in getattr(made, "dials", ())} | set(getattr(made, "own", ()))
    fixed = {key: value for key, value in group.items() if key not in free or not _has_default(made, key)}
    return made(**fixed, **({"eos": eos} if "eos" in getattr(made, "__dataclass_fields__", {}) else {}))


def _has_default(made: Any, key: str) -> bool:
    return made.__dataclass_fields__[key].default is not dataclasses.MISSING


def order(control: str) -> tuple[str, ...]:
    """Names of `generate.control`, and behind them those entries of plain sampling that it does not name."""
    named = tuple(name.strip() for name in control.split(",") if name.strip())
    return (*named, *(name for name in SAMPLING if name not in named))


def dials(requests: Sequence[Mapping[str, Any]], parts: Parts) -> dict[str, np.ndarray]:
    """`[B]` float32 of every dial that the parts read, from `config.generate` of each request."""
    names = dict.fromkeys(dial for _, part in parts.control for dial in part.dials)
    return {name: np.asarray([_at(request, name) for request in requests], np.float32) for name in names}


def kept_apart(asked: Mapping[str, Any], shared: Mapping[str, Any], parts: Parts) -> str | None:
    """The first setting in which a request differs from those it is served with, and may not: "memory", "h2o.budget".

    Dials and `Control.own` are each request's.
    """
    for socket in ("memory", "prefill", "drafter", "verifier", "control"):
        if asked[socket] != shared[socket]:
            return socket
    free = {dial for _, part in parts.control for dial in part.dials}
    free |= {f"{name}.{field}" for name, part in parts.control for field in part.own}
    for name in (
        group(parts.memory.name),
        shared["prefill"],
        parts.drafter[0],
        asked["verifier"],
        *(name for name, _ in parts.control),
    ):
        theirs, ours = asked.get(name), shared.get(name)
        if isinstance(ours, Mapping) and theirs != ours:
            differ = [f"{name}.{key}" for key in ours if theirs[key] != ours[key]]
            if wrong := [key for key in differ if key not in free]:
                return wrong[0]
    return None


def runs(parts: Parts) -> dict[str, str]:
    """The workdirs of the runs whose models the parts read, by the names under which they look for them."""
    return {
        f"{name}.{field}": getattr(part, field)
        for name, part in (parts.drafter, *parts.control)
        for field in part.runs
    }  # fmt: skip


def _at(request: Mapping[str, Any], dial: str) -> float:
    for name in dial.split("."):
        request = request[name]
    return request
