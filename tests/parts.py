"""Sizes of parts for tests, from their knobs: a part that is added has them by its own lines."""

from configs import knobs

# What a test of a layer wants beside. Newton-Schulz amplifies rounding: see lact_test.
MORE = {
    "lact": {"chunk_size": 5, "window": 7, "rank": 3, "newton_schulz_steps": 0},
    "ttt_linear": {"gate": True},
    "gated_delta": {"conv": 3},
}


def small(name: str) -> dict[str, int]:
    """Sizes of a part of the model in a smoke run: a row of 24 tokens is several chunks, and a rest."""
    own = {
        key.rpartition(".")[2]: knob for key, knob in knobs.KNOBS.items() if key.rpartition(".")[0] == f"model.{name}"
    }
    return {leaf: min(knob.default, knob.small) for leaf, knob in own.items() if knob.small is not None} | MORE.get(
        name, {}
    )


def options(group: str, name: str) -> dict:
    """All options of a part whose knobs stand in `group`.NAME, with its sizes of a smoke run."""
    own = {key.rpartition(".")[2]: knob for key, knob in knobs.KNOBS.items() if key.startswith(f"{group}.{name}.")}
    return {leaf: knob.default if knob.small is None else min(knob.default, knob.small) for leaf, knob in own.items()}


def group(name: str, **more: int) -> dict[str, dict]:
    """The group of a part with its small sizes, and `more`; empty where it has none."""
    sizes = small(name) | more
    return {name: sizes} if sizes else {}


def chosen(socket: str, name: str) -> dict:
    """Changes of `config.model` that name a part, with its small sizes."""
    return {socket: name, **group(name)}
