"""Control `where`: answers that fulfil a predicate, by LMQL's FINAL semantics; the host looks between two rounds."""

import codecs
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.control import Control, Host, predicates
from models.decoding.control.constraint import vocabulary
from models.decoding.drafts import Tree


@dataclasses.dataclass(frozen=True)
class Where(Control):
    """See the module's docstring; `predicates.parse` says what a predicate may be.

    A token is forbidden if the predicate is then false for good, the end is allowed if it is true. Unlike a
    `constraint` this does not look for a way to the end: a text that comes to its limit, or to where no token is left,
    ends with a message. `stop`: the text ends as soon as the predicate stays true.
    """

    own = ("predicate", "stop")
    alone = True

    predicate: str = ""
    stop: bool = False

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        return {"allowed": jnp.ones((batch, models["model"].head_weights().shape[0]), bool)}

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Control.given`."""
        if source := options["where"]["predicate"]:
            value, final = parsed(source)("", False)
            if not value and final == predicates.FIN:
                raise ValueError(f"generate.where.predicate={source!r} holds for no text; use e.g. 'len(text) < 80'.")
        return {}

    def hosts(self, options: Mapping[str, Any]) -> bool:
        """See `Control.hosts`."""
        return bool(options["where"]["predicate"])

    def between(self, row: Host, side: Any) -> Any:
        """See `Control.between`."""
        expression = parsed(row.options["where"]["predicate"])
        words = tuple(vocabulary(row.tokenizer))
        written = b"".join(words[token] or b"" for token in row.tokens[row.prompt :])
        left = row.options["max_tokens"] - (len(row.tokens) - row.prompt)
        mask = np.zeros(side["allowed"].shape, bool)
        ends = left == 1 or (row.options["where"]["stop"] and predicates.may_stop(expression, said(written)))
        if not ends:
            source = row.options["where"]["predicate"]
            for token, word in enumerate(words):
                if word is not None:
                    mask[token] = any(
                        value or final != predicates.FIN
                        for value, final in (expression(text, False) for text in ways(written + word, source))
                    )
        mask[row.tokenizer.eos] = expression(said(written), True)[0]
        if not mask.any():
            raise ValueError("no token is left that may still fulfil the predicate" + " at the limit" * (left == 1))
        return {"allowed": mask}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        return jnp.where(side["allowed"][:, None], logits, -jnp.inf), None


@functools.lru_cache(maxsize=64)
def parsed(source: str) -> predicates.Expression:
    """`predicates.parse`, those of the last requests kept."""
    return predicates.parse(source)


def said(text: bytes) -> str:
    """A text as readers see it: what is no character is U+FFFD, one that is not whole is still to come."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(text)


def ways(text: bytes, source: str) -> Iterator[str]:
    """What a text may be to its readers once its last character is whole: the text itself if it is.

    Else it ends in each character of `source`, the predicate, that begins so, and in others that do, as far as their
    last two bytes differ in the first of them.
    """
    seen = said(text)
    opened = next(
        (text[-n:] for n in (3, 2, 1) if len(text) >= n and _opens(text[-n:]) and said(text[:-n]) == seen), b""
    )
    if not opened:
        yield seen
        return
    yield from (seen + c for c in dict.fromkeys(source) if c.encode("utf-8", "replace").startswith(opened))
    missing = 2 + (opened[0] >= 0xE0) + (opened[0] >= 0xF0) - len(opened)
    for byte in range(0x80, 0xC0):
        try:
            yield seen + (opened + bytes([byte]) + b"\x80" * (missing - 1)).decode()
        except UnicodeDecodeError:
            continue


def _opens(tail: bytes) -> bool:
    return tail[0] >= 0xC2 and said(tail) == ""


PARTS = {"where": Where}
