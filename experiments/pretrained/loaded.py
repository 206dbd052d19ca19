"""A pretrained model ready to use: its config, program, parameters and tokenizer, as those of a run of this house."""

import pathlib
import sys
from typing import Any

import jax
from absl import logging

from configs.families import Unreadable
from configs.knobs import nested
from experiments.pretrained import reading
from experiments.program import Program, build, inputs, sharding
from experiments.settings.errors import CheckpointError
from experiments.workdir import states
from experiments.workdir.trained import Trained

ADDED = ("heads/", "/lora_in", "/lora_out")  # Parts of paths of parameters that this house adds to a pretrained model.


def load(config: Any) -> Trained:
    """The model that `config.init.pretrained` names, laid out over the devices that are here.

    Errors: CheckpointError in one sentence, before a parameter is allocated.
    """
    config = config.copy_and_resolve_references()
    config.mesh.update({"data": jax.device_count(), "fsdp": 1, "tensor": 1, "context": 1, "expert": 1})
    size, parts = config.eval.batch_size or config.data.batch_size // config.train.accumulation, jax.device_count()
    config.eval.batch_size = max(1, size // parts) * parts
    config.lock()
    tokenizer = inputs.tokenizer(config)
    program = build(config, vocab_size=tokenizer.vocab_size, mesh=sharding.make_mesh(config))
    params = parameters(program, tokenizer)
    path = pathlib.Path(config.init.pretrained).expanduser()
    return Trained(config, program, params, tokenizer, path, 0, {})


def parameters(program: Program, tokenizer: Any) -> Any:
    """The parameters of `program` from `init.pretrained`; those that this house adds are as at the start of a run.

    Errors: CheckpointError: what cannot be read, and a tokenizer with more ids than the model was trained on.
    """
    path = program.config.init.pretrained
    flat = reading.flatten(program.abstract["params"])
    added = {name for name in flat if any(part in name for part in ADDED)}
    try:
        files = reading.reader(program.spec, nested({k: v for k, v in flat.items() if k not in added}, "/"), path)
    except Unreadable as error:
        raise CheckpointError(f"init.pretrained: {error}") from None
    if tokenizer.vocab_size > files.vocabulary:
        raise CheckpointError(
            f"init.pretrained={path} knows {files.vocabulary} ids and data.tokenizer={program.config.data.tokenizer!r} "
            f"has {tokenizer.vocab_size}: it belongs to another model; use data.tokenizer={path!r}."
        )
    read = reading.flatten(files.parameters(program.shardings["params"], _progress()))
    if added:
        read |= _fresh(program, added)
    found = nested({name: read[name] for name in flat}, "/")
    if wrong := states.not_finite(found):
        raise CheckpointError(
            f"init.pretrained={path}: {wrong[0]} holds numbers that are not finite in "
            f"{program.config.model.param_dtype}; bring the files back from a copy, or set model.param_dtype='float32'."
        )
    return found


def _fresh(program: Program, names: set[str]) -> dict[str, jax.Array]:
    """The initial values of these parameters; no other is made."""
    placed = reading.flatten(program.shardings["params"])

    def some(key: jax.Array) -> dict[str, jax.Array]:
        flat = reading.flatten(program.initial(key))
        return {name: flat[name] for name in sorted(names)}

    key = jax.random.split(jax.random.key(program.config.seed))[0]
    return jax.jit(some, out_shardings={name: placed[name] for name in sorted(names)})(key)


def _progress():
    """Shows on a terminal how much was read."""
    if not sys.stderr.isatty():
        return lambda done, total: logging.info("read %d of %d numbers", done, total)

    def show(done: int, total: int) -> None:
        print(f"\rreading weights: {100 * done // total} %", end="\n" if done == total else "", file=sys.stderr)

    return show
