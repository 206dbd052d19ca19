"""Who the tokens of a prompt come from, for models with `model.roles` (`data.roles`)."""

import re
from typing import Any

import numpy as np

from data import roles
from experiments.generation import requests

MARKS = re.compile(r"<\|(system|user|data)\|>")


def read(tokenizer: Any, prompt: str | np.ndarray | requests.Spoken, count: int, *, marked: bool) -> tuple:
    """(ids `[n]`, the start of a document included; the role of each, `[n]`, of `count`).

    A prompt is what a user says, but for one that comes with kinds of its own. `marked`: in a text <|system|>,
    <|user|> and <|data|> begin segments and are no tokens; in a chat they are messages.
    """
    if isinstance(prompt, requests.Spoken):
        ids, kinds = prompt
    elif isinstance(prompt, str) and marked:
        ids, kinds = _marked(tokenizer, prompt)
    else:
        ids = requests.encode(tokenizer, prompt) if isinstance(prompt, str) else prompt
        kinds = np.full(len(ids), roles.USER)
    return np.asarray(ids, np.int32), roles.role(kinds, count)


def _marked(tokenizer: Any, prompt: str) -> requests.Spoken:
    text, *rest = MARKS.split(prompt)
    pieces = [("user", text), *zip(rest[::2], rest[1::2], strict=True)]
    pieces = [(name, said) for name, said in pieces if said]
    if hasattr(tokenizer, "spoken"):
        told = tokenizer.spoken([{"role": name, "content": said} for name, said in pieces])
        ids, kinds = told.ids, told.kinds
    else:
        each = [np.asarray(tokenizer.encode(said), np.int32) for _, said in pieces]
        ids = np.concatenate([np.empty(0, np.int32), *each])
        kinds = np.repeat([roles.of_message(name) for name, _ in pieces], [len(one) for one in each])
    if getattr(tokenizer, "add_bos", True) or not len(ids):
        first = kinds[:1] if len(kinds) else np.array([roles.USER])
        ids, kinds = np.concatenate([[tokenizer.bos], ids]), np.concatenate([first, kinds])
    return requests.Spoken(ids, kinds)
