"""What a policy of `generate.memory` costs and keeps: held-out rows, token by token, beside the full cache.

A row is read as one text: its first part in one pass, as a prompt, the rest token by token, each token scored. Results
of every batch are lines of a file of the workdir, so that a killed evaluation goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import preflight
from experiments import workdir as files
from experiments.generation import patterns
from experiments.program import Program, inputs
from experiments.settings import processes
from experiments.settings.errors import ConfigError, Refused
from experiments.training.evaluate import ratio_standard_error
from experiments.workdir import disk, states
from kernels import masks
from models.mixers.memory import Policy
from models.mixers.memory.shadow import shadowed, watched
from models.mixers.prefill import Prefill

ROUNDS = 3  # of a warm batch, of which the fastest counts
SUMS = ("nats", "full_nats", "right", "full_right", "exact", "full_exact", "bytes", "tokens", "mass", "best", "steps")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Held-out rows as one model reads them.

    Attributes:
      program, params: of the model, on one process.
      batches: of held-out rows, numpy; read once by each evaluation.
      token_bytes: `[V]` bytes of text behind each token id.
      prompt: tokens of a row that are read at once; 0: half of it.
      full: what the full cache gave, by batch, which evaluations of the same rows share.
      timed: whether bytes of the state and seconds are measured, too.
    """

    program: Program
    params: Any
    batches: Iterable[dict]
    token_bytes: np.ndarray
    prompt: int = 0
    full: dict[Any, Any] = dataclasses.field(default_factory=dict)
    timed: bool = True


def scored(program: Program, policy: Policy, prompt: int, watch: bool, prefill: Prefill | None = None) -> Callable:
    """Jitted `(params, tokens [B, T], targets, scored) -> dict` of the targets behind a prompt, `[B, T - prompt]` each.

    `nats`, and `right`: whether the target is the likeliest token; 0 where it is not scored. A row whose targets are
    all right is one whose answers would be drawn exactly. With `watch` also `mass`, `best` and `steps`, `[L, B]`, and
    `seen [L, B, T]`, of `models.mixers.memory.shadow`.
    """

    def run(params: Any, tokens: jax.Array, targets: jax.Array, scored: jax.Array) -> dict[str, jax.Array]:
        model = program.decoder(params).for_decoding()
        B, T = tokens.shape
        state = model.init_state(B, T, policy)
        if watch:
            state = state | {"layers": shadowed(state["layers"], T)}
        where = lambda first, count: jnp.broadcast_to(first + jnp.arange(count), (B, count))  # noqa: E731
        take = lambda x, t: jax.lax.dynamic_slice_in_dim(x, t, 1, axis=1)  # noqa: E731
        rule = {"mask": masks.Causal()}
        state = model(
            tokens[:, :prompt], positions=where(0, prompt), state=state, fresh=True, prefill=prefill, **rule
        ).state

        def step(state: Any, t: jax.Array) -> tuple[Any, tuple]:
            made = model(take(tokens, t), positions=where(t, 1), state=state, **rule)
            logits = jax.nn.log_softmax(model.logits(made.features)[:, 0], axis=-1)
            target, counts = take(targets, t), take(scored, t)[:, 0]
            nats = -jnp.take_along_axis(logits, target, axis=1)[:, 0]
            right = jnp.argmax(logits, axis=-1) == target[:, 0]
            return made.state, (jnp.where(counts, nats, 0), counts & right)

        state, (nats, right) = jax.lax.scan(step, state, jnp.arange(prompt, T))
        found = {"nats": nats.T, "right": right.T}
        if watch:
            layers = watched(state["layers"])
            none = {"mass": jnp.zeros((1, B)), "best": jnp.zeros((1, B)), "steps": jnp.ones((1, B))}  # of no attention
            none["seen"] = jnp.zeros((1, B, T))
            found |= {name: jnp.stack([getattr(x, name) for x in layers]) if layers else none[name] for name in none}
        return found

    return program.jit(run)


def state_bytes(program: Program, params: Any, policy: Policy, rows: int, length: int) -> int:
    """Bytes of the decoding state that a compiled step takes beside the parameters and the tokens."""

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        model = program.decoder(params).for_decoding()
        made = model(tokens, mask=masks.Causal(), positions=state["slots"].length[:, None], state=state)
        return model.logits(made.features), made.state

    decoder = lambda params: program.decoder(params).for_decoding().init_state(rows, length, policy)  # noqa: E731
    state = jax.eval_shape(decoder, params)
    tokens = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
    size = lambda tree: sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    kept = jax.jit(step, keep_unused=True).lower(params, state, tokens).compile().memory_analysis()
    return kept.argument_size_in_bytes - size(params) - size(tokens)


def evaluate(
    rows: Rows,
    generate: Mapping[str, Any],
    *,
    folder: pathlib.Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A policy against the full cache on held-out rows.

    Args:
      rows: what is read, and by what.
      generate: `config.generate` as a plain dict.
      folder: where results of batches are kept; None: nowhere.
      about: what else the results depend on, e.g. the checkpoint.

    Returns:
      `memory/...`: bits_per_byte and full_bits_per_byte behind the prompts, difference_se over rows, accuracy and
      full_accuracy (0..1, of the scored tokens behind the prompts), exact and full_exact (of the rows, those without a
      wrong one), kept_mass and best_mass (0..1, of the attention of the full cache, by what was seen and by the best as
      many), state_bytes and full_state_bytes of a batch, tokens_per_second and full_tokens_per_second of a warm batch,
      rows, prompt; `seen`: [L, T] shares of the heads that saw each token of the first row at its end.
    """
    policy, prompt, prefill = Policy.of(generate), rows.prompt, Prefill.of(generate)
    told = {"policy": [policy.name, [list(o) for o in policy.options]], "prompt": prompt, **(about or {})}
    if prefill is not None:
        told["patterns"] = generate["minference"]["patterns"]
    path, done = _results(folder, policy.name, told)
    runs, shape = {}, None
    for number, batch in enumerate(rows.batches):
        tokens = np.asarray(batch["tokens"])
        shape, cut = tokens.shape, prompt or tokens.shape[1] // 2
        if number in done:
            continue
        given = (rows.params, *(jnp.asarray(batch[name]) for name in ("tokens", "targets", "scored")))
        runs = runs or {"": scored(rows.program, policy, cut, watch=True, prefill=prefill)}
        if number not in rows.full:
            runs.setdefault("full", scored(rows.program, Policy(), cut, watch=False))
            rows.full[number] = jax.device_get(runs["full"](*given))
        found = jax.device_get(runs[""](*given))
        row = _row(batch, {"": found, "full_": rows.full[number]}, rows.token_bytes, cut)
        if number == 0:
            row["seen"] = np.round(found["seen"][:, 0], 3).tolist()
            row |= _both_costs(rows, given, policy, cut, prefill) if rows.timed else {}
        done[number] = row
        if path is not None:
            with os.fdopen(disk.open_to_append(path), "ab") as file:
                file.write(_line({"batch": number, **row}))
    found = _summary(done, prompt or shape[1] // 2)
    if not math.isfinite(found["memory/bits_per_byte"] + found["memory/full_bits_per_byte"]):
        raise Refused(f"generate.memory={policy.name}: bits per byte are not finite on this text; try --step=best.")
    if path is not None:
        files.write_file(path.with_suffix(".json"), json.dumps({"about": told, **found}).encode())
    return found


def of_run(model: Any, workdir: pathlib.Path | None) -> str:
    """`evaluate` of a trained model (`experiments.workdir.trained.Trained`) on its held-out rows, in words.

    Errors: ConfigError for a policy that the model cannot have; Refused where many processes evaluate.
    """
    options = patterns.resolved(model.config.generate.to_dict())
    check(model, options)
    found = evaluate(rows_of(model), options, **kept_in(model, workdir))
    name = options["memory"] if options["prefill"] == "dense" else f"{options['memory']}, prefill={options['prefill']}"
    return said(found, name)


def check(model: Any, options: Mapping[str, Any]) -> None:
    """Raises ConfigError for a policy that the model cannot have, Refused for one that writes no text by tokens and
    where many processes evaluate."""
    if processes.many():
        raise Refused("generate.memory other than 'full' is evaluated by one process; leave --num_processes away.")
    if model.program.objective.generator != "autoregressive":
        raise Refused(
            f"objective={model.config.objective!r} writes no text token by token, which generate.memory is about; use "
            "generate.memory='full' and eval.memories=''."
        )
    preflight.check_generation(options, tables=True)
    if problems := list(preflight.memory_problems(options, model.config.model.mixer)):
        raise ConfigError(problems)
    if made := Prefill.of(options):
        patterns.check(made, Policy.of(options), model.config)


def rows_of(model: Any) -> Rows:
    """The held-out rows of a trained model's config."""
    batches = inputs.eval_batches(model.config, model.corpus, model.program.rows)
    return Rows(
        model.program, model.params, list(batches), model.tokenizer.token_bytes, model.config.eval.prompt
    )  # fmt: skip


def kept_in(model: Any, workdir: pathlib.Path | None) -> dict[str, Any]:
    """`folder` and `about` of evaluations of a trained model."""
    config = model.config
    return {
        "folder": None if workdir is None else workdir / files.MEMORIES,
        "about": {
            "step": model.step,
            "rows": config.eval.rows,
            "batch": config.eval.batch_size,
            "parameters": hashlib.sha256(states.marks(model.params)).hexdigest()[:12],
            "corpus": model.corpus.hash,
        },
    }


def said(found: Mapping[str, Any], name: str) -> str:
    """The result in a few lines."""
    of = lambda key: found[f"memory/{key}"]  # noqa: E731
    return (
        f"generate.memory={name}, behind prompts of {of('prompt')} tokens, {of('rows')} rows: "
        f"{of('bits_per_byte'):.4f} bits per byte, {of('full_bits_per_byte'):.4f} with the full cache (standard error "
        f"of the difference {of('difference_se'):.4f})\n"
        f"right are {of('accuracy'):.2%} of the scored tokens ({of('full_accuracy'):.2%} with the full cache) and all "
        f"of them in {of('exact'):.1%} of the rows ({of('full_exact'):.1%})\n"
        f"kept attention {of('kept_mass'):.4f} (at best {of('best_mass'):.4f} with as many tokens); state "
        f"{of('state_bytes'):,} bytes a batch, {of('full_state_bytes'):,} with the full cache; "
        f"{of('tokens_per_second'):,.0f} tokens/s, {of('full_tokens_per_second'):,.0f} with the full cache"
    )


def _results(folder: pathlib.Path | None, name: str, told: Mapping[str, Any]) -> tuple[pathlib.Path | None, dict]:
    """The file of these results and what it holds: batch -> row. A line that was cut off is made again."""
    if folder is None:
        return None, {}
    text = json.dumps(told, sort_keys=True)
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
    disk.own_folder(folder)
    rows = [row for line in (disk.read_bytes(path) or b"").split(b"\n")[1:] if (row := _whole(line))]
    disk.write_file(path, json.dumps({"about": told}).encode() + b"\n" + b"".join(map(_line, rows)))
    return path, {row.pop("batch"): row for row in rows}


def _line(row: Mapping[str, Any]) -> bytes:
    """A line of a file of results: the row, and the checksum of what it says."""
    return json.dumps({**row, "crc": zlib.crc32(json.dumps(row).encode())}).encode() + b"\n"


def _whole(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None where it was cut off or is damaged."""
    try:
        row = disk.parsed(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.pop("crc", None) != zlib.crc32(json.dumps(row).encode()):
        return None
    needed = {"batch", *SUMS} | ({"seen"} if row.get("batch") == 0 else set())
    return row if row.keys() >= needed and all(isinstance(row[name], list) for name in SUMS) else None


def _row(batch: Mapping[str, Any], found: Mapping[str, dict], token_bytes: np.ndarray, cut: int) -> dict[str, Any]:
    """Sums of each row of a batch, as lists; rows of padding have no tokens."""
    valid = np.asarray(batch["scored"])[:, cut:]
    sizes = np.asarray(token_bytes)[np.minimum(np.asarray(batch["targets"]), len(token_bytes) - 1)][:, cut:]
    sums = {
        **{f"{by}nats": said["nats"].astype(np.float64).sum(1) for by, said in found.items()},
        **{f"{by}right": said["right"].sum(1) for by, said in found.items()},
        **{f"{by}exact": (said["right"] == valid).all(1).astype(int) for by, said in found.items()},
        "tokens": valid.sum(1), "bytes": np.where(valid, sizes, 0).sum(1),
        **{name: found[""][name].astype(np.float64).mean(0) for name in ("mass", "best", "steps")},
    }  # fmt: skip
    return {name: value.tolist() for name, value in sums.items()}


def _both_costs(rows: Rows, given: tuple, policy: Policy, cut: int, prefill: Prefill | None) -> dict[str, Any]:
    """`_costs` of a policy and, `full_...`, of the full cache."""
    if "costs" not in rows.full:
        rows.full["costs"] = _costs(rows.program, given, Policy(), cut)
    full = {f"full_{name}": value for name, value in rows.full["costs"].items()}
    return _costs(rows.program, given, policy, cut, prefill) | full


def _costs(program: Program, given: tuple, policy: Policy, cut: int, prefill: Prefill | None = None) -> dict[str, Any]:
    """Bytes of the state of a batch, and tokens per second, of a policy."""
    params, tokens, *_ = given
    run = scored(program, policy, cut, watch=False, prefill=prefill)
    jax.block_until_ready(run(*given))
    seconds = min(_seconds(run, given) for _ in range(ROUNDS))
    size = state_bytes(program, params, policy, *tokens.shape)
    return {"tokens_per_second": tokens[:, cut:].size / seconds, "state_bytes": size}


def _seconds(run: Callable, given: tuple) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*given))
    return time.perf_counter() - start


def _summary(done: Mapping[int, dict], prompt: int) -> dict[str, Any]:
    """What all batches together say."""
    parts = [done[number] for number in sorted(done)]
    of = {name: np.concatenate([np.asarray(row[name], np.float64) for row in parts]) for name in SUMS}
    of = {name: value[of["tokens"] > 0] for name, value in of.items()}
    bits = {name: of[name] / math.log(2) for name in ("nats", "full_nats")}
    share = lambda name: float(of[name].sum() / of["steps"].sum())  # noqa: E731
    found = {
        "bits_per_byte": float(bits["nats"].sum() / of["bytes"].sum()),
        "full_bits_per_byte": float(bits["full_nats"].sum() / of["bytes"].sum()),
        "difference_se": ratio_standard_error(bits["nats"] - bits["full_nats"], of["bytes"]),
        **{f"{by}accuracy": float(of[f"{by}right"].sum() / of["tokens"].sum()) for by in ("", "full_")},
        **{f"{by}exact": float(of[f"{by}exact"].mean()) for by in ("", "full_")},
        "kept_mass": share("mass"), "best_mass": share("best"), "rows": len(of["tokens"]), "prompt": prompt,
    }  # fmt: skip
    costs = {name: value for name, value in parts[0].items() if name not in SUMS and name != "seen"}
    return {f"memory/{name}": value for name, value in (found | costs).items()} | {"seen": parts[0]["seen"]}
