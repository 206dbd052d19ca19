"""A run that starts from a model of another tokenizer: `config.init.transplant`, its embeddings by a rule."""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.program import Program
from experiments.settings.errors import CheckpointError, ConfigError
from experiments.workdir import grown, vocabulary
from experiments.workdir.checkpoints import Checkpoints
from models import transplant

TABLES = ("embedding", "head")  # Rows of the vocabulary, as models/lm.py names them; an untied head is one of its own.


def state(program: Program, workdir: str | os.PathLike, tokenizer: Any) -> Any:
    """The state at step 0 of `program`: the newest good parameters in `workdir`, their rows moved to `tokenizer`.

    Ids of an objective beyond the tokenizer's keep their order behind the new ones; rows that only pad the vocabulary
    are those of a model from scratch. The same vocabulary gives the same bits in every row.

    Errors: CheckpointError where the workdir lacks its tokenizer, or one of the two is not of bytes; ConfigError where
    the models differ in more than their vocabularies.
    """
    folder = pathlib.Path(workdir).expanduser()
    old_tokenizer = vocabulary.load(folder)
    for said, kind in ((f"--workdir={folder}", old_tokenizer), ("data.tokenizer", tokenizer)):
        if not hasattr(kind, "pieces"):
            raise CheckpointError(
                f"init.transplant={workdir}: {said} has no tokenizer of bytes, whose pieces could be compared; "
                "use a run on text."
            )
    old = grown.before(program, folder, vocab_size=old_tokenizer.vocab_size)
    params, fresh = Checkpoints(folder).parameters(old), program.init()["params"]
    _check_alike(params, fresh, workdir)
    change = transplant.Change(
        old_tokenizer.pieces, tokenizer.pieces, old_tokenizer.encode, seed=int(program.config.seed)
    )
    rule = program.config.init.transplant_rule
    moved = dict(params)
    for name in TABLES:
        if params.get(name) is not None:
            made = _moved(np.asarray(params[name]), np.asarray(fresh[name]), change, rule)
            moved[name] = jax.device_put(made, program.shardings["params"][name])
    return program.begin(moved)


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
