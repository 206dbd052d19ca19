"""Prompts as ids, as `--mode=generate` reads them: texts, ids and chats."""

import dataclasses
from typing import Any

import numpy as np

from data import conversations
from experiments.generation import requests
from experiments.serving.wrong import Wrong

SPECIALS = ("bos", "eos", "pad")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Attributes:
      ids: `[n]` int32, the start of a document included.
      hidden: leading ids that the server put in front, which nobody is shown.
      name: the text whose number the request has: see `generation.requests.number`.
      kinds: `[n]` of `data.roles`, of a chat; None: what a user says.
    """

    ids: np.ndarray
    hidden: int
    name: str
    kinds: np.ndarray | None = None

    @property
    def told(self) -> np.ndarray | requests.Spoken:
        """What an engine is given."""
        return self.ids if self.kinds is None else requests.Spoken(self.ids, self.kinds)


def prompt(tokenizer: Any, template: str, given: dict[str, Any]) -> Prompt:
    """What a prompt of `asked.Asked` means.

    Args:
      tokenizer: of the model.
      template: of chats, as in `data.conversations.rendered`.
      given: {"text"}, {"ids"} or {"messages"}.

    A chat of one message has the number of that message, as `--mode=generate --config.generate.chat=True` gives it.
    Errors: Wrong.
    """
    if "text" in given:
        try:
            ids = requests.encode(tokenizer, given["text"])
        except ValueError as error:  # Of a tokenizer of symbols.
            raise Wrong(f"prompt: {error}", param="prompt") from None
        bare = len(ids) - len(tokenizer.encode(given["text"]))
        return Prompt(ids, bare, given["text"])
    if "ids" in given:
        ids = np.asarray(given["ids"], np.int32)
        if int(ids.max()) >= tokenizer.vocab_size:
            raise Wrong(f"prompt has the id {ids.max()}; ids are 0 to {tokenizer.vocab_size - 1}.", param="prompt")
        whole = with_start(tokenizer, ids)
        return Prompt(whole, len(whole) - len(ids), tokenizer.decode(ids))
    told = given["messages"]
    try:
        text, made = conversations.asked(told, template, tokenizer)
    except ValueError as error:
        raise Wrong(f"messages: {error}", param="messages") from None
    ids, kinds = np.asarray(made.ids, np.int32), made.kinds
    whole = with_start(tokenizer, ids)
    kinds = np.concatenate([kinds[:1]] * (len(whole) - len(ids)) + [kinds])
    name = told[0]["content"] if [message["role"] for message in told] == ["user"] else text
    return Prompt(whole, len(whole) - len(ids), name, kinds)


def with_start(tokenizer: Any, ids: np.ndarray) -> np.ndarray:
    """Ids behind the start of a document, where the model was trained with one and they do not begin with it."""
    if len(ids) and (ids[0] == tokenizer.bos or not getattr(tokenizer, "add_bos", True)):
        return ids
    return np.concatenate([[tokenizer.bos], ids]).astype(np.int32)


def specials(tokenizer: Any) -> dict[str, int]:
    """Names of the ids that stand for no text: the tokenizer's own, or <|bos|> and the like."""
    own = getattr(tokenizer, "names", {})
    return {own.get(f"{name}_token") or f"<|{name}|>": int(getattr(tokenizer, name)) for name in SPECIALS}


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text without a start in front; the name of a special by itself is that special."""
    found = specials(tokenizer)
    return [found[text]] if text in found else [int(id) for id in tokenizer.encode(text)]


def piece(tokenizer: Any, id: int) -> bytes:
    """The bytes of an id alone; of an id that stands for no text its name."""
    if hasattr(tokenizer, "decode_bytes"):
        made = tokenizer.decode_bytes([id])
    else:
        made = tokenizer.decode([id]).encode()
    if made:
        return made
    return next((name for name, one in specials(tokenizer).items() if one == id), f"<|{id}|>").encode()
