"""A run that starts from a model of another tokenizer: `config.init.transplant`, its embeddings by a rule."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from configs import families
from data.tokenizers import romanise
from experiments.pretrained import loaded
from experiments.program import Program, build, inputs
from experiments.settings.errors import CheckpointError, ConfigError
from experiments.workdir import grown, vocabulary, zett
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.saved import holds_checkpoint
from models import hypernetwork, transplant

SPECIALS = ("pad", "eos", "bos")  # Of those that are one id the last named counts.
TABLES = ("embedding", "head")  # Rows of the vocabulary, as models/lm.py names them; an untied head is one of its own.


def state(program: Program, workdir: str | os.PathLike, corpus: Any) -> Any:
    """The state at step 0 of `program`: the parameters at `workdir`, their rows moved to the tokenizer of `corpus`.

    `workdir` is a run, of which the newest good parameters are taken, or a pretrained model (a folder in Hugging Face
    form with its tokenizer, or a .gguf file). Ids of an objective beyond the tokenizer's keep their order behind the
    new ones; rows that only pad the vocabulary are those of a model from scratch. The same vocabulary gives the same
    bits in every row.

    Errors: CheckpointError where the workdir lacks its tokenizer, or one of the two is not of bytes; ConfigError where
    the models differ in more than their vocabularies.
    """
    folder, tokenizer = pathlib.Path(workdir).expanduser(), corpus.tokenizer
    pretrained = not holds_checkpoint(str(workdir))
    old_tokenizer = _theirs(program.config, folder) if pretrained else vocabulary.load(folder)
    for said, kind in ((f"--workdir={folder}", old_tokenizer), ("data.tokenizer", tokenizer)):
        if not hasattr(kind, "pieces"):
            raise CheckpointError(
                f"init.transplant={workdir}: {said} has no tokenizer of bytes, whose pieces could be compared; "
                "use a run on text."
            )
    old, params = (_of_files if pretrained else _of_run)(program, folder, old_tokenizer)
    fresh = program.init()["params"]
    _check_alike(params, fresh, workdir)
    encode, rule = encoder(old_tokenizer), program.config.init.transplant_rule
    specials = {getattr(tokenizer, name): getattr(old_tokenizer, name) for name in SPECIALS}
    change = transplant.Change(
        old_tokenizer.pieces, tokenizer.pieces, encode, seed=int(program.config.seed),
        specials=[(old_id, new_id) for new_id, old_id in specials.items()], transliterate=romanise.romanised,
    )  # fmt: skip
    rows = {}
    if rule == "zett" and list(change.old) != list(change.new):
        network = zett.predicted(old, params, old_tokenizer, encode, (program.config, corpus))
        rows = network(hypernetwork.surface_forms(tokenizer.pieces, encode, zett.PAD))
    moved = dict(params)
    for name in TABLES:
        if params.get(name) is not None:
            told = dataclasses.replace(change, predicted=rows.get(name))
            made = _moved(np.asarray(params[name]), np.asarray(fresh[name]), told, rule)
            moved[name] = jax.device_put(made, program.shardings["params"][name])
    return program.begin(moved)


def _of_run(program: Program, folder: pathlib.Path, tokenizer: Any) -> tuple[Program, Any]:
    """Program and newest good parameters of a run."""
    old = grown.before(program, folder, vocab_size=tokenizer.vocab_size)
    return old, Checkpoints(folder).parameters(old)


def _theirs(config: Any, path: pathlib.Path) -> Any:
    """The tokenizer of a pretrained model."""
    config = config.copy_and_resolve_references().unlock()
    config.data.tokenizer = str(path)
    return inputs.tokenizer(config)


def _of_files(program: Program, path: pathlib.Path, tokenizer: Any) -> tuple[Program, Any]:
    """Program and parameters of a pretrained model, whose settings are those of `program` but for the vocabulary."""
    config = program.config.copy_and_resolve_references().unlock()
    config.init.pretrained = str(path)
    config.model.vocab_size = families.describe(str(path))[1].get("vocab_size", 0)
    old = build(config.lock(), vocab_size=tokenizer.vocab_size, mesh=program.mesh)
    return old, loaded.parameters(old, tokenizer)


def encoder(tokenizer: Any) -> Callable[[bytes], list[int]]:
    """Ids of a piece wherever it stands in a text: without the blank that some tokenizers put in front of a text."""
    line = list(tokenizer.encode(b"\n"))

    def encode(piece: bytes) -> list[int]:
        ids = list(tokenizer.encode(b"\n" + piece))
        return ids[len(line) :] if ids[: len(line)] == line and len(ids) > len(line) else list(tokenizer.encode(piece))

    return encode if getattr(tokenizer, "blank_first", False) else tokenizer.encode


def _moved(old: np.ndarray, fresh: np.ndarray, change: transplant.Change, rule: str) -> np.ndarray:
    """`[V', D]`: the pieces' rows by the rule, then the objective's own ids, then `fresh` rows."""
    before, after = len(change.old), len(change.new)
    if list(change.old) == list(change.new) and old.shape == fresh.shape:
        return old
    out = fresh.copy()
    wide = np.asarray(old[:before], np.float64)
    out[:after] = transplant.transplanted(change, wide, rule).astype(fresh.dtype)
    own = min(len(old) - before, len(fresh) - after)
    out[after : after + own] = old[before : before + own]
    return out


def _check_alike(params: Any, fresh: Any, workdir: str | os.PathLike) -> None:
    shapes = [
        {
            jax.tree_util.keystr(path): leaf.shape[1:] if path[0].key in TABLES else leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (params, fresh)
    ]
    if shapes[0] != shapes[1]:
        key = min(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
        raise ConfigError([
            f"init.transplant={workdir} has {shapes[0].get(key)} at {key} and this run has {shapes[1].get(key)}; only "
            "the vocabulary may differ: use the model settings that it was trained with."
        ])  # fmt: skip
