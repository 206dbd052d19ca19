"""How many drafts a round a smaller run should write: what rounds that are timed on this machine say.

`generate.model_draft.length=0` asks for it. Rounds of `LENGTHS` drafts are timed behind the prompts that are to be
continued, those of other lengths lie between, and which drafts stayed, by depth, says how many tokens a round gives:
`clock.best_length`. Where no length pays, nothing is drafted. The rules of verification that may go with it write the
same text whatever the length.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.generation import requests
from experiments.generation.decoder import Decoder
from experiments.generation.serving import clock
from experiments.settings.errors import ConfigError
from models.decoding import parts as sockets

NAME = "model_draft"
LENGTHS = (0, 1, 2, 4, 8, 12)  # 0: plain decoding
ROUNDS, TURNS = 12, 3  # rounds that are timed together, and how often: the least time counts
SAME = ("same_draw", "greedy")  # verifiers whose text does not depend on what was drafted


class Timed(NamedTuple):
    """Seconds of a round, and `wrote [D]`: rounds that wrote 1..D tokens, of all rows."""

    seconds: float
    wrote: np.ndarray


def asked(options: Mapping[str, Any]) -> bool:
    """Whether `config.generate` asks for a length by time."""
    return options["drafter"] == NAME and not options[NAME]["length"]


def settled(decoder: Decoder, params: Any, options: Mapping[str, Any], ids: Sequence[np.ndarray]) -> dict[str, Any]:
    """`config.generate` with a length in place of 0, or without a drafter; other options as they are.

    Args:
      decoder: of the model that writes; it loads the smaller run.
      params: the model's.
      options: `config.generate` as a plain dict.
      ids: of the prompts behind which rounds are timed, `[n]` each: as many rows as there will be.

    Errors: ConfigError where the text would depend on the length, or processes might choose unlike ones.
    """
    if not asked(options):
        return dict(options)
    if options["temperature"] != 0 and options["verifier"] not in SAME:
        raise ConfigError([
            f"generate.model_draft.length=0 is chosen by time, and with generate.verifier={options['verifier']!r} the "
            "text depends on it; use generate.verifier='same_draw' or e.g. generate.model_draft.length=4."
        ])  # fmt: skip
    if jax.process_count() > 1:
        raise ConfigError([
            "generate.model_draft.length=0 is chosen by time, and each process has its own; use e.g. "
            "generate.model_draft.length=4."
        ])  # fmt: skip
    length = chosen({n: timed(decoder, params, with_length(options, n), ids) for n in LENGTHS})
    says = f"{length} drafts a round" if length else "no drafts, which would not pay"
    print(f"note: timed rounds say {says}.", file=sys.stderr)
    return with_length(options, length)


def with_length(options: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The options with so many drafts a round; 0: with no drafter."""
    if not length:
        return {**options, "drafter": "none"}
    return {**options, NAME: {**options[NAME], "length": length}}


def chosen(found: Mapping[int, Timed]) -> int:
    """The length of the most tokens a second, of rounds that were timed by their lengths, 0 among them."""
    most = max(found)
    seconds = np.interp(range(most + 1), sorted(found), [found[n].seconds for n in sorted(found)])
    return clock.best_length(stays([each.wrote for each in found.values()], most), seconds)


def stays(wrote: Sequence[np.ndarray], most: int) -> np.ndarray:
    """`[most]` the chance that at least 1..most drafts stay, from rounds of several lengths, `[D]` each.

    At each depth the share that stays is of all rounds that came so far and drafted further; without one it is 0.
    """
    came, stayed = np.zeros(most), np.zeros(most)
    for rounds in wrote:
        reached = np.asarray(rounds)[::-1].cumsum()[::-1]
        came[: len(reached) - 1] += reached[:-1]
        stayed[: len(reached) - 1] += reached[1:]
    return np.cumprod(np.divide(stayed, came, out=np.zeros(most), where=came > 0))


def timed(decoder: Decoder, params: Any, options: Mapping[str, Any], ids: Sequence[np.ndarray]) -> Timed:
    """Rounds with these options behind prompts; nothing ends in them."""
    parts = dataclasses.replace(decoder.parts([options]), eos=-1)
    weights = decoder.weights(params, parts)
    ids = [*ids, *[ids[0]] * (-len(ids) % decoder.devices)]
    text, length = requests.padded(ids, (ROUNDS + 1) * parts.drafter[1].nodes, 0)
    size, width = requests.first_pass(length), text.shape[1]
    key = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), len(ids))))
    dials = sockets.dials([options] * len(ids), parts)
    given, seconds = (weights, text, length, np.full_like(length, width), key, dials), []
    for _ in range(TURNS + 1):  # The first compiles.
        p = jax.block_until_ready(decoder.start(*given, parts=parts, size=size, capacity=width))
        began = time.perf_counter()
        p = jax.block_until_ready(decoder.extend(weights, p, np.int32(ROUNDS), np.int32(len(ids) + 1), parts=parts))
        seconds.append(time.perf_counter() - began)
    return Timed(min(seconds[1:]) / ROUNDS, np.asarray(p.wrote).sum(axis=0))
