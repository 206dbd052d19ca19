"""A request of the engine: what was asked, how far it is, what came of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.generation import requests
from experiments.settings import keys as settings_keys
from experiments.settings.errors import ConfigError
from models.decoding.stream import Progress


@dataclasses.dataclass(frozen=True)
class Result:
    """A request that has ended.

    Attributes:
      id: as `admit` returned it.
      text: what was written, without a stop string and the end token.
      tokens: ids that were drawn, the end token included.
      reason: "end" (the end token), "limit", "stop" (a stop string), "freed", or what failed, in a sentence.
      calls: passes of the model that drew for it.
    """

    id: int
    text: str
    tokens: tuple[int, ...]
    reason: str
    calls: int

    @property
    def failed(self) -> bool:
        """Whether the request ended for another reason than its text."""
        return self.reason not in ("end", "limit", "stop", "freed")


@dataclasses.dataclass(eq=False)
class Request:
    """A request under way: what was asked, and how far it is."""

    id: int
    ids: np.ndarray  # of the prompt, the start of a document before them
    options: dict[str, Any]  # `config.generate`
    key: np.ndarray  # [2]
    reader: requests.RowText
    one: Progress | None = None  # while it is in no lane: its own row
    read: int = 0  # tokens of the prompt in `one`
    found: int = 0  # of them, those that a cache of beginnings held
    row: int = -1  # its lane
    length: int = 0  # tokens of its text
    given: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # see `between.given`
    prefix: tuple[int, ...] = ()  # the beginning of its prompt that others share
    calls: int = 0
    over: bool = False
    text: list[str] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)

    @property
    def limit(self) -> int:
        """Tokens that its text may come to have."""
        return len(self.ids) + self.options["max_tokens"]

    @property
    def ready(self) -> bool:
        """Whether its prompt is read: it may take a lane."""
        return self.one is not None and self.read >= len(self.ids) - 1


def changed(options: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`config.generate` with other settings; a group takes a dict."""
    made = {key: dict(value) if isinstance(value, Mapping) else value for key, value in options.items()}
    for key, value in settings.items():
        if key not in made:
            raise ConfigError(
                [f"generate.{key} is not a key of the config; {settings_keys.suggest(key, made)}".strip()]
            )
        made[key] = made[key] | value if isinstance(value, Mapping) else value
    return made
