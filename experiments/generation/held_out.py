"""A drafter on held-out prompts: `--mode=evaluate --config.generate.drafter=NAME` measures and writes what it found."""

import itertools
import pathlib
from typing import Any

import numpy as np

from experiments import generation
from experiments import workdir as files
from experiments.generation import draft_length, drafted, requests
from experiments.generation.drafted import Drafted
from experiments.program import inputs
from experiments.workdir import trained, writers

ROWS = 8  # Prompts at most.


def evaluated(model: trained.Trained, options: dict[str, Any], workdir: pathlib.Path | None) -> str:
    """Measures the drafter of `options`, adds a line to `drafts.jsonl` of a workdir, and says it in one line."""
    asked = prompts(model, inputs.eval_batches(model.config, model.corpus, (0, 1)))
    found, plain = measure(model, asked, options)
    if workdir is not None:
        writers.add_line(workdir / files.DRAFTS, record(options, model.step, found, plain))
    return f"{options['drafter']}: {drafted.line(found, plain)}"


def prompts(model: trained.Trained, batches: Any) -> list[str]:
    """The first halves of the first held-out rows, as text."""
    rows = (row for batch in batches for row in np.asarray(batch["tokens"])[np.asarray(batch["scored"]).any(1)])
    tokens = list(itertools.islice(rows, ROWS))
    special = (model.tokenizer.bos, model.tokenizer.eos, model.tokenizer.pad)
    halves = [row[: len(row) // 2] for row in tokens]
    return [model.tokenizer.decode([int(i) for i in row if i not in special]) for row in halves]


def measure(model: trained.Trained, asked: list[str], options: dict[str, Any]) -> tuple[Drafted, Drafted]:
    """(with drafts, without) of the texts behind the prompts `asked`, with the settings of `config.generate`."""
    generator = generation.make(model.program, model.tokenizer)
    generator(model.params, asked, options, seed=model.config.seed)
    return requests.compared(generator, model.params, asked, options, seed=model.config.seed)


def record(options: dict[str, Any], step: Any, found: Drafted, plain: Drafted) -> dict[str, Any]:
    """What `drafts.jsonl` holds of one measurement."""
    name = options["drafter"]
    own = dict(options.get(name) or {})
    if draft_length.asked(options):
        own["length"] = found.wrote.shape[1] - 1  # The length that was chosen.
    return {
        "step": step, "drafter": name, "verifier": options["verifier"], "temperature": options["temperature"],
        "options": own, "prompts": len(found.wrote), "tokens": found.tokens,
        "calls": int(found.calls.sum()), "wrote": found.wrote.sum(axis=0).tolist(),
        "tokens_per_second": found.per_second, "plain_tokens_per_second": plain.per_second,
    }  # fmt: skip
