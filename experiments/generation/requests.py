"""What every generator does with requests: their keys, their ids, and showing what was written."""

import functools
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def encode(tokenizer: Any, prompt: str) -> np.ndarray:
    """Ids of a prompt, `[n]` int32, the start of a document before them."""
    return np.concatenate([[tokenizer.bos], tokenizer.encode(prompt)]).astype(np.int32)


def request_keys(prompts: Sequence[str], seed: int) -> jax.Array:
    """One key per request, from its prompt and how often that prompt came before: batching does not change it."""
    base, seen, keys = jax.random.key(seed), Counter(), []
    for prompt in prompts:
        key = jax.random.fold_in(base, zlib.crc32(prompt.encode("utf-8", "surrogateescape")))
        keys.append(jax.random.fold_in(key, seen[prompt]))
        seen[prompt] += 1
    return jnp.stack(keys)


def rows(prompts: Sequence[str]) -> jax.Array:
    """One number a request, from its prompt and how often that prompt came before: batching does not change it."""
    seen, numbers = Counter(), []
    for prompt in prompts:
        numbers.append(zlib.crc32(f"{seen[prompt]} {prompt}".encode("utf-8", "surrogateescape")))
        seen[prompt] += 1
    return jnp.asarray(np.asarray(numbers, np.uint32))


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
    trained = generator.program.config.data.length
    needed = max(len(generator.encode(prompt)) for prompt in prompts) + options["max_tokens"]
    if needed > trained:
        print(
            f"note: up to {needed} tokens; the model was trained on {trained} and may lose the thread.", file=sys.stderr
        )
    if len(prompts) == 1:
        write(_printable(prompts[0]))
        for _, text in generator.stream(params, prompts, options, seed=seed):
            write(text)
        write("\n")
        return
    for prompt, text in zip(prompts, generator(params, prompts, options, seed=seed), strict=True):
        write(f"{'=' * 20}\n{_printable(prompt)}{text}\n")


def _printable(prompt: str) -> str:
    """Bytes of the command line that are not UTF-8, which the model reads as they are, show as U+FFFD."""
    return prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
