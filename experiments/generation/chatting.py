"""A tokenizer whose prompts are what a user says: the chat template stands around them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data import conversations
from experiments.settings.errors import ConfigError


def spoken_to(tokenizer: Any, chat: bool, template: str) -> Any:
    """The tokenizer, or with `generate.chat` the one whose prompts are what a user says.

    Errors: ConfigError where chat is asked for and there is no template.
    """
    if not chat:
        return tokenizer
    try:
        return Chat(tokenizer, template)
    except ValueError as error:
        raise ConfigError([f"generate.chat=True: {error}"]) from None


class Chat:
    """`tokenizer`, but for `encode`: the ids of a user's message and of the beginning of the answer to it.

    template: as in `data.conversations.rendered`.
    """

    def __init__(self, tokenizer: Any, template: str):
        self._tokenizer, self._template = tokenizer, conversations.template_of(template)
        self.encode("")  # Errors: ValueError where there is no template.

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    @property
    def add_bos(self) -> bool:
        """Whether bos stands in front of what `encode` gives; a template may have written it."""
        first = self.encode("")[:1].tolist()
        return getattr(self._tokenizer, "add_bos", True) and first != [self._tokenizer.bos]

    def encode(self, text: str | bytes) -> np.ndarray:
        """`[n]` int32."""
        said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self.spoken([{"role": "user", "content": said}]).ids

    def spoken(self, messages: Sequence[Mapping[str, str]]) -> conversations.Told:
        """Messages and the beginning of the answer to them, without bos in front."""
        return conversations.asked(messages, self._template, self._tokenizer)[1]
