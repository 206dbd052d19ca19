"""Whether a config fits the corpus and the machine: what the preflight cannot know before data and model are there."""

import os
import pathlib
from collections.abc import Mapping
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


def check_memory(program: Any) -> None:
    """Raises ConfigError when the state and its gradients alone exceed what a device has."""
    needed = counting.memory(program)
    least = needed["state"] + needed["gradients"]
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    there = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.platform == "cpu":
        least *= jax.local_device_count()  # Pretended devices share one memory.
    if least > there:
        raise ConfigError([
            f"model.width={program.config.model.width} with model.num_layers={program.config.model.num_layers} needs "
            f"{least / 2**30:.1f} GiB for parameters, gradients and optimizer, and {there / 2**30:.1f} GiB are here; "
            f"use more devices on mesh.fsdp (now {program.mesh.shape['fsdp']}) or a smaller model."
        ])  # fmt: skip


def check_same_corpus(about: Mapping, corpus: Any, workdir: pathlib.Path) -> None:
    """Raises ConfigError when a run would go on with other data than it began with."""
    for name, now in (("corpus", corpus.hash), ("tokenizer", corpus.tokenizer.hash)):
        if about.get(name, now) != now:
            raise ConfigError([
                f"the {name} of --workdir={workdir} had the hash {about[name][:12]} and has {now[:12]} now; "
                "bring the old files back, or start again in a new folder."
            ])  # fmt: skip
