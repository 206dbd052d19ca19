"""Requests of all generators: their keys and ids, and the text of a row."""

import functools
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generation import drafted
from experiments.settings.errors import ConfigError
from models.decoding import keys as key_scheme


class Spoken(NamedTuple):
    """A prompt as ids `[n]`, the start of a document included, with the kind of each, `[n]` of `data.roles`."""

    ids: np.ndarray
    kinds: np.ndarray


MEASURED = 64  # Tokens of plain decoding that drafts are compared with.


def encode(tokenizer: Any, prompt: str) -> np.ndarray:
    """Ids of a prompt, `[n]` int32, the start of a document before them where the model was trained with one."""
    ids = tokenizer.encode(prompt)
    if len(ids) and not getattr(tokenizer, "add_bos", True):
        return ids
    return np.concatenate([[tokenizer.bos], ids]).astype(np.int32)


def padded(ids: Sequence[np.ndarray], more: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts, `[n]` each, as rows: text `[B, R]` int32 with `fill` behind each prompt, and lengths `[B]` int32.

    R leaves room for `more` tokens behind the longest and is a multiple of 64, so that few sizes compile.
    """
    length = np.asarray([len(row) for row in ids], np.int32)
    text = np.full((len(ids), -(-(int(length.max()) + more) // 64) * 64), fill, np.int32)
    for row, tokens in zip(text, ids, strict=True):
        row[: len(tokens)] = tokens
    return text, length


def first_pass(length: np.ndarray) -> int:
    """Tokens of the pass that reads prompts of `length [B]`, all but the last of each: a multiple of 16."""
    return -(-(int(np.max(length)) - 1) // 16) * 16


def number(prompt: str, before: int) -> int:
    """The number of a request whose prompt was asked `before` times before."""
    return zlib.crc32(f"{before} {prompt}".encode("utf-8", "surrogateescape"))


def rows(prompts: Sequence[str]) -> jax.Array:
    """One number a request, from its prompt and how often that prompt came before: batching does not change it."""
    seen, numbers = Counter(), []
    for prompt in prompts:
        numbers.append(number(prompt, seen[prompt]))
        seen[prompt] += 1
    return jnp.asarray(np.asarray(numbers, np.uint32))


def keys(prompts: Sequence[str], seed: int) -> jax.Array:
    """One key per request, `[B]`: the key of the seed, folded with the request's number."""
    return key_scheme.row_keys(jax.random.key(seed), len(prompts), rows(prompts))


class RowText:
    """Turns the tokens of one row into text, up to its end or its first stop string."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]):
        from data import StreamDecoder

        self.decoder, self.eos, self.stop = StreamDecoder(tokenizer), tokenizer.eos, stop
        self.held, self.ended, self.stopped = "", False, False  # stopped: by a stop string

    def push(self, tokens: np.ndarray, *, last: bool) -> str:
        """The next piece of text; characters that may still become a stop string are held back."""
        if self.ended:
            return ""
        for token in tokens:
            if token == self.eos:
                self.ended = True
                break
            self.held += self.decoder.push(int(token))
            cut = min((at for at in map(self.held.find, self.stop) if at >= 0), default=-1)
            if cut >= 0:
                self.held, self.ended, self.stopped = self.held[:cut], True, True
                break
        keep = 0 if self.ended or last else max(map(len, self.stop), default=1) - 1
        text, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return text


def interactive(
    generator: Any,
    params: Any,
    prompts: Sequence[str],
    options: dict,
    *,
    seed: int,
    write: Callable | None = None,
) -> None:
    """Prints continuations: one prompt streams as it is drawn, several are printed whole, one after the other."""
    write = write or functools.partial(print, end="", flush=True, file=sys.stdout)
    check_length(generator.program, generator.tokenizer, prompts, options["max_tokens"])
    drafts = options["drafter"] != "none"
    if hasattr(generator, "settled"):  # What is chosen by time is told before the text, and not in the midst of it.
        options = generator.settled(params, prompts, options)
    if len(prompts) == 1:
        write(_printable(prompts[0]))
        for _, text in generator.stream(params, prompts, options, seed=seed):
            write(text)
        write("\n")
    else:
        for prompt, text in zip(prompts, generator(params, prompts, options, seed=seed), strict=True):
            show(prompt, text, write)
    if line := getattr(generator, "said", ""):
        print(line, file=sys.stderr)
    if drafts and getattr(generator, "drafted", None) is not None:
        print(drafted.line(*compared(generator, params, prompts, options, seed=seed)), file=sys.stderr)


def compared(
    generator: Any, params: Any, prompts: Sequence[str], options: dict, *, seed: int
) -> tuple[drafted.Drafted, drafted.Drafted]:
    """What the drafts of the texts just written were worth, and some tokens of the same texts without drafts."""
    with_drafts = generator.drafted
    plain = options | {"drafter": "none", "verifier": "same_draw", "max_tokens": min(options["max_tokens"], MEASURED)}
    generator(params, prompts, plain, seed=seed)
    return with_drafts, generator.drafted


def check_length(program: Any, tokenizer: Any, prompts: Sequence[str], max_tokens: int) -> None:
    """A note where texts may become longer than those of training; ConfigError where the model has no such places."""
    config = program.config
    longest = max(len(encode(tokenizer, prompt)) for prompt in prompts)
    if 0 < config.model.positions < longest + max_tokens:
        raise ConfigError([
            f"a prompt of {longest} tokens and generate.max_tokens={max_tokens} more do not fit "
            f"model.positions={config.model.positions}, the places that the model learned; use e.g. "
            + (f"generate.max_tokens={config.model.positions - longest}." if longest < config.model.positions
               else "a shorter prompt.")
        ])  # fmt: skip
    if longest + max_tokens > config.data.length:
        print(
            f"note: up to {longest + max_tokens} tokens; the model was trained on {config.data.length} and may lose "
            "the thread.",
            file=sys.stderr,
        )


def show(prompt: str, text: str, write: Callable | None = None) -> None:
    """Prints one of several continuations."""
    (write or functools.partial(print, end="", flush=True))(f"{'=' * 20}\n{_printable(prompt)}{text}\n")


def _printable(prompt: str) -> str:
    """Bytes of the command line that are not UTF-8, which the model reads as they are, show as U+FFFD."""
    return prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
