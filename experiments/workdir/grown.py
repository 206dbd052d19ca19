"""A run that starts from a smaller trained model, grown: `config.init.grow_from`, and the same for notebooks."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from experiments import workdir as files
from experiments.program import Program, build, optimizers
from experiments.settings.errors import CheckpointError, ConfigError
from experiments.workdir import trained
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.saved import saved_config
from models import growth, objectives
from models.pattention import MAPS, token_counts

# (the program of the trained model, that of the new one) -> (its parameters -> those of the new one).
Change = Callable[[Program, Program], Callable[[Any], Any]]


def grow(workdir: str | os.PathLike, *, tokens: int, channel_tokens: int = 0, **maps: int) -> Any:
    """The trained model in `workdir` with more parameter tokens and the same function, ready to use or to train on.

    Args:
      workdir: a run of a model with `model.projection` or `model.channel` "pattention".
      tokens: P of each map of a mixer, at least as large as in the trained model.
      channel_tokens: P of each map of a channel; 0 = four times `tokens`.
      **maps: q_tokens, k_tokens, v_tokens, o_tokens, up_tokens, down_tokens: P of one map, as in `model.pattention`;
        maps that are not named keep their P.
    """
    old = trained.load(workdir)
    config = old.config.copy_and_resolve_references().unlock()
    config.model.pattention.update({"tokens": tokens, "channel_tokens": channel_tokens, **maps})
    return remade(old, config, _grow)


def remade(old: trained.Trained, config: Any, change: Change) -> trained.Trained:
    """The trained model `old` with another config, ready to use or to train on, and its parameters changed for it."""
    new = build(config.lock(), vocab_size=old.tokenizer.vocab_size, mesh=old.program.mesh)
    return dataclasses.replace(old, config=config, program=new, params=change(old.program, new)(old.params))


def changed(program: Program, workdir: str | os.PathLike, change: Change, *, vocab_size: int) -> Any:
    """The state at step 0 of `program` from the (averaged) parameters of the newest good checkpoint in `workdir`."""
    folder = pathlib.Path(workdir).expanduser()
    old = before(program, folder, vocab_size=vocab_size)
    return program.begin(change(old, program)(Checkpoints(folder).parameters(old)))


def source(config: Any, workdir: str | os.PathLike, tokenizer: Any, *, key: str) -> Checkpoints:
    """The checkpoints of the run in `workdir`, whose parameters may start a run of `config` (`key` names it there).

    Raises:
      CheckpointError: the run has another tokenizer, or an objective whose extra ids (masks, starts) are others.
    """
    workdir = pathlib.Path(workdir).expanduser()
    saves = Checkpoints(workdir)
    about = saves.newest_about()
    if about.get("tokenizer", tokenizer.hash) != tokenizer.hash:
        raise CheckpointError(
            f"{key}={workdir} was trained with another tokenizer ({about['tokenizer'][:12]}) than this run has "
            f"({tokenizer.hash[:12]}): its ids mean other text; use "
            f"data.tokenizer={str(workdir / files.TOKENIZER)!r} and data.vocab_size=0, or init.transplant={workdir} in "
            f"place of {key} to move its embeddings to your tokenizer."
        )
    saved = about.get("config")
    if not isinstance(saved, dict):
        return saves
    objective = saved.get("objective", config.objective)
    alike = all(getattr(objectives.OBJECTIVES.get(name), "causal", False) for name in (objective, config.objective))
    if objective != config.objective and not alike:  # Those that predict the next token read one model.
        raise CheckpointError(
            f"{key}={workdir} was trained for objective={objective!r} and this run is for {config.objective!r}, which "
            f"reads other things from the same numbers; use objective={objective!r}, or a run that has yours."
        )
    mine, theirs = (
        objectives.make(name, options.get(name, {}), vocab_size=tokenizer.vocab_size).extra_tokens
        for name, options in ((config.objective, config.to_dict()), (objective, saved))
    )
    if mine != theirs:
        raise CheckpointError(
            f"{key}={workdir} has {theirs} ids beyond the tokenizer's and this run has {mine}: others stand in their "
            f"places; use the options of {objective} that it was trained with."
        )
    return saves


def state(program: Program, workdir: str | os.PathLike, *, vocab_size: int) -> Any:
    """The state at step 0 of `program`, its parameters grown from the newest good checkpoint in `workdir`.

    `config.init.grow_optimizer`: "reset" takes the (averaged) parameters alone; "carry" also the optimizer's moments
    of what there was, and of an average. The schedule starts afresh with both.
    """
    old, saves = before(program, workdir, vocab_size=vocab_size), Checkpoints(pathlib.Path(workdir).expanduser())
    if found := growth.problems(old.spec, program.spec):  # With the corpus at hand: the vocabulary, too.
        raise ConfigError(found)
    mine, theirs = (sorted(objectives.heads(each.objective, each.spec)) for each in (program, old))
    if mine != theirs:
        raise ConfigError([
            f"init.grow_from={workdir} has the heads {theirs} and this run has {mine}; grow with "
            f"objective={old.config.objective!r} and its options."
        ])  # fmt: skip
    if program.config.init.grow_optimizer == "reset":
        return program.begin(_grow(old, program)(saves.parameters(old)))
    restored = saves.restore(old.abstract, old.shardings)
    if restored is None:
        raise CheckpointError(
            f"init.grow_from={workdir} holds no checkpoint; give the --workdir of a run that saved one."
        )
    was = restored[1]
    new = program.begin(_grow(old, program)(was["params"]))
    place = lambda name: program.shardings[name]  # noqa: E731
    new["optimizer"] = jax.jit(optimizers.carry, out_shardings=place("optimizer"))(was["optimizer"], new["optimizer"])
    for name in {"ema", "master"} & {*was} & {*new}:  # of old rows; new ones have no past
        extend = lambda a, b: jax.tree.map(lambda o, f: growth.extend(o, f).astype(f.dtype), a, b)  # noqa: E731
        new[name] = jax.jit(extend, out_shardings=place(name))(was[name], new[name])
    if "ema" in was and "averaged" in new:  # An average that was not corrected is one of as many updates as it saw.
        new["averaged"] = was.get("averaged", was["step"])
    return new


def before(program: Program, workdir: str | os.PathLike, *, vocab_size: int) -> Program:
    """The program of the run in `workdir` on the mesh of `program`, its parameter tokens uncut."""
    config = saved_config(pathlib.Path(workdir).expanduser()).copy_and_resolve_references()
    config.mesh, config.sharding = program.config.mesh, program.config.sharding.copy_and_resolve_references()
    config.sharding.tokens = ()  # What there was need not divide as what there will be.
    return build(config.lock(), vocab_size=vocab_size, mesh=program.mesh)


def _grow(old: Program, new: Program) -> Any:
    """`params -> grown params`, laid out as the new program says; a second growth draws other values."""
    options = new.spec.options["pattention"]
    key = jax.random.fold_in(jax.random.key(new.config.seed), token_counts(options, new.spec.D)["tokens"])
    for name in MAPS:
        key = jax.random.fold_in(key, options[f"{name}_tokens"]) if options[f"{name}_tokens"] else key
    fn = lambda params: growth.grow(params, old.spec, new.spec, key)  # noqa: E731
    return jax.jit(fn, out_shardings=new.shardings["params"])
