"""Bench rows of whole programs: the training step, per-step overhead and the data path."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import transformer
from experiments import program
from experiments.bench import plain
from experiments.bench.comparison import Comparison, Planned
from experiments.planning import hlo
from experiments.program import compiling, sharding
from experiments.workdir import disk

# d, layers, heads, hidden, vocabulary, length, batch
SHAPES = {
    "a": (256, 6, 4, 1024, 256, 256, 16),
    "b": (512, 8, 8, 2048, 8192, 512, 4),
    "overhead": (8, 6, 1, 16, 16, 4, 1),
}


def planned() -> Iterator[Planned]:
    """All rows of this module."""
    for name in SHAPES:
        yield Planned(f"train/{name}", functools.partial(_train, name))


def config(shape: str) -> Any:
    """The config of a bench shape's Transformer, with nothing that the plain step lacks."""
    D, L, N, F, V, T, B = SHAPES[shape]
    made = transformer.get_config("tiny")
    made.model.update({"width": D, "num_layers": L, "num_heads": N})
    made.model.mlp.hidden = F
    made.data.update({"length": T, "batch_size": B, "isolate": False, "source": "random", "vocab_size": V})
    made.optimizer.update({"clip": 0.0, "schedule": "constant", "warmup": 0.0})
    made.eval.sample_prompt = ""
    return made.lock()


def program_of(shape: str) -> program.Program:
    """The program of a bench shape, on one device."""
    made = config(shape)
    mesh = sharding.make_mesh(made, jax.devices()[:1])
    return program.build(made, vocab_size=SHAPES[shape][4], mesh=mesh)


def _train(shape: str) -> Comparison:
    D, L, N, F, V, T, B = SHAPES[shape]
    made = program_of(shape)
    states = {"tessera": made.init(), "plain": plain.init_state(jax.random.key(0), V=V, D=D, L=L, F=F)}
    tokens = np.random.default_rng(0).integers(0, V, (B, T + 1)).astype(np.int32)
    batch = jax.device_put({"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "scored": np.ones((B, T), bool)})
    step = made.train_step()
    plain_step = plain.train_step(N=N, compiler_options=compiling.step_options(made.mesh))

    def tessera() -> Any:
        states["tessera"], metrics = step(states["tessera"], batch)
        return metrics

    def by_hand() -> Any:
        states["plain"], loss = plain_step(states["plain"], batch["tokens"], batch["targets"])
        return loss

    candidates = {"tessera": tessera, "plain": by_hand}
    if peer := _torch_peer(shape, tokens):
        candidates["nanogpt"] = peer
    # Matmuls only, three times forward, attention counted in full: how the peers were counted.
    flops = 6 * B * T * (L * (4 * D * D + 2 * D * F) + V * D) + 12 * L * B * T * T * D
    small = shape == "overhead"
    return Comparison(
        name=f"train/{shape}",
        candidates=candidates,
        baseline="plain",
        check=lambda: _same_loss(made, shape, batch),
        flops=flops,
        work=(B * T, "tokens"),
        rounds=15 if small else 5,
        calls=20 if small else 1,
    )


def _torch_peer(shape: str, tokens: np.ndarray) -> Any:
    try:
        from experiments.bench import torch_peer
    except ImportError:
        return None
    D, L, N, F, V, _, _ = SHAPES[shape]
    return torch_peer.train_step(tokens, V=V, D=D, L=L, N=N, F=F)


def _same_loss(made: program.Program, shape: str, batch: dict) -> str:
    """The plain step's parameters, put into our model, must give the plain step's loss."""
    D, L, N, F, V, _, _ = SHAPES[shape]
    hand = plain.init(jax.random.key(1), V=V, D=D, L=L, F=F)
    want = plain.loss_fn(hand, batch["tokens"], batch["targets"], N=N)
    model = made.merge(from_plain(hand))
    got = made.objective.loss(model, batch, jax.random.key(0)).total / batch["targets"].size
    # Both are float32 means over the same numbers, summed in another order.
    return "" if abs(got - want) <= 1e-4 * want else f"loss {got} differs from the plain step's {want}"


def from_plain(hand: dict) -> dict:
    """Parameters of `plain` as ours: layers stacked."""
    layers = jax.tree.map(lambda *xs: jnp.stack(xs), *hand["layers"])
    q, k, v = jnp.split(layers["qkv"], 3, axis=-1)
    block = {
        "mixer": {name: {"kernel": kernel} for name, kernel in {"q": q, "k": k, "v": v, "out": layers["o"]}.items()},
        "mixer_norm": {"scale": layers["norm1"]},
        "channel": {"up": {"kernel": layers["up"]}, "down": {"kernel": layers["down"]}},
        "channel_norm": {"scale": layers["norm2"]},
    }
    return {
        "embedding": hand["embedding"],
        "norm": {"scale": hand["norm"]},
        "stack": {"period": {"0_attention": block}},
    }


def data_path(rows: int = 16, length: int = 512, tokens: int = 50_000_000, steps: int = 300) -> dict[str, float]:
    """Packed rows from a memory-mapped file of uint16 through the checkpointable iterator."""
    import data

    with disk.temporary_folder() as folder:
        path = os.path.join(folder, "tokens.bin")
        disk.write_file(path, np.random.default_rng(0).integers(0, 50_000, tokens, dtype=np.uint16).tobytes())
        starts = np.arange(0, tokens, 1024, dtype=np.int64)
        split = data.Tokens(np.memmap(path, np.uint16, "r"), starts, tokens)
        batches = data.Loader(split, batch_size=rows, length=length, pad=0).iterate()
        next(batches)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            next(batches)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done = rows * length * steps
    return {"tokens_per_second": done / wall, "tokens_per_cpu_second": done / cpu}


def start_up(shape: str) -> dict[str, Any]:
    """A new process up to the end of its first step, and its peak memory after three (compilation cached).

    Seconds since the process began, CPU seconds in all and after the import of jax, and the ten largest arrays.
    """
    code = (
        "import sys, time, json; t = time.time(); import jax; cpu = time.process_time()\n"
        "from experiments.bench import training\n"
        f"print(json.dumps(training.first_step({shape!r}, t, cpu)))"
    )
    env = dict(os.environ, JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir or "")
    for _ in range(2):  # The first fills the compilation cache.
        begin = time.time()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        found["seconds_to_first_step"] = found.pop("first_step_at") - begin
    return found


def first_step(shape: str, begin: float, with_jax: float) -> dict[str, Any]:
    """Runs three steps of a bench shape in this process, whose import of jax took `with_jax` CPU seconds."""
    import resource

    row, made, batch = _train_once(shape)
    row()
    at, cpu = time.time(), time.process_time()
    row()
    row()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = made.train_step().lower(made.abstract, batch).compile().as_text()
    largest = [f"{size / 2**20:.0f} MiB {what}" for size, what in hlo.largest(hlo.computations(text), 10)]
    return {
        "first_step_at": at,
        "peak_memory_bytes": peak,
        "import_seconds": at - begin,
        "cpu_seconds": cpu,
        "cpu_seconds_after_jax": cpu - with_jax,
        "largest": largest,
    }


def _train_once(shape: str) -> tuple[Callable[[], None], program.Program, dict]:
    made = program_of(shape)
    D, L, N, F, V, T, B = SHAPES[shape]
    tokens = np.random.default_rng(0).integers(0, V, (B, T + 1)).astype(np.int32)
    batch = jax.device_put({"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "scored": np.ones((B, T), bool)})
    state, step = [made.init()], made.train_step()

    def run() -> None:
        state[0], metrics = step(state[0], batch)
        jax.block_until_ready(metrics)

    return run, made, batch
