"""`--mode=plan`: what a config is and costs, without training: parameters, shardings, FLOPs, memory."""

import io
import math
import textwrap
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments import counting, inputs, overrides, preflight, sharding
from experiments.program import Program, build

WIDTH = 120


def plan(config: Any) -> str:
    """The plan as text: the resolved config, every parameter with its shape and sharding, and the totals."""
    preflight.check(config, num_devices=jax.device_count(), num_processes=jax.process_count())
    tokenizer_ids = _vocabulary(config)
    program = build(config, vocab_size=tokenizer_ids, mesh=sharding.make_mesh(config))
    text = io.StringIO()
    console = Console(file=text, width=WIDTH)
    console.print(resolved(config), highlight=False, markup=False)
    Console(file=text, width=1000).print(parameter_table(program))  # As wide as it needs: no name is cut.
    for line in summary(program):
        console.print(line, highlight=False)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def resolved(config: Any) -> str:
    """Every setting as one would type it, a group a paragraph; `*` marks what differs from configs/base.py."""
    flat, defaults = preflight.flatten(config.to_dict()), preflight.flatten(preflight.base())
    groups: dict[str, list[str]] = {}
    for key, value in flat.items():
        group, _, name = key.rpartition(".")
        mark = "" if key in defaults and defaults[key] == value else "*"
        groups.setdefault(group, []).append(f"{mark}{name}={overrides.shown(value)}")
    paragraphs = (
        textwrap.fill(" ".join(settings), WIDTH, initial_indent=f"  {group or 'top':<16} ", subsequent_indent=" " * 19)
        for group, settings in groups.items()
    )
    return "\n".join(["config (* differs from configs/base.py)", *paragraphs, ""])


def _vocabulary(config: Any) -> int:
    """Ids of the tokenizer. Only a byte tokenizer or a stated size is known without reading the corpus."""
    if config.data.tokenizer == "bpe" or config.data.source.startswith(("random", "digits", "task:")):
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
    size = {name: _size(count) for name, count in memory.items()}
    return [
        f"devices: {program.mesh.size} {program.mesh.devices.flat[0].device_kind} ({mesh})",
        f"parameters: {parameters['total']:,} in all, {parameters['non_embedding']:,} without embeddings",
        f"training FLOPs per token: {flops['total']:.4g} (matmuls {flops['matmul']:.4g}, attention and other mixing "
        f"{flops['context']:.4g}); {flops['total'] * tokens:.4g} for {train.steps:,} steps of "
        f"{data.batch_size * data.length:,} tokens",
        f"memory per device, estimated: {size['total']} (parameters and optimizer {size['state']}, gradients "
        f"{size['gradients']}, activations {size['activations']}, logits {size['logits']})",
    ]


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
