"""Text from a trained model: one prompt or many, streamed to a terminal or returned whole."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import preflight
from experiments.generation import requests
from experiments.program import Program
from models.decoding import autoregressive, sampling
from models.decoding.autoregressive import Sampler
from models.lm import unstack

CHUNK = 16  # Tokens between two looks from the host: what streaming shows at once, and where stop strings are found.


class Generator:
    """Generation with one model; compiled once per shape and setting.

    `options` is `config.generate` as a dict: max_tokens, temperature, stop and the knobs of `sampling.RULES`.
    """

    def __init__(self, program: Program, tokenizer: Any):
        self.program, self.tokenizer = program, tokenizer
        self.prefill = jax.jit(self._prefill, static_argnames=("sampler", "max_new", "slots"))
        self.extend = jax.jit(self._extend, static_argnames=("sampler",), donate_argnames=("progress",))
        self.layers = jax.jit(unstack)  # One copy of the layers serves a whole call.

    def _prefill(self, params, layers, prompt, lengths, keys, *, sampler, max_new, slots):
        model = self.program.decoder(params).for_decoding(layers)
        progress = autoregressive.prefill(model, prompt, lengths, keys, sampler, max_new=max_new, slots=slots)
        return self._readable(progress)

    def _extend(self, params, layers, progress, keys, until, *, sampler):
        model = self.program.decoder(params).for_decoding(layers)
        return self._readable(autoregressive.extend(model, progress, keys, sampler, until))

    def _readable(self, progress: autoregressive.Progress) -> autoregressive.Progress:
        """What the host looks at, whole on every device: it may see only its own."""
        whole = self.program.spec.partition.constrain
        return dataclasses.replace(
            progress, tokens=whole(progress.tokens, (None, None)), count=whole(progress.count, ())
        )

    def __call__(self, params: Any, prompts: Sequence[str], options: dict, *, seed: int = 0) -> list[str]:
        """The continuation of each prompt. The same prompt and seed give the same text in any batch."""
        texts = [""] * len(prompts)
        for row, text in self.stream(params, prompts, options, seed=seed):
            texts[row] += text
        return texts

    def stream(self, params: Any, prompts: Sequence[str], options: dict, *, seed: int = 0) -> Iterator[tuple[int, str]]:
        """Yields `(row, piece of text)` as tokens arrive; a stop string ends its row and is not yielded.

        Raises ConfigError for options out of range. Beyond the trained length text is drawn all the same.
        """
        preflight.check_generation(options)
        if not prompts:
            return
        ids = [self.encode(prompt) for prompt in prompts]
        real, devices = len(ids), self._row_devices()
        ids += [ids[0]] * (-real % devices)  # Every device takes as many rows; those beyond `real` are not read.
        max_new, longest = options["max_tokens"], max(len(row) for row in ids)
        slots = -(-(longest + max_new) // 64) * 64  # Rounded up, so that few lengths compile.
        width = min(slots, -(-longest // 16) * 16)
        prompt = np.full((len(ids), width), self.tokenizer.pad, np.int32)
        for row, tokens in enumerate(ids):
            prompt[row, : len(tokens)] = tokens
        sampler = self._sampler(options)
        keys = requests.request_keys([*prompts, *[prompts[0]] * (len(ids) - real)], seed)
        lengths = jnp.asarray([len(row) for row in ids], jnp.int32)
        layers = self.layers(params)
        progress = self.prefill(
            params, layers, prompt, lengths, keys, sampler=sampler, max_new=max_new, slots=max(slots, width + max_new)
        )
        rows = [_RowText(self.tokenizer, tuple(options["stop"])) for _ in range(real)]
        seen = 0
        while True:
            count, tokens = int(progress.count), np.asarray(progress.tokens)
            for row, reader in enumerate(rows):
                text = reader.push(tokens[row, seen:count], last=count >= max_new)
                if text:
                    yield row, text
            if count >= max_new or all(reader.ended for reader in rows):
                return
            seen = count
            until = jnp.int32(min(count + CHUNK, max_new))
            progress = self.extend(params, layers, progress, keys, until, sampler=sampler)
            if int(progress.count) == seen:
                return

    def _row_devices(self) -> int:
        """Over how many devices the rows of a batch are cut."""
        return math.prod(self.program.mesh.shape[axis] for axis in self.program.config.sharding.batch)

    def encode(self, prompt: str) -> np.ndarray:
        """Ids of a prompt, `[n]` int32, the start of a document before them."""
        return requests.encode(self.tokenizer, prompt)

    def _sampler(self, options: dict) -> Sampler:
        tokenizer = self.tokenizer
        return Sampler(
            temperature=options["temperature"],
            rules=tuple((name, options[name]) for name in sampling.RULES),
            eos=tokenizer.eos,
            vocab_size=tokenizer.vocab_size,
            banned=(tokenizer.bos, tokenizer.pad),
        )


class _RowText:
    """Turns the tokens of one row into text, up to its end or its first stop string."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]):
        from data import StreamDecoder

        self.decoder, self.eos, self.stop = StreamDecoder(tokenizer), tokenizer.eos, stop
        self.held, self.ended = "", False

    def push(self, tokens: np.ndarray, *, last: bool) -> str:
        """Text that is certain not to belong to a stop string."""
        if self.ended:
            return ""
        for token in tokens:
            if token == self.eos:
                self.ended = True
                break
            self.held += self.decoder.push(int(token))
            cut = min((at for at in map(self.held.find, self.stop) if at >= 0), default=-1)
            if cut >= 0:
                self.held, self.ended = self.held[:cut], True
                break
        keep = 0 if self.ended or last else max(map(len, self.stop), default=1) - 1
        text, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return text
