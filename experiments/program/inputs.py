"""From a config to corpora and batches: the one place where `config.data` meets the data room."""

import functools
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

import data
from data import roles
from data.tokenise import TRAINERS
from experiments import workdir as files
from experiments.pretrained import gguf_tokenizer
from experiments.settings.errors import ConfigError
from models.objectives import OBJECTIVES

_BYTES_A_TOKEN = 4  # of text under a learned vocabulary, roughly


def load(config, tokenizer: str = "", expected: str = "") -> data.Corpus:
    """The corpus that `config.data` names, tokenised (from the cache when it can).

    What a person might not expect of the corpus is on the log.

    Args:
      config: of a run.
      tokenizer: the path of a saved one that stands in for one that was trained; bytes and symbols have only one.
      expected: the hash of the corpus that a run began with (see `data.load` and `began_with`).

    Errors: ConfigError with one sentence.
    """
    arguments = _arguments(config, tokenizer if config.data.tokenizer != "bytes" else "")
    try:
        corpus = data.load(**arguments, expected=expected)
    except (ValueError, FileNotFoundError) as error:
        raise _named(config, error) from error
    for note in corpus.info["notes"]:
        _noted(config.data.path, keyed(config, note))
    return corpus


@functools.cache
def _noted(path: str, note: str) -> None:
    """Logs what there is to know of the corpus at `path` the first time that this process comes to it."""
    logging.warning("%s", note)


def began_with(workdir: pathlib.Path) -> str:
    """The hash of the corpus that the run in a workdir read when it was last started; "" where there was none."""
    try:
        corpus = (files.read_json(workdir / files.RUN) or {}).get("corpus")
    except ValueError:  # damaged: then today's rule splits
        corpus = None
    found = corpus.get("hash") if isinstance(corpus, dict) else None
    return found if isinstance(found, str) else ""


def vocabulary(config) -> tuple[int, str]:
    """Ids of the tokenizer, without reading the corpus where that can be helped, and what is assumed ("": nothing)."""
    c = config.data
    if c.tokenizer == "bytes" and c.source in ("stdlib", "text", "chat", "tfds"):
        return data.ByteTokenizer().vocab_size, ""
    try:
        known = data.known_tokenizer(**_arguments(config))
    except (ValueError, FileNotFoundError):  # a corpus that is not on this machine
        known = tokenizer(config) if c.tokenizer not in data.TOKENIZERS else None
    if known is not None:
        return known.vocab_size, ""
    if c.tokenizer in TRAINERS and c.vocab_size:
        return c.vocab_size, (
            f"data.vocab_size={c.vocab_size} is filled; the tokenizer is not learned yet, and the corpus may give fewer"
        )
    return load(config).tokenizer.vocab_size, ""


def passes(config) -> tuple[float, str]:
    """How often the training split is read in `train.steps`, without reading it, and what is assumed; 0: not known."""
    c, assumed = config.data, "by the sizes of its files"
    try:
        size = data.listed_size(**_arguments(config))
    except (ValueError, FileNotFoundError):  # a corpus that is not on this machine
        return 0.0, ""
    if c.tokenizer != "bytes":
        size, assumed = size / _BYTES_A_TOKEN, f"{assumed}, at {_BYTES_A_TOKEN} bytes a token"
    tokens = config.train.steps * c.batch_size * c.length
    return (tokens / (size * (1 - c.validation)), assumed) if size else (0.0, "")


def tokenizer(config) -> data.Tokenizer:
    """The tokenizer that `config.data.tokenizer` names by a path. Errors: ConfigError with one sentence."""
    named = _arguments(config)["tokenizer"]
    try:
        return data.load_tokenizer(named) if isinstance(named, str) else named
    except (ValueError, FileNotFoundError) as error:
        raise _named(config, error) from error


def sizes(corpus: data.Corpus) -> str:
    """How large both splits are, in words."""
    parts = []
    for name, split in zip(("training", "held out"), corpus.info["splits"].values(), strict=True):
        text = f", {split['bytes']:,} bytes" if "bytes" in split else ""
        parts.append(f"{name}: {split['documents']:,} document{'s' * (split['documents'] != 1)}{text}")
    return "; ".join(parts)


def _arguments(config, tokenizer: str = "") -> dict[str, Any]:
    """`config.data` as `data.load` takes it; with a path, that tokenizer stands in, and the config's is not read."""
    c = config.data
    return {
        "source": c.source,
        "path": c.path,
        "name": c.name,
        "tokenizer": tokenizer or (gguf_tokenizer.load(c.tokenizer) if c.tokenizer.endswith(".gguf") else c.tokenizer),
        "vocab_size": 0 if tokenizer else c.vocab_size,
        "tokenizer_sample": c.tokenizer_sample,
        "validation": c.validation,
        "columns": c.columns,
        "template": c.template,
        "cache_dir": c.cache_dir,
        "components": c.components,
        "max_files": c.max_files,
    }


def _named(config, error: Exception) -> ConfigError:
    """Errors of the data room name its arguments, which are the config's keys without `data.`."""
    return ConfigError([keyed(config, str(error))])


def keyed(config, text: str) -> str:
    """A sentence of the data room with its arguments, such as `path=`, as keys of the config: `data.path=`."""
    names = "|".join(map(re.escape, config.data))
    return re.sub(rf"^(?:{names})\b|(?<=[\s(])(?:{names})(?==)", r"data.\g<0>", text)


def train_loader(config, corpus: data.Corpus, rows: tuple[int, int] = (0, 1)) -> data.Loader:
    """Endless shuffled batches of the training split; rows=(i, n): the i-th of n parts of their rows."""
    return _loader(config, corpus, corpus.train, rows, batch_size=config.data.batch_size, seed=config.seed)


def eval_loader(config, corpus: data.Corpus, rows: tuple[int, int] = (0, 1)) -> data.Loader:
    """The held-out split once, always in the same order; rows as in `train_loader`."""
    size = config.eval.batch_size or config.data.batch_size // config.train.accumulation
    return _loader(config, corpus, corpus.valid, rows, batch_size=size, seed=0, epochs=1)


def eval_batches(config, corpus: data.Corpus, rows: tuple[int, int] = (0, 1)) -> Iterator[dict]:
    """`eval.rows` held-out rows (0: all) behind the first `eval.skip`, in batches: the same rows for any batch size,
    accumulation and devices.

    The other rows of the first and last batch are padding, which is not scored; `rows` as in `train_loader`. Errors:
    ConfigError where nothing is left to evaluate.
    """
    loader = eval_loader(config, corpus, rows)
    first = config.eval.skip
    if first >= loader.num_rows:
        raise ConfigError([f"eval.skip={first} leaves none of {loader.num_rows} held-out rows; use e.g. eval.skip=0."])
    count = min(loader.num_rows - first, config.eval.rows or loader.num_rows)
    yield from _some(config, corpus, loader, (first, first + count), rows)


def _some(
    config, corpus: data.Corpus, loader: data.Loader, span: tuple[int, int], rows: tuple[int, int]
) -> Iterator[dict]:
    """Rows `span[0]` to `span[1]` - 1 of all parts, in batches; what else is in these batches is padding."""
    for step in range(span[0] // loader.batch_size, -(-span[1] // loader.batch_size)):
        batch = loader.batch(step)
        mine = len(batch["tokens"])
        begin, end = (min(max(edge - step * loader.batch_size - rows[0] * mine, 0), mine) for edge in span)
        whole = (begin, end) == (0, mine)
        yield prepare(config, corpus, batch if whole else _emptied(batch, begin, end, corpus.tokenizer.pad))


def text_batches(config, corpus: data.Corpus, count: int, rows: tuple[int, int] = (0, 1)) -> Iterator[dict]:
    """The first `count` rows of a corpus whose documents are all in its training split, in order, each document in rows
    of its own; as `eval_batches`."""
    size = config.eval.batch_size or config.data.batch_size // config.train.accumulation
    whole = {"epochs": 1, "shuffle": False, "packing": "alone"}
    loader = _loader(config, corpus, corpus.train, rows, batch_size=size, **whole)
    yield from _some(config, corpus, loader, (0, count), rows)


def _emptied(batch: dict, begin: int, end: int, pad: int) -> dict:
    """A batch of a loader whose rows before `begin` and from `end` on are padding, as the loader itself fills up its
    last one."""
    fills = {"tokens": pad, "targets": pad}
    emptied = {name: array.copy() for name, array in batch.items()}
    for name, array in emptied.items():
        array[:begin] = array[end:] = fills.get(name, 0)
    return emptied


def check_splits(config, corpus: data.Corpus) -> None:
    """Raises ConfigError when a split has no text, or too little for one row, before anything is written."""
    for name, make in (("training", train_loader), ("held-out", eval_loader)):
        tokens = corpus.train if name == "training" else corpus.valid
        if not tokens.num_targets:
            raise ConfigError([
                f"data.validation={config.data.validation!r} leaves the {name} split of the corpus without text; "
                "use a larger corpus, and a share such as data.validation=0.05."
            ])  # fmt: skip
        try:
            make(config, corpus)
        except ValueError as error:
            sentence = str(_named(config, error)).replace("the whole split", f"the whole {name} split")
            raise ConfigError([sentence]) from error


def check_roles(config, corpus: data.Corpus) -> None:
    """Raises ConfigError where nothing of the training split has some of the roles of `model.roles`."""
    if not config.model.roles:
        return
    parts = corpus.train.parts if isinstance(corpus.train, data.Mixture) else (corpus.train,)
    kinds = {roles.USER} if config.data.given else set()
    for part in parts:
        found = getattr(part, "kinds", None)
        if found is not None:
            kinds |= set(np.flatnonzero(np.bincount(found, minlength=1)).tolist())
        elif isinstance(part, data.Tokens) and part.scored is None:
            kinds |= {roles.OUTPUT}
        else:
            kinds |= {roles.USER, roles.OUTPUT}
    fits = lambda count: len(set(roles.role(np.array(sorted(kinds)), count).tolist())) == count  # noqa: E731
    if not fits(config.model.roles):
        works = next((count for count in (4, 3, 2) if fits(count)), 0)
        named = ", ".join(roles.KINDS[kind] for kind in sorted(kinds))
        raise ConfigError([
            f"model.roles={config.model.roles} are more than the data has: its tokens are {named} (data.roles); use "
            f"model.roles={works}."
        ])  # fmt: skip


def _loader(config, corpus: data.Corpus, tokens: Any, rows: tuple[int, int], **kw) -> data.Loader:
    length = config.data.length
    if _whole_rows(config):
        least = tokens.task.least_length() + 1
        if length < least:
            raise ValueError(
                f"length={length} is too short for a whole row of {config.data.source}; use {least} or more."
            )
        length -= 1  # A loader's row is one symbol longer than its tokens: the last target.
    return data.Loader(
        tokens,
        length=length,
        pad=corpus.tokenizer.pad,
        isolate=config.data.isolate,
        process_index=rows[0],
        process_count=rows[1],
        kinds=bool(config.model.roles),
        **{"packing": config.data.packing, **kw},
    )


def prepare(config, corpus: data.Corpus, batch: dict) -> dict:
    """A batch of the loader as the objective reads it; targets among the first `data.given` tokens are not scored."""
    made = _as_read(config, corpus, batch)
    if config.model.roles:
        made, kinds = dict(made), made["kinds"]
        del made["kinds"]
        if config.data.given and "positions" in batch:
            kinds = np.where(batch["positions"] < config.data.given, np.minimum(kinds, roles.USER), kinds)
        made["roles"] = roles.role(kinds, config.model.roles)
    if config.data.given:
        place = batch["positions"] + 1 if OBJECTIVES[config.objective].causal else made["positions"]
        made = {**made, "scored": made["scored"] & (place >= config.data.given)}
    return made


def _as_read(config, corpus: data.Corpus, batch: dict) -> dict:
    """`prepare` without `data.given`.

    A bidirectional objective predicts each token itself: all tokens count except bos and padding. These are the targets
    of a causal objective, so that bits per byte count each byte once in both. Causal objectives keep the loader's
    batch; with isolate=False positions and segment ids are dropped, so that the attention mask needs no arrays.
    In a task and in conversations only the answers are scored, by every objective: prompts are given and never masked.
    """
    if _whole_rows(config):
        return _whole(batch)
    if not OBJECTIVES[config.objective].causal:
        tokens = batch["tokens"]
        scored = (batch["segment_ids"] != 0) & (tokens != corpus.tokenizer.bos)
        if _masked(corpus):  # What was a target one place before.
            scored = np.concatenate([np.zeros_like(scored[:, :1]), batch["scored"][:, :-1]], axis=1)
        return {**batch, "targets": tokens, "scored": scored}
    if config.data.isolate:
        return batch
    return {k: v for k, v in batch.items() if k not in ("positions", "segment_ids")}


def _masked(corpus: data.Corpus) -> bool:
    """Whether the corpus says of its tokens which are scored: it has conversations."""
    parts = corpus.train.parts if isinstance(corpus.train, data.Mixture) else (corpus.train,)
    return any(getattr(part, "scored", None) is not None for part in parts)


def _whole_rows(config) -> bool:
    """Whether rows are whole sequences of a task, for an objective that is not causal."""
    return config.data.source.startswith("task:") and not OBJECTIVES[config.objective].causal


def _whole(batch: dict) -> dict:
    """Rows of T - 1 tokens and their targets as rows of T tokens that are their own targets.

    A token is scored where it was scored as a target. A last symbol that is no answer becomes padding.
    """
    last = batch["scored"][:, -1:]
    tokens = np.concatenate([batch["tokens"], batch["targets"][:, -1:]], axis=1)
    segments, places = batch["segment_ids"], batch["positions"]
    return {
        "tokens": tokens,
        "targets": tokens,
        "scored": np.concatenate([np.zeros_like(last), batch["scored"]], axis=1),
        "segment_ids": np.concatenate([segments, np.where(last, segments[:, -1:], 0)], axis=1),
        "positions": np.concatenate([places, np.where(last, places[:, -1:] + 1, 0)], axis=1),
    }


def last_evaluation(workdir: pathlib.Path, step: float) -> tuple[int, dict[str, Any]]:
    """Step and numbers of the newest evaluation up to `step` in a workdir's metrics; (-1, {}) where there is none."""
    lines, _ = files.read_lines(workdir / files.METRICS)
    found = [line for line in lines if "eval/loss" in line and line["step"] <= step]
    last = found[-1] if found else {"step": -1}
    return last["step"], {k: v for k, v in last.items() if k.startswith("eval/")}


def references(corpus: data.Corpus) -> dict[str, float]:
    """Lines that a curve is read against: bits per byte of a model that knows only how often each token occurs.

    Of a task, bits per answer: of a model that has not read the row ("chance"), and the least where it is not zero.
    """
    train, valid = corpus.train, corpus.valid
    if isinstance(train, data.Mixture) or _masked(corpus):
        return {}
    if not isinstance(train, data.Tokens):
        known = {name: corpus.info[f"{name}_loss"] for name in ("chance", "best")}
        return {f"{name}_bits_per_byte": nats / math.log(2) for name, nats in known.items() if nats}
    V = corpus.tokenizer.vocab_size
    seen, held_out = (np.bincount(split.tokens, minlength=V).astype(float) for split in (train, valid))
    seen[corpus.tokenizer.bos] = held_out[corpus.tokenizer.bos] = 0  # Never predicted.
    bits = -held_out @ np.log2((seen + 1) / (seen.sum() + V))
    return {"unigram_bits_per_byte": float(bits / max(valid.num_bytes, 1))}
