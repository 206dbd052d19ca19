"""Held-out likelihood of texts that a model was not trained on: `eval.texts`, each document by itself."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import data
from data import folders, places
from data.packing import Alone
from experiments import workdir as files
from experiments.program import inputs
from experiments.settings import processes
from experiments.settings.errors import ConfigError, Refused
from experiments.settings.visible import visible
from experiments.training import evaluate as evaluation
from experiments.workdir import disk, saved

FIELDS = ("text", "document", "sha256", "begins", "bytes", "tokens", "bits", "bits_per_byte", "kind")


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured of one text. Documents are in the order of the SHA-256 of their bytes.

    Args:
      name, path: as `eval.texts` has them.
      documents: how many were read.
      of: how many there are.
      bytes: of those that were read.
      bits_per_byte: of them together.
      se: its standard error over documents, of one document over its rows.
      kind: of the likelihood, see `evaluate.evaluate`.
      each: `[documents, 3]`: nats, targets and bytes of each.
      corpus: whose `train` split holds them.
    """

    name: str
    path: str
    documents: int
    of: int
    bytes: int
    bits_per_byte: float
    se: float
    kind: str
    each: np.ndarray = dataclasses.field(repr=False)
    corpus: data.Corpus = dataclasses.field(repr=False)


def named(texts: Sequence[str]) -> dict[str, str]:
    """Name -> path of `eval.texts`. ConfigError for a name that stands twice, or a path that is missing."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        path = path if equals else text
        name = name.strip() if equals else pathlib.PurePath(text).stem
        if not path or not name:
            raise ConfigError([f"eval.texts has {text!r}, which names no text; use NAME=PATH, e.g. docs=docs/*.md."])
        if name in found:
            raise ConfigError([f"eval.texts has two texts of the name {name!r}; use NAME=PATH with names that differ."])
        found[name] = path
    return found


def check(config: Any) -> None:
    """Raises ConfigError where the model reads symbols, not text, or `eval.texts` names nothing."""
    if config.eval.texts and (config.data.source.startswith("task:") or config.data.source in ("digits", "random")):
        raise ConfigError([
            f"eval.texts={config.eval.texts!r} is text, and data.source={config.data.source!r} has symbols of its own; "
            "use eval.texts=()."
        ])  # fmt: skip
    for name, path in named(config.eval.texts).items():
        some = lambda path: path.exists() or bool(folders.pattern(str(path), []))  # noqa: E731
        if not (places.remote(path) or saved.found(path, some)):
            raise ConfigError([f"eval.texts {name!r}: {path!r} does not exist; use a file, folder or pattern."])


def evaluate(model: Any, step: Callable) -> Iterator[Found]:
    """Each text of `model.config.eval.texts` in turn; `model` is a `Trained`, `step` is from `evaluate.make_step`."""
    config, program, tokenizer = model.config, model.program, model.tokenizer
    for name, path in named(config.eval.texts).items():
        corpus = processes.main_first("text", lambda path=path, name=name: _corpus(config, tokenizer, name, path))
        packed = Alone(corpus.train, config.data.length)
        ends = packed.first_row[1:]
        allowed = config.eval.rows or packed.num_rows
        documents = max(int(np.searchsorted(ends, allowed, "right")), 1)
        batches = inputs.text_batches(config, corpus, int(ends[documents - 1]), program.rows)
        rows = evaluation.measured(program, step, model.params, batches, tokenizer.token_bytes)
        each = np.add.reduceat(rows[: ends[documents - 1]], packed.first_row[:documents])
        told = evaluation.summary(each if documents > 1 else rows, program.objective.bound)
        if wrong := evaluation.not_finite(told):
            raise ConfigError([f"{wrong} on eval.texts {name!r}: the model overflows on this text; try --step=best."])
        yield Found(
            name, path, documents, len(ends), int(each[:, 2].sum()), told["eval/bits_per_byte"],
            told["eval/bits_per_byte_se"], told["eval/kind"], each, corpus,
        )  # fmt: skip


def _corpus(config: Any, tokenizer: Any, name: str, path: str) -> data.Corpus:
    """All documents of a text, in the training split."""
    try:
        return data.load("text", path=path, tokenizer=tokenizer, validation=0.0, cache_dir=config.data.cache_dir)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError([f"eval.texts {name!r}: {error}"]) from error


def show(model: Any, step: Callable, *, workdir: pathlib.Path | str, output: str) -> None:
    """Prints a line for each text, keeps the figures in `workdir` ("": nowhere) for its report, and writes a record for
    each document to the file `output` ("": none)."""
    kept = []
    for found in evaluate(model, step):
        kept.append(found)
        if processes.is_main():
            print(visible(line(found)), flush=True)
    if not processes.is_main():
        return
    if workdir:
        record_of_all = {"step": model.step, "texts": [record(found) for found in kept]}
        files.write_json(pathlib.Path(workdir) / files.TEXTS, record_of_all)
    if output:
        lines = [json.dumps(each) for found in kept for each in each_document(found, model.tokenizer)]
        files.write_file(pathlib.Path(output).expanduser(), "".join(f"{text}\n" for text in lines).encode())
        print(f"{len(lines):,} documents: {output}")


def check_output(output: str) -> None:
    """Raises Refused where something else than records of documents stands in the file `output` ("": none)."""
    if not output:
        return
    held = disk.read_bytes(pathlib.Path(output).expanduser())
    try:
        first = disk.parsed(held.split(b"\n")[0]) if held else dict.fromkeys(FIELDS)
    except (ValueError, RecursionError):
        first = None
    if not isinstance(first, dict) or tuple(first) != FIELDS:
        raise Refused(f"--output={output} holds what no evaluation of texts wrote; give a new file.")


def line(found: Found) -> str:
    """One text in a line, with an interval of 95 %."""
    many = f"{found.documents:,}" + (f" of {found.of:,}" if found.documents < found.of else "")
    half = 1.96 * found.se
    ends = f"{found.bits_per_byte - half:.3f} to {found.bits_per_byte + half:.3f}"
    between = "" if math.isnan(half) else f" (95 % over {'documents' if found.documents > 1 else 'rows'}: {ends})"
    return (
        f"{found.name}: bits per byte {found.kind} {found.bits_per_byte:.3f}{between}, {many} "
        f"document{'s' * (many != '1')}, {found.bytes:,} bytes"
    )


def record(found: Found) -> dict[str, Any]:
    """A text as plain JSON, without its documents."""
    kept = ("name", "path", "documents", "of", "bytes", "bits_per_byte", "kind")
    return {key: getattr(found, key) for key in kept} | {"se": found.se if math.isfinite(found.se) else None}


def each_document(found: Found, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """A record for each document: its text's name, its place, the SHA-256 and the beginning of its bytes, how many they
    are, and bits in all and per byte."""
    split = found.corpus.train
    ends = np.append(split.starts[1:], len(split.tokens))
    for k, (nats, tokens, size) in enumerate(found.each):
        content = tokenizer.decode_bytes(split.tokens[split.starts[k] : ends[k]])
        bits = nats / math.log(2)
        yield {
            "text": found.name, "document": k, "sha256": hashlib.sha256(content).hexdigest(),
            "begins": content[:60].decode("utf-8", "replace"), "bytes": int(size), "tokens": int(tokens),
            "bits": float(bits), "bits_per_byte": float(bits / size) if size else None, "kind": found.kind,
        }  # fmt: skip
