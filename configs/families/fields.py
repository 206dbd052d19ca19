"""Fields of a foreign config, each taken once; and what families share: rotary positions, layers that differ."""

import contextlib
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

REQUIRED = object()
ACTIVATIONS = {  # theirs -> ours
    "silu": "silu", "swish": "silu", "gelu": "gelu_exact", "gelu_new": "gelu", "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu", "relu": "relu", "relu2": "relu2",
}  # fmt: skip


class Unreadable(ValueError):
    """A pretrained model that cannot be read as one of this house; the message is one sentence."""


# What a file that holds anything at all raises in what reads it.
DAMAGE = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError, struct.error
)  # fmt: skip
# What trains a mixture of experts and changes no logit; a run may set it otherwise.
TRAINING = ("moe.balance", "moe.normalise_k", "moe.z_loss")
LAYERS, SIZE = 1 << 14, 1 << 31  # What no model reaches: more layers, or a larger number of anything, is damage.


@contextlib.contextmanager
def whole(where: str | os.PathLike) -> Iterator[None]:
    """Whatever damage in the file `where` raises inside is Unreadable with one sentence."""
    try:
        yield
    except Unreadable:
        raise
    except DAMAGE as error:
        said = " ".join(f"{type(error).__name__} {error}".split())[:120]
        raise Unreadable(f"{os.fspath(where)!r} is damaged ({said}); bring it back from a copy.") from error


class Fields:
    """The fields of a config by name; what was not taken at the end is refused."""

    def __init__(self, told: Mapping[str, Any], where: str):
        self.left, self.where = dict(told), where

    def __call__(self, name: str, default: Any = REQUIRED) -> Any:
        """The value of `name`, taken; `default` where it is not there. null stays None."""
        if name not in self.left and default is REQUIRED:
            raise Unreadable(f"{self.where} lacks {name!r}, without which the model is not known.")
        return self.left.pop(name, default)

    def number(self, name: str, default: Any = REQUIRED) -> Any:
        """As a call, of a number; null is the default."""
        value = self(name, default)
        value = default if value is None and default is not REQUIRED else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unreadable(f"{self.where} has {name}={value!r}, which is no number.")
        if not math.isfinite(value) or abs(value) >= SIZE:
            raise Unreadable(f"{self.where} has {name}={value!r}, which no model has.")
        return value

    def count(self, name: str, default: Any = REQUIRED, most: int = SIZE) -> int:
        """As `number`, of a whole number from 1 to `most`."""
        value = self.number(name, default)
        if not 1 <= value <= most or value != int(value):
            raise Unreadable(f"{self.where} has {name}={value!r}, which is no number from 1 to {most}.")
        return int(value)

    def only(self, name: str, *allowed: Any) -> None:
        """Takes a field whose other values this house does not compute."""
        value = self(name, allowed[0])
        if value not in allowed:
            known = " or ".join(repr(value) for value in allowed)
            raise Unreadable(f"{self.where} has {name}={value!r}, which is not computed here; {known} is.")

    def choice(self, name: str, default: str, table: Mapping[str, str]) -> str:
        """A name in a table of theirs to ours."""
        value = self(name, default)
        if not isinstance(value, str) or value not in table:
            raise Unreadable(f"{self.where} has {name}={value!r}, which is unknown; known are {', '.join(table)}.")
        return table[value]

    def done(self, ignored: Sequence[str]) -> None:
        """Refuses what was not taken, but for `ignored`, which changes no logit."""
        rest = sorted(name for name in self.left if name not in ignored and not name.startswith("_"))
        if rest:
            name = rest[0] if rest[0].isprintable() else repr(rest[0])
            raise Unreadable(
                f"{self.where} has {name}={self.left[rest[0]]!r}, a field that is not known here and may change "
                "what the model computes; remove it if it does not."
            )


def rope(told: Mapping[str, Any], *, longest: int, theta: float, where: str, original: int | None = None) -> dict:
    """Options of `attention` from `rope_parameters` (or `rope_scaling` with what stands beside it).

    Args:
      told: rope_type, rope_theta, partial_rotary_factor, factor, ...
      longest: max_position_embeddings.
      theta: where `told` has none.
      where: the file, for messages.
      original: tokens that it was trained on where they stand outside of `told`, and come first there (Phi-3).
    """
    f = Fields(told, f"{where}: rope_parameters")
    kind = f("rope_type", None) or f("type", None) or "default"
    f("type", None)
    kind = {"default": "none", "su": "longrope"}.get(kind, kind)
    found = {
        "rope_theta": float(f.number("rope_theta", theta)),
        "rope_fraction": float(f.number("partial_rotary_factor", 1.0)),
    }
    scaling: dict[str, Any] = {"kind": kind}
    trained = f("original_max_position_embeddings", None)
    trained = original or trained or longest
    if kind in ("llama3", "yarn", "dynamic", "longrope"):
        scaling["original"] = int(longest if kind == "dynamic" else trained)
    if kind in ("linear", "dynamic", "llama3"):
        scaling["factor"] = float(f.number("factor"))
    if kind in ("yarn", "longrope"):
        scaling["factor"] = float(f.number("factor", longest / trained))
        scaling["attention_factor"] = float(f.number("attention_factor", 0.0))
    if kind == "llama3":
        scaling |= {"low": float(f.number("low_freq_factor")), "high": float(f.number("high_freq_factor"))}
    elif kind == "yarn":
        scaling |= {name: float(f(name, None) or other) for name, other in (("beta_fast", 32.0), ("beta_slow", 1.0))}
        scaling |= {name: float(f(name, None) or 0.0) for name in ("mscale", "mscale_all_dim")}
        scaling["truncate"] = bool(f("truncate", True))
    elif kind == "longrope":
        for name in ("short", "long"):
            scaling[f"{name}_factors"] = tuple(repr(float(number)) for number in f(f"{name}_factor"))
    elif kind not in ("none", "linear", "dynamic"):
        raise Unreadable(f"{where} has rope_type={kind!r}, which is unknown; known are default, linear, dynamic, yarn, "
                         "llama3, longrope.")  # fmt: skip
    f.done(())
    if scaling != {"kind": "none"}:
        found["rope_scaling"] = scaling
    return found


def by_layer(layers: Sequence[Mapping[str, Any]], channels: Sequence[str] = ()) -> dict[str, Any]:
    """`mixer` and `by_position` of layers of attention whose options differ, by the shortest period that repeats.

    channels: the name of each layer's channel, if they are not all of one; the result has `channel`, too.
    """
    differ = len(set(channels)) > 1
    if not any(layers) and not differ:
        return {"mixer": "attention"}
    L = len(layers)
    each = [*zip(layers, channels if differ else [""] * L, strict=True)]
    period = next(p for p in range(1, L + 1) if L % p == 0 and all(each[i] == each[i % p] for i in range(L)))
    found: dict[str, Any] = {"mixer": ",".join(["attention"] * period)}
    if any(layers):
        found["by_position"] = tuple({"attention": dict(options)} if options else {} for options in layers[:period])
    return found | ({"channel": ",".join(channels[:period])} if differ else {})


def flat(groups: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Groups as one dict by dotted key; `by_position` stays whole."""
    found: dict[str, Any] = {}
    for key, value in groups.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
