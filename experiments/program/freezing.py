"""What `optimizer.freeze` holds: no gradient is computed for it, and the optimizer keeps nothing of it."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.settings.errors import ConfigError
from models.parameters import ROLES

BACK = "!"  # In front of a rule: what it names trains after all.


def held(rules: Sequence[str], roles: Mapping[str, Any]) -> dict[str, Any]:
    """For every parameter whether it is held, a pytree of bool of the structure of `roles`.

    Args:
      rules: each a role (models.parameters.ROLES) or a pattern of names as "stack/*/mixer/q/kernel", where `*` stands
        for anything; "!" in front: those train. Of the rules that name a parameter the last one counts.
      roles: role of every parameter, nested dicts.

    Errors: ConfigError where a rule names nothing, or nothing is left to train.
    """
    named: set[str] = set()

    def decide(path: tuple, role: str) -> bool:
        name, found = "/".join(str(key.key) for key in path), False
        for rule in rules:
            bare = rule.removeprefix(BACK)
            if bare == role or fnmatch.fnmatchcase(name, bare):
                named.add(rule)
                found = not rule.startswith(BACK)
        return found

    fixed = jax.tree_util.tree_map_with_path(decide, dict(roles))
    if lost := [rule for rule in rules if rule not in named]:
        example = next("/".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(fixed))
        raise ConfigError([
            f"optimizer.freeze has {lost[0]!r}, which names no parameter of this model; use a role "
            f"({', '.join(ROLES)}) or a pattern of names, such as {example!r}."
        ])  # fmt: skip
    if all(jax.tree.leaves(fixed)):
        raise ConfigError(["optimizer.freeze leaves nothing to train; put '!adapter' or another '!' rule at its end."])
    return fixed


def trained(fixed: Any, tree: Any) -> Any:
    """`tree` (of the structure of `fixed`) without what is held; branches that are left empty are gone."""
    if not isinstance(fixed, Mapping):
        return tree
    kept = {name: trained(each, tree[name]) for name, each in fixed.items() if each is not True}
    return {name: value for name, value in kept.items() if not (isinstance(value, Mapping) and not value)}


def whole(fixed: Any, some: Any, rest: Any) -> Any:
    """The tree whose `trained` part is `some` and whose other leaves are those of `rest`."""
    if fixed is True:
        return rest
    if not isinstance(fixed, Mapping):
        return some
    return {name: whole(each, some.get(name, {}) if isinstance(some, Mapping) else some, rest[name])
            for name, each in fixed.items()}  # fmt: skip
