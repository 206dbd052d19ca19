"""From a config to corpora and batches: the one place where `config.data` meets the data room."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import data
from experiments import workdir as files
from experiments.preflight import ConfigError


def load(config) -> data.Corpus:
    """The corpus that `config.data` names, tokenised (from the cache when it can)."""
    c = config.data
    try:
        return data.load(
            c.source,
            path=c.path,
            name=c.name,
            tokenizer=c.tokenizer,
            vocab_size=c.vocab_size,
            validation=c.validation,
            cache_dir=c.cache_dir,
            components=c.components,
            max_files=c.max_files,
        )
    except (ValueError, FileNotFoundError) as error:  # The data room speaks in sentences.
        raise ConfigError([str(error)]) from error


def byte_vocabulary() -> int:
    """Ids of the byte tokenizer."""
    return data.ByteTokenizer().vocab_size


def train_loader(config, corpus: data.Corpus) -> data.Loader:
    """Endless shuffled batches of the training split, this process's rows."""
    return _loader(config, corpus, corpus.train, batch_size=config.data.batch_size, seed=config.seed)


def eval_batches(config, corpus: data.Corpus) -> Iterator[dict]:
    """The held-out batches, always the same ones."""
    size = config.eval.batch_size or config.data.batch_size // config.train.accumulation
    loader = _loader(config, corpus, corpus.valid, batch_size=size, seed=0, epochs=1)
    count = loader.steps_per_epoch
    for step in range(min(count, config.eval.batches) if config.eval.batches else count):
        yield strip(config, loader.batch(step))


def _loader(config, corpus: data.Corpus, tokens: Any, **kw) -> data.Loader:
    return data.Loader(
        tokens,
        length=config.data.length,
        pad=corpus.tokenizer.pad,
        isolate=config.data.isolate,
        packing=config.data.packing,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **kw,
    )


def strip(config, batch: dict) -> dict:
    """A row of one segment needs no positions and no segment ids: the attention stays static."""
    if config.data.isolate:
        return batch
    return {k: v for k, v in batch.items() if k not in ("positions", "segment_ids")}


def last_evaluation(workdir: pathlib.Path) -> dict[str, Any]:
    """The newest evaluation in a workdir's metrics, for a run that resumes after its last one."""
    lines, _ = files.read_lines(workdir / files.METRICS)
    found = [line for line in lines if "eval/loss" in line]
    return {k: v for k, v in found[-1].items() if k.startswith("eval/")} if found else {}


def references(corpus: data.Corpus) -> dict[str, float]:
    """Lines that a curve is read against: bits per byte of a model that knows only how often each token occurs."""
    train, valid = corpus.train, corpus.valid
    if isinstance(train, data.Mixture):
        return {}
    V = corpus.tokenizer.vocab_size
    seen, held_out = (np.bincount(split.tokens, minlength=V).astype(float) for split in (train, valid))
    seen[corpus.tokenizer.bos] = held_out[corpus.tokenizer.bos] = 0  # Never predicted.
    bits = -held_out @ np.log2((seen + 1) / (seen.sum() + V))
    return {"unigram_bits_per_byte": float(bits / max(valid.num_bytes, 1))}
