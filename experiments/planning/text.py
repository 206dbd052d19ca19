"""A plan as text: the resolved config, parameters, shardings, FLOPs, memory, and the compiler's figures of the step."""

import io
import math
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments import preflight
from experiments.planning import chips
from experiments.program import Program, build, counting, inputs, sharding
from experiments.report import page
from experiments.settings import keys, overrides
from experiments.workdir import companions
from kernels import context_attention

WIDTH = 120
MANY = 4  # Passes from which repeated text is worth less (Muennighoff et al. 2023, arXiv:2305.16264, section 5).


def plan(config: Any) -> str:
    """The plan as text: the resolved config, every parameter with its shape and sharding, and the totals."""
    preflight.check(config, num_devices=jax.device_count())
    tokenizer_ids, assumed = inputs.vocabulary(config)
    program = build(config, vocab_size=tokenizer_ids, mesh=sharding.make_mesh(config))
    program = companions.attach(program, vocab_size=tokenizer_ids)
    text = io.StringIO()
    console = Console(file=text, width=WIDTH)
    for line in [*summary(program), *([f"assumed: {assumed}"] if assumed else []), ""]:
        console.print(line, highlight=False)
    Console(file=text, width=1000).print(parameter_table(program))  # As wide as it needs: no name is cut.
    console.print(f"\n{resolved(config)}", highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def resolved(config: Any) -> str:
    """Every setting as it is typed, a group a paragraph; `*` marks values that differ from the defaults."""
    flat, defaults = keys.flatten(config.to_dict()), keys.flatten(keys.base())
    groups: dict[str, list[str]] = {}
    for key, value in flat.items():
        group, _, name = key.rpartition(".")
        mark = "" if key in defaults and defaults[key] == value else "*"
        groups.setdefault(group, []).append(f"{mark}{name}={overrides.shown(value)}")
    paragraphs = (
        textwrap.fill(" ".join(settings), WIDTH, initial_indent=f"  {group or 'top':<16} ", subsequent_indent=" " * 19)
        for group, settings in groups.items()
    )
    return "\n".join(["config (* differs from the defaults)", *paragraphs, ""])


def vocabulary(config: Any) -> int:
    """Ids of the tokenizer, or those that are assumed (see `inputs.vocabulary`)."""
    return inputs.vocabulary(config)[0]


COLUMNS = ("parameter", "shape", "axes", "sharding", "bytes/device")


def parameter_table(program: Program) -> Table:
    """`parameter_rows` as a table."""
    table = Table(title="parameters", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="right" if name == "bytes/device" else "left")
    for row in parameter_rows(program):
        table.add_row(*row)
    return table


def parameter_rows(program: Program) -> list[list[str]]:
    """One row per parameter: path, shape, logical axes, sharding, bytes on each device."""
    rows = []
    axes = jax.tree.leaves(program.axes, is_leaf=lambda a: isinstance(a, tuple))
    leaves = jax.tree_util.tree_leaves_with_path(program.abstract["params"])
    placed = jax.tree.leaves(program.shardings["params"])
    for (path, leaf), names, where in zip(leaves, axes, placed, strict=True):
        size = math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        name = "/".join(str(key.key) for key in path)
        axes_text = ",".join(a or "-" for a in names)
        spec = ",".join(str(part or "-") for part in where.spec) or "-"
        rows.append([name, f"{leaf.dtype}{list(leaf.shape)}", axes_text, spec, f"{size:,}"])
    return rows


def summary(program: Program) -> list[str]:
    """The totals, one line each."""
    parameters, flops = counting.parameters(program), counting.flops_per_token(program)
    memory, held = counting.memory(program), counting.held(program)
    train, data = program.config.train, program.config.data
    tokens = train.steps * data.batch_size * data.length
    mesh = " x ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items() if size > 1) or "one device"
    size = {name: _size(count) for name, count in memory.items()}
    beside = f"companions {size['companions']}, " if program.companions else ""
    mixing = ", ".join(f"{kind} {flops[kind]:.4g}" for kind in counting.MIXING if flops[kind])
    return [
        f"devices: {program.mesh.size} {program.mesh.devices.flat[0].device_kind} ({mesh})",
        *_crossing(program),
        f"parameters: {parameters['total']:,} {f'train, {held:,} are held' if held else 'in all'}, "
        f"{parameters['non_embedding']:,} {'train ' if held else ''}without embeddings",
        f"training FLOPs per token: {flops['total']:.4g} (matmuls {flops['matmul']:.4g}, {mixing}); "
        f"{flops['total'] * tokens:.4g} for {train.steps:,} steps of {data.batch_size * data.length:,} tokens",
        *_prompts(program),
        f"memory per device, estimated: {size['total']} (parameters and optimizer {size['state']}, gradients "
        f"{size['gradients']}, {beside}activations {size['activations']}, logits {size['logits']})",
        *_passes(program.config),
    ]


def _prompts(program: Program) -> list[str]:
    """What a prompt costs where it does not pass all layers."""
    if program.spec.kind != "swiftkv":
        return []
    length = program.config.data.length
    mine, whole = counting.prompt_flops(program, length)
    return [f"FLOPs per token of a prompt of {length} tokens: {mine:.4g}, {mine / whole:.1%} of passing all layers"]


def _passes(config: Any) -> list[str]:
    """How often the text is read, where that can be known, and a warning where it is read too often."""
    count, assumed = inputs.passes(config)
    if not count:
        return []
    often = "; read more than 4 times, text teaches less each time: take more of it, or fewer train.steps"
    return [f"passes over the training text: {_figure(count)} ({assumed}){often if count > MANY else ''}"]


def _crossing(program: Program) -> list[str]:
    """How attention crosses devices that share a sequence, and, where "auto" chose it, why."""
    partition, asked = program.spec.partition, program.config.parallel.schedule
    if not partition.schedule:
        return []
    P, shapes = partition.ways("sequence"), sharding.attention_shapes(program.config)
    why = context_attention.explain(*shapes, program.objective.mask, P, program.spec.dtype)
    if asked != "auto":
        why = partition.schedule
    elif not why.startswith(f"{partition.schedule}:"):
        why = f"{partition.schedule}: it keeps tokens in the order that every mixer of the model can follow"
    return [f"sequence over {P} devices: {why}"]


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _figure(value: float) -> str:
    """A number with two digits, or all those before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def answer(config: Any, record: Mapping[str, Any]) -> list[str]:
    """Whether it fits, how long it takes and what it costs, in the first lines; `record` is plan.json."""
    asked, chip = record["tried"][0], record["chip"]
    lines = [f"{record['topology']}: {_verdict(asked)}"]
    if r := asked["roofline"]:
        price = config.plan.price or chip["price"]
        cost = (
            f"{_figure(r['price'])} dollars at {price:g} an hour" if price else "price not known (--config.plan.price)"
        )
        lines.append(
            f"{config.train.steps:,} steps: {page.duration(r['days'] * 86400)} at best, {_figure(r['chip_hours'])} "
            f"hours of a device, {cost}"
            f"{f' ({chips.PRICES})' if price and not config.plan.price else ''}"
        )
    if chip and chip["compiler"] != "tpu":
        lines.append(
            f"compiled for {record['devices']} CPU devices: collectives and their bytes are those of the cut program; "
            f"memory is what this program takes (a {chip['name']} fuses otherwise), and no transfer is hidden here"
        )
    if chip and config.model.dtype == "float32":
        lines.append(
            f"model.dtype=float32: the figures are the {chip['name']}'s for bfloat16, which it runs several times as "
            "fast; add --config.model.dtype=bfloat16"
        )
    return [*lines, f"compiled here in {asked['compile_seconds']:.0f} s", ""]


def compiled(record: Mapping[str, Any]) -> list[str]:
    """The compiler's figures, one a line; `record` is plan.json."""
    lines = []
    for tried in record["tried"]:
        changed = ", ".join(f"{key}={value}" for key, value in tried["changes"].items())
        lines.append("")
        lines.append(f"compiled for {record['topology']}{f' with {changed}' if changed else ''}: {_verdict(tried)}")
        lines += [f"  {_size(size)}: {name}" for size, name in tried["largest"][:4]] if not changed else []
        lines += [f"  {line}" for line in _collectives(tried)]
        if played := {name: f"{seconds * 1e3:.1f}" for name, seconds in tried["played"].items()}:
            lines.append(
                f"  as scheduled, of {played['links']} ms on links {played['waiting']} are waited for, beside "
                f"{played['work']} ms of work"
            )
        if line := _speed(tried["roofline"]):
            lines.append(f"  {line}")
    if len(fitting := [t for t in record["tried"] if t["roofline"]]) > 1:
        best = min(fitting, key=lambda t: t["roofline"]["step_seconds"])
        lines += ["", f"fastest by the roofline: {' x '.join(f'mesh.{a}={n}' for a, n in best['mesh'].items())}"]
    return lines


def _verdict(tried: Mapping[str, Any]) -> str:
    of = f" of {_size(tried['available'])}" if tried["available"] else ""
    if not tried["fits"]:
        return f"does not fit: it needs {_size(tried['needed'])}{of} on each device" if of else "does not fit"
    parts = ", ".join(f"{name} {_size(size)}" for name, size in tried["memory"].items())
    return f"fits: {_size(tried['needed'])}{of} on each device ({parts})"


def collective_totals(tried: Mapping[str, Any]) -> list[tuple[str, str, int, float, float]]:
    """(kind, mesh axes, times, bytes a device sends a step, of these beside other work), largest first."""
    totals: dict[tuple[str, str], list[float]] = {}
    for c in tried["collectives"]:
        entry = totals.setdefault((c["kind"], ", ".join(c["axes"])), [0, 0.0, 0.0])
        sent = c["times"] * c["sent"]
        for i, value in enumerate((c["times"], sent, sent if c["overlapped"] else 0.0)):
            entry[i] += value
    return sorted(((*key, *map(int, v)) for key, v in totals.items()), key=lambda row: -row[3])


def _collectives(tried: Mapping[str, Any]) -> list[str]:
    return [
        f"{kind} over {axes}: {times} a step, {_size(sent)} sent by each device, {_size(beside)} beside other work"
        for kind, axes, times, sent, beside in collective_totals(tried)
    ]


def _speed(roofline: Mapping[str, float]) -> str:
    if not roofline:
        return ""
    r = {name: value * 1e3 for name, value in roofline.items()}
    return (
        f"roofline: {r['step_seconds']:.1f} ms a step at best (compute {r['compute_seconds']:.1f}, memory "
        f"{r['memory_seconds']:.1f}, transfers beside work {r['overlapped_seconds']:.1f}, alone "
        f"{r['exposed_seconds']:.1f}), {roofline['tokens_per_second']:,.0f} tokens/s, MFU {roofline['mfu']:.0%}, "
        f"{roofline['days']:.2f} days for all steps"
    )
