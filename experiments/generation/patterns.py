"""Which pattern of sparse prefill each head of a trained model fits: MInference's offline search (arXiv:2407.02490).

One held-out row is read by full attention. Of every candidate the attention mass that it keeps, and the share of pairs
that it computes, are told by layer and head; the best keeps the most mass.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import preflight
from experiments import workdir as files
from experiments.program import Program, inputs
from experiments.settings.errors import ConfigError, Refused
from experiments.settings.keys import suggest
from experiments.workdir import disk
from kernels import masks
from kernels.attention.patterns import CANDIDATES, pattern_mask, search
from kernels.attention.sparse import KINDS
from models.mixers import MIXERS, prefill
from models.mixers.memory import Policy, group
from models.mixers.memory.shadow import recorded, recording

Candidate = tuple[str, int, int]


def candidates(text: str) -> tuple[Candidate, ...]:
    """Those of `eval.patterns`. Errors: ConfigError for a kind that is none, or sizes that are no numbers from 1 on."""
    if text.strip() == "minference":
        return CANDIDATES
    made = []
    for word in filter(None, map(str.strip, text.split(","))):
        kind, *sizes = word.split(":")
        if kind not in KINDS:
            raise ConfigError([
                f"eval.patterns={text!r}: {kind!r} is unknown; {suggest(kind, KINDS)}use 'minference' or some of "
                f"{', '.join(KINDS)} with two sizes, e.g. 'a_shape:4:32'."
            ])  # fmt: skip
        if len(sizes) != 2 or not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
            raise ConfigError([
                f"eval.patterns={text!r}: {word!r} needs two whole numbers from 1 on; use e.g. '{kind}:4:32'."
            ])  # fmt: skip
        made.append((kind, *map(int, sizes)))
    return tuple(made)


def queries_and_keys(program: Program, params: Any, tokens: np.ndarray) -> list[tuple[jax.Array, jax.Array]]:
    """(q `[T, N, H]`, k `[T, K, H]`), rotated, of every layer of attention, from one text `[T]`."""

    @jax.jit
    def run(params: Any, tokens: jax.Array) -> Any:
        model = program.decoder(params).for_decoding()
        T = tokens.shape[1]
        state = model.init_state(1, T)
        state |= {"layers": recording(state["layers"])}
        where = jnp.arange(T)[None]
        made = model(tokens, mask=masks.Causal(), positions=where, state=state, fresh=True)
        return [(layer.q[0], layer.k[0]) for layer in recorded(made.state["layers"])]

    return run(params, jnp.asarray(tokens)[None])


def searched(layers: Sequence[tuple[jax.Array, jax.Array]], choices: Sequence[Candidate]) -> dict[str, Any]:
    """Of L layers of N heads and C candidates: `best [L, N]` indices, `mass [L, C, N]`, `pairs [L, C, N]`.

    `pairs`: of the causal pairs of a query and a key, the share that a candidate computes.
    """
    best, mass, pairs = [], [], []
    for q, k in layers:
        index, kept = search(q, k, tuple(choices))
        T = q.shape[0]
        some = [np.asarray(pattern_mask(q, k, *choice)).sum((1, 2)) / (T * (T + 1) / 2) for choice in choices]
        best.append(index.tolist())
        mass.append(kept.astype(float).tolist())
        pairs.append(np.stack(some).tolist())
    return {"candidates": [list(choice) for choice in choices], "best": best, "mass": mass, "pairs": pairs}


def of_run(model: Any, workdir: pathlib.Path | None) -> str:
    """The search over a trained model's first held-out row, in words; with a workdir also `patterns.json` there.

    Errors: ConfigError as `candidates`; Refused for a model without attention that reads from the left.
    """
    config = model.config
    choices = candidates(config.eval.patterns)
    batch = next(iter(inputs.eval_batches(config, model.corpus, model.program.rows)))
    causal = model.program.objective.generator == "autoregressive"
    layers = queries_and_keys(model.program, model.params, np.asarray(batch["tokens"])[0]) if causal else []
    if not layers:
        raise Refused(
            f"eval.patterns={config.eval.patterns!r} are of causal attention, and model.mixer={config.model.mixer!r} "
            f"under objective={config.objective!r} has none; use eval.patterns=''."
        )
    found = searched(layers, choices)
    if workdir is not None:
        told = {"step": model.step, "corpus": model.corpus.hash, "patterns": prefill.written(found)}
        files.write_json(workdir / files.PATTERNS, told | found)
    return said(found)


def resolved(generate: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config.generate` with the patterns themselves where `minference.patterns` names the file of a search.

    Errors: ConfigError where there is no such file.
    """
    path = generate.get("minference", {}).get("patterns", "").strip()
    if generate.get("prefill", "dense") == "dense" or not path.endswith(".json"):
        return generate
    try:
        text = disk.parsed(disk.read_bytes(pathlib.Path(path)) or b"")["patterns"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError([
            f"generate.minference.patterns={path!r} is no file of a search; make one by --mode=evaluate with "
            "eval.patterns='minference'."
        ]) from None  # fmt: skip
    return {**generate, "minference": {**generate["minference"], "patterns": str(text)}}


def check(made: prefill.Prefill, memory: Policy, config: Any) -> None:
    """Raises ConfigError where the patterns do not go with the memory, or with the layers and heads of `config`."""
    model, name = config.model, memory.name
    words = [word.strip() for word in model.mixer.split(",")]
    heads = [
        model.num_heads if getattr(MIXERS[words[i % len(words)]], "grows", False) else 0
        for i in range(model.num_layers)
    ]
    shared = {"memory": name, "prefill": "minference", "minference": {"patterns": ".json"}}
    problems = [*preflight.memory_problems(shared | {group(name): dict(memory.options)}, model.mixer)]
    if problems := problems or list(made.problems(heads)):
        raise ConfigError(problems)


def said(found: dict[str, Any]) -> str:
    """A line a candidate: for how many heads it is the best, the mass it keeps there and everywhere, its pairs."""
    best, mass, pairs = (np.asarray(found[name]) for name in ("best", "mass", "pairs"))
    lines = [f"{'pattern':28}{'best for':>10}{'mass there':>12}{'mass':>8}{'pairs':>8}"]
    for i, (kind, first, second) in enumerate(found["candidates"]):
        here = best == i
        there = f"{mass[:, i][here].mean():.1%}" if here.any() else "-"
        lines.append(
            f"{f'{kind}:{first}:{second}':28}{here.sum():>4} of {best.size:<3}{there:>11}{mass[:, i].mean():8.1%}"
            f"{pairs[:, i].mean():8.1%}"
        )
    heads = ["; ".join(f"layer {n}: {' '.join(map(str, row))}" for n, row in enumerate(best))]
    return "\n".join([*lines, f"best of each head, by number from 0: {heads[0]}"])
