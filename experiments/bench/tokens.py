"""Bench rows of tokenizers: learning and encoding beside the library alone, the exact law of bytes beside its model.

The texts are the sources of the installed Python packages, each once: 100 MB where there are so many.
"""

import functools
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import transformer
from data import tokenise, tokenizer
from data.tokenizers.kinds import characters
from experiments.bench.comparison import Comparison, Planned
from experiments.program import build, sharding
from experiments.training import exact_bytes
from kernels import masks
from models.objectives import next_token

MB = 10**6
VOCAB = 8192
DOCUMENTS, LENGTH = 64, 512


def planned() -> Iterator[Planned]:
    """All rows of this module."""
    yield Planned("tokens/train/bpe8k", _train)
    yield Planned("tokens/encode/bpe", functools.partial(_encode, "bpe"))
    yield Planned("tokens/encode/unigram", functools.partial(_encode, "unigram"))
    yield Planned("tokens/exact", _exact)


@functools.cache
def texts(most: int) -> tuple[bytes, ...]:
    """Sources of at least 1 kB that are UTF-8, up to `most` bytes in all."""
    found, read = {}, 0
    for name in ("stdlib", "purelib"):
        for path in sorted(pathlib.Path(sysconfig.get_paths()[name]).rglob("*.py")):
            text = path.read_bytes() if path.is_file() else b""
            if len(text) < 1000 or text in found or not _is_utf8(text):
                continue
            if read + len(text) > most:
                return tuple(found)
            found[text], read = None, read + len(text)
    return tuple(found)


def _is_utf8(text: bytes) -> bool:
    try:
        return bool(text.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _train() -> Comparison:
    """8,192 ids: `train_bpe`, which keeps any bytes and bounds words, beside the library on the same texts as they
    are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    some = texts(100 * MB)

    def tessera() -> Any:
        return np.int64(tokenizer.train_bpe(some, VOCAB).vocab_size)

    def library() -> Any:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB - 3, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[], show_progress=False,
        )  # fmt: skip
        made.train_from_iterator((text.decode() for text in some), trainer=trainer)
        return np.int64(made.get_vocab_size() + 3)

    return Comparison(
        name="tokens/train/bpe8k",
        candidates={"tessera": tessera, "library": library},
        baseline="library",
        check=lambda: "" if sum(map(len, some)) > 10 * MB else "less than 10 MB of texts",
        work=(sum(map(len, some)) / MB, "MB"),
        rounds=1,
    )


def _encode(name: str) -> Comparison:
    """A tokenizer's `encode_batch`, whose ids are arrays, beside the library's own call on texts ready for it."""
    some = texts(20 * MB)
    made = tokenise.TRAINERS[name](some[:200], 4096)
    ready = [text.decode() if name == "bpe" else characters(text) for text in some]

    def tessera() -> Any:
        return np.int64(sum(map(len, made.encode_batch(some))))

    def library() -> Any:
        return np.int64(sum(len(each.ids) for each in made._library.encode_batch_fast(ready)))

    def check() -> str:
        ours, theirs = int(tessera()), int(library())
        return "" if ours == theirs else f"{ours} tokens beside their {theirs}"

    return Comparison(
        name=f"tokens/encode/{name}",
        candidates={"tessera": tessera, "library": library},
        baseline="library",
        check=check,
        work=(sum(map(len, some)) / MB, "MB"),
        rounds=3,
    )


def _exact() -> Comparison:
    """log P of the bytes of 64 documents, over all encodings, beside the nats of their own encodings in rows as long.

    The model has ten million parameters: what is done on the host for each document is there whatever the model.
    """
    kind = tokenizer.train_bpe(texts(4 * MB), 1024)
    config = transformer.get_config("tiny")
    config.model.update({"width": 384, "num_layers": 6, "num_heads": 6})
    config.data.update({"length": LENGTH, "batch_size": exact_bytes.TOGETHER})
    program = build(config.lock(), vocab_size=kind.vocab_size, mesh=sharding.make_mesh(config, jax.devices()[:1]))
    params, step = program.init()["params"], exact_bytes.make_step(program)
    some = [_fitting(kind, text) for text in texts(4 * MB)[:DOCUMENTS]]
    rows = [np.array([kind.bos, *kind.encode(text)]) for text in some]
    filled = np.full((len(rows), LENGTH), -1, np.int32)
    for row, ids in zip(filled, rows, strict=True):
        row[: len(ids)] = ids

    @jax.jit
    def nats(params: Any, ids: jax.Array) -> jax.Array:
        model = program.decoder(params)
        out = model(jnp.maximum(ids[:, :-1], 0), mask=masks.Causal())
        nll = next_token.target_nll(model, out.features, jnp.maximum(ids[:, 1:], 0))
        return jnp.sum(jnp.where(ids[:, 1:] >= 0, nll, 0), axis=-1)

    def exact() -> Any:
        return exact_bytes.measured(step, params, kind, some).exact

    def plain() -> Any:
        some = [filled[k : k + exact_bytes.TOGETHER] for k in range(0, len(filled), exact_bytes.TOGETHER)]
        return np.concatenate([nats(params, jnp.asarray(each)) for each in some])

    def check() -> str:
        law, own = exact(), plain()
        close = np.all(law <= own * (1 + 1e-5)) and np.all(law > 0.9 * own)
        return "" if close else "the law is not near the encodings' own likelihood, and above it"

    return Comparison(
        name="tokens/exact",
        candidates={"exact": exact, "plain": plain},
        baseline="plain",
        check=check,
        work=(sum(map(len, some)) / 1e3, "kB"),
        rounds=3,
    )


def _fitting(kind: Any, text: bytes) -> bytes:
    """The beginning of an ASCII text that leaves room in a row for encodings that are longer."""
    plain = bytes(b for b in text if b < 128)
    return kind.decode_bytes(kind.encode(plain)[: LENGTH - 18])
