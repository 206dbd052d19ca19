"""Prompts in fewer tokens: the most frequent pairs of a batch's prompts are merged (`generate.merges`).

Dynamic tokenization (Feher et al. 2024, arXiv:2411.18553): pairs within words are merged by their count over all
prompts, and a merged token is embedded as a whole. Text is written in the model's own tokens.
The paper's models were adapted to such prompts; a model that was not reads tokens that it never saw.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizers import dynamic
from experiments.program import build
from experiments.settings.errors import ConfigError
from experiments.workdir import zett
from experiments.workdir.trained import Trained
from models import hypernetwork
from models.transplant import pieces_mean

LEAST = 2  # uses of a pair


def merged(model: Trained, prompts: Sequence[str] | None) -> Trained:
    """The model with a row for each unit that `generate.merges` merges in the prompts, and its tokenizer with them.

    How many tokens that saves is printed on stderr. The model itself where no pair comes twice.

    Errors: ConfigError for what reads ids of prompts otherwise.
    """
    if problems := list(_problems(model, prompts)):
        raise ConfigError(problems)
    base, options = model.tokenizer, model.config.generate
    ids = [base.encode(prompt) for prompt in prompts]
    batch = [[[(i,) for i in word] for word in dynamic.words(row, base.pieces)] for row in ids]
    after, pairs = dynamic.merge_batch(batch, options.merges, LEAST)
    saved = f"{dynamic.reduction(batch, after):.1%}" if any(map(len, ids)) else "0%"
    print(f"generate.merges: {len(pairs)} pairs, {saved} fewer tokens to read", file=sys.stderr)
    if not pairs:
        return model
    V = model.params["embedding"].shape[0]
    tokenizer = dynamic.Merged(base, pairs, V)
    config = model.config.copy_and_resolve_references().unlock()
    config.model.update({"vocab_size": 0, "vocab_multiple": 1})
    program = build(config.lock(), vocab_size=tokenizer.vocab_size, mesh=model.program.mesh)
    params, new = dict(model.params), rows(model, tokenizer.units)
    for name, more in (("embedding", new), ("head", np.zeros_like(new))):  # No merged token is ever written.
        if params.get(name) is not None:
            whole = jnp.concatenate([params[name], jnp.asarray(more, params[name].dtype)])
            params[name] = jax.device_put(whole, program.shardings["params"][name])
    return dataclasses.replace(model, config=config, program=program, params=params, tokenizer=tokenizer)


def rows(model: Trained, units: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Rows of the embedding for units of ids, `[n, D]`, as `generate.merge_rows` says."""
    if model.config.generate.merge_rows == "zett":
        run = (model.config, model.corpus)
        network = zett.predicted(model.program, model.params, model.tokenizer, model.tokenizer.encode, run)
        forms = np.full((len(units), hypernetwork.LONGEST), zett.PAD, np.int32)
        for row, unit in zip(forms, units, strict=True):
            row[: len(unit)] = unit[: len(row)]
        return network(forms)["embedding"]
    E = np.asarray(model.params["embedding"], np.float64)
    return np.stack([pieces_mean(E, unit) for unit in units])


def _problems(model: Trained, prompts: Sequence[str] | None) -> Any:
    said = f"generate.merges={model.config.generate.merges}"
    options = model.config.generate
    if not prompts:
        yield f"{said} merges pairs of prompts, and there are none; give --prompt or --prompts."
    if not hasattr(model.tokenizer, "pieces"):
        yield f"{said} needs a tokenizer of bytes, whose pieces are known; use generate.merges=0."
    if model.config.model.kind != "lm" or model.program.objective.extra_tokens:
        yield f"{said} goes with model.kind='lm' and an objective without ids of its own; use generate.merges=0."
    for key, works in (("drafter", "none"), ("chat", False), ("edit_of", "")):
        if options[key] != works:
            yield f"generate.{key}={options[key]!r} reads ids of prompts, which {said} changes; use {key}={works!r}."
