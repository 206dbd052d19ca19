"""`--mode=plan`: what a config is and costs, without training: parameters, shardings, FLOPs, memory."""

import math
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments import counting, inputs, preflight, sharding
from experiments.program import Program, build


def plan(config: Any) -> str:
    """The plan as text: the resolved config, every parameter with its shape and sharding, and the totals."""
    preflight.check(config, num_devices=jax.device_count(), num_processes=jax.process_count())
    tokenizer_ids = _vocabulary(config)
    program = build(config, vocab_size=tokenizer_ids, mesh=sharding.make_mesh(config))
    console = Console(record=True, quiet=True, width=120)
    console.print(str(config).rstrip(), highlight=False, markup=False)
    console.print(parameter_table(program))
    for line in summary(program):
        console.print(line, highlight=False)
    return console.export_text()


def _vocabulary(config: Any) -> int:
    """Ids of the tokenizer. Only a byte tokenizer or a stated size is known without reading the corpus."""
    if config.data.tokenizer == "bpe" or config.data.source in ("random", "digits"):
        return config.data.vocab_size or inputs.load(config).tokenizer.vocab_size
    return inputs.byte_vocabulary()


def parameter_table(program: Program) -> Table:
    """One row per parameter: path, shape, logical axes, sharding, bytes on each device."""
    table = Table(title="parameters", title_justify="left")
    for name in ("parameter", "shape", "axes", "sharding", "bytes/device"):
        table.add_column(name, justify="right" if name == "bytes/device" else "left")
    axes = jax.tree.leaves(program.axes, is_leaf=lambda a: isinstance(a, tuple))
    leaves = jax.tree_util.tree_leaves_with_path(program.abstract["params"])
    placed = jax.tree.leaves(program.shardings["params"])
    for (path, leaf), names, where in zip(leaves, axes, placed, strict=True):
        size = math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        name = "/".join(str(key.key) for key in path)
        axes_text = ",".join(a or "-" for a in names)
        spec = ",".join(str(part or "-") for part in where.spec) or "-"
        table.add_row(name, f"{leaf.dtype}{list(leaf.shape)}", axes_text, spec, f"{size:,}")
    return table


def summary(program: Program) -> list[str]:
    """The totals, one line each."""
    parameters, flops = counting.parameters(program), counting.flops_per_token(program)
    memory = counting.memory(program)
    train, data = program.config.train, program.config.data
    tokens = train.steps * data.batch_size * data.length
    mesh = " x ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items() if size > 1) or "one device"
    gib = {name: f"{size / 2**30:.3f} GiB" for name, size in memory.items()}
    return [
        f"devices: {program.mesh.size} {program.mesh.devices.flat[0].device_kind} ({mesh})",
        f"parameters: {parameters['total']:,} in all, {parameters['non_embedding']:,} without embeddings",
        f"training FLOPs per token: {flops['total']:.4g} (matmuls {flops['matmul']:.4g}, attention and other mixing "
        f"{flops['context']:.4g}); {flops['total'] * tokens:.4g} for {train.steps:,} steps of "
        f"{data.batch_size * data.length:,} tokens",
        f"memory per device, estimated: {gib['total']} (parameters and optimizer {gib['state']}, gradients "
        f"{gib['gradients']}, activations {gib['activations']}, logits {gib['logits']})",
    ]
