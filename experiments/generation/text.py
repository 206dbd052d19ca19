"""Text from a trained model, token by token: one prompt or many, streamed to a terminal or returned whole."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import preflight
from experiments.generation import draft_length, drafting, requests
from experiments.generation.between import NO_TOKEN, between, by_row, entering, given, hosted, parsed, started, together
from experiments.generation.decoder import Decoder, key_data
from experiments.generation.drafted import Drafted
from experiments.program import Program
from experiments.settings.errors import ConfigError
from models.decoding import parts as sockets
from models.decoding.control import Host

CHUNK = 16  # Rounds between two looks from the host: what streaming shows at once, and where stop strings are found.


class Generator:
    """Generation with one model, all prompts together; compiled once per shape and parts.

    `options` is `config.generate` as a dict. `experiments.generation.engine` serves many prompts of unequal length.
    `reads`: whether rows begin with nothing read; else what makes them has read their prompts.
    """

    reads = True

    def __init__(self, program: Program, tokenizer: Any):
        self.program, self.tokenizer = program, tokenizer
        self.decoder = Decoder(program, tokenizer)
        self.drafted: Drafted | None = None  # of the last texts, once they have ended

    def __call__(self, params: Any, prompts: Sequence[str], options: dict, *, seed: int = 0) -> list[str]:
        """The continuation of each prompt. The same prompt and seed give the same text in any batch."""
        texts = [""] * len(prompts)
        for row, text in self.stream(params, prompts, options, seed=seed):
            texts[row] += text
        return texts

    def settled(self, params: Any, prompts: Sequence[str], options: dict) -> dict:
        """The options with what they leave to times behind these prompts: see `draft_length`."""
        if not draft_length.asked(options):
            return options
        return draft_length.settled(self.decoder, params, options, [self.encode(prompt) for prompt in prompts])

    def stream(self, params: Any, prompts: Sequence[str], options: dict, *, seed: int = 0) -> Iterator[tuple[int, str]]:
        """Yields `(row, piece of text)` as tokens arrive; a stop string ends its row and is not yielded.

        Raises ConfigError for options out of range. Beyond the trained length text is drawn all the same.
        """
        preflight.check_generation(options, tables=True)
        if not prompts:
            return
        options = self.settled(params, prompts, options)
        parts = self.decoder.parts([options])
        read = [parsed(parts, options, self.tokenizer, prompt) for prompt in prompts]
        ids, real = [row for row, _ in read], len(read)
        more = -real % self.decoder.devices  # Every device takes as many rows; those beyond `real` are not read.
        ids, prompts, read = ids + ids[:1] * more, [*prompts, *[prompts[0]] * more], read + read[:1] * more
        weights = self.decoder.weights(params, parts)
        max_new = options["max_tokens"]
        text, length = requests.padded(ids, max_new, self.tokenizer.pad)
        size, width = requests.first_pass(length), text.shape[1]
        if problems := [*drafting.fits(parts, width)]:
            raise ConfigError(problems)
        dials = sockets.dials([options] * len(ids), parts)
        own = given(parts, options, self.tokenizer, self.decoder.sides(weights, parts, width))
        own = by_row([together(own, mine) for _, mine in read])
        entered = entering(parts)  # Prompts are then read by rows that have what is their own.
        p = self._begun(
            weights, (text, length, length + max_new, key_data(prompts, seed), dials),
            {"parts": parts, "size": 0 if entered else size, "capacity": width},
        )  # fmt: skip
        p = started(p, own)
        if entered and self.reads:
            p = self.decoder.read(weights, p, parts=parts, size=size, fresh=True)
        readers = [requests.RowText(self.tokenizer, tuple(options["stop"])) for _ in range(real)]
        seen, rounds, waits, done = length, 1, hosted(parts, options), np.zeros(real, bool)
        self.drafted, seconds, timed = None, 0.0, 0
        while not all(reader.ended for reader in readers):
            if waits:  # What a stop string has ended need not be fulfilled.
                live = [row for row in range(real) if not (done[row] or readers[row].ended)]
                so_far = {row: (np.array(p.text[row, : seen[row]]), length[row]) for row in live}
                p = self._told(parts, p, options, so_far)
            began = time.perf_counter()
            p = self.decoder.extend(weights, p, jnp.int32(rounds), jnp.int32(len(ids) + 1), parts=parts)
            tokens, now, done = np.array(p.text), np.array(p.length), np.array(p.done)  # Copies: p is given away.
            without = np.array(p.failed)
            if seen is not length:  # The first rounds compile.
                seconds, timed = seconds + time.perf_counter() - began, timed + int((now - seen)[:real].sum())
            self.drafted = Drafted(np.array(p.wrote)[:real], np.array(p.calls)[:real], seconds, timed)
            for row, reader in enumerate(readers):
                piece = reader.push(tokens[row, seen[row] : now[row]], last=bool(done[row]))
                if piece:
                    yield row, piece
                if without[row] and own and not reader.stopped:
                    raise RuntimeError(NO_TOKEN)
            if done[:real].all():
                return
            seen, rounds = now, 1 if waits else CHUNK

    def _begun(self, weights: Any, rows: tuple, told: dict) -> Any:
        """Rows whose prompts are read, all but their last tokens; arguments of `Decoder.start`."""
        return self.decoder.start(weights, *rows, **told)

    def _told(self, parts: Any, p: Any, options: dict, rows: dict[int, tuple[np.ndarray, int]]) -> Any:
        """`p` once hosts have said what may follow in `rows` (their text so far, tokens of their prompt)."""
        hosts = {row: Host(options, self.tokenizer, text, int(prompt)) for row, (text, prompt) in rows.items()}
        p, failed = between(parts, p, hosts)
        if failed:
            raise RuntimeError(next(iter(failed.values())))
        return p

    def encode(self, prompt: str) -> np.ndarray:
        """Ids of a prompt, `[n]` int32, the start of a document before them."""
        return requests.encode(self.tokenizer, prompt)
