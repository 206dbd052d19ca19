"""Whether a config fits the corpus and the machine: what the preflight cannot know before data and model are there."""

import os
from typing import Any

import jax

from experiments.program import counting, make_objective
from experiments.settings.errors import ConfigError


def check_corpus(config: Any, corpus: Any) -> None:
    """Raises ConfigError when the corpus does not go with the config: too many ids, too little text."""
    from experiments.program import inputs

    vocab_size = corpus.tokenizer.vocab_size
    needed = vocab_size + make_objective(config, vocab_size).extra_tokens
    if config.model.vocab_size and config.model.vocab_size < needed:
        raise ConfigError([
            f"model.vocab_size={config.model.vocab_size} is smaller than the {needed} ids of tokenizer "
            f"{corpus.tokenizer.name!r} and objective {config.objective!r}; use model.vocab_size=0 for what is needed."
        ])  # fmt: skip
    inputs.check_splits(config, corpus)
    inputs.check_roles(config, corpus)


def check_memory(program: Any) -> None:
    """Raises ConfigError when what a step cannot do without exceeds what a device has: the state and its gradients, and
    of what the backward pass keeps the input of every layer."""
    needed = counting.memory(program)
    state, kept = needed["state"] + needed["gradients"] + needed["companions"], needed["inputs"]
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    there = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.platform == "cpu":  # Pretended devices share one memory.
        state, kept = state * jax.local_device_count(), kept * jax.local_device_count()
    config, shown = program.config, lambda size: f"{size / 2**30:.1f} GiB"
    if state > there:
        raise ConfigError([
            f"model.width={config.model.width} with model.num_layers={config.model.num_layers} needs "
            f"{shown(state)} for parameters, gradients and optimizer, and {shown(there)} are here; "
            f"use more devices on mesh.fsdp (now {program.mesh.shape['fsdp']}) or a smaller model."
        ])  # fmt: skip
    if state + kept > there:
        raise ConfigError([
            f"data.batch_size={config.data.batch_size} with data.length={config.data.length} needs at least "
            f"{shown(kept)} for the inputs of the layers beside {shown(state)} of state, and {shown(there)} are here; "
            f"use a smaller batch, more devices, or train.accumulation above {config.train.accumulation}."
        ])  # fmt: skip
