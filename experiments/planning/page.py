"""plan.html: the plan as one self-contained page."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.planning import text
from experiments.report import page


def write(config: Any, record: Mapping[str, Any], parameters: Sequence[Sequence[str]]) -> str:
    """The page of `record` (plan.json); `parameters` as `text.parameter_rows` gives them."""
    asked = record["tried"][0]
    data, roofline = config.data, asked["roofline"]
    tokens = config.train.steps * data.batch_size * data.length
    mesh = " × ".join(f"{axis} {size}" for axis, size in asked["mesh"].items()) or "one device"
    tiles = [
        page.tile("fits" if asked["fits"] else "does not fit", page.memory(asked["needed"]), main=True),
        page.tile("parameters", page.count(record["parameters"]["total"])),
        page.tile("training FLOPs a token", page.power(record["flops_per_token"]["total"])),
    ]
    if roofline:
        tiles += [
            page.tile("tokens/s at best", page.count(roofline["tokens_per_second"])),
            page.tile("MFU at best", page.percent(roofline["mfu"])),
            page.tile(f"for {page.count(tokens)} tokens", page.duration(roofline["days"] * 86400)),
            page.tile("hours of a device", page.count(roofline["chip_hours"])),
        ]
        if roofline["price"]:
            tiles.append(page.tile("dollars at best", page.count(roofline["price"])))
    body = [
        '<p class="kicker">Plan</p>',
        f"<h1>{page.escape(record['topology'])}</h1>",
        f'<p class="sub"><span>{record["devices"]} devices</span><span>{page.escape(mesh)}</span></p>',
        f'<div class="tiles">{"".join(tiles)}</div>',
        *(page.note(line) for line in text.answer(config, record)[1:] if line),
        page.section("memory", "Memory of each device", *_memory(record)),
        page.section("transfers", "Transfers", *_transfers(asked)),
        page.section("time", "Time of a step", *_time(record)),
        page.section("tried", "Other settings, compiled", _tried(record)) if len(record["tried"]) > 1 else "",
        page.section("parameters", "Parameters", _parameters(parameters)),
        page.section("config", "Config", f"<pre>{page.escape(text.resolved(config))}</pre>"),
    ]
    return page.document(f"Plan for {record['topology']}", body)


def _memory(record: Mapping[str, Any]) -> list[str]:
    asked = record["tried"][0]
    rows = [[page.escape(name), page.memory(size)] for name, size in asked["memory"].items()]
    rows.append(["<b>in all</b>", page.memory(asked["needed"])])
    if asked["available"]:
        rows.append(["the device has", page.memory(asked["available"])])
    largest = [[page.escape(name), page.memory(size)] for size, name in asked["largest"]]
    return [
        page.table(["By the compiler", "Bytes"], rows, numeric=(1,), kind="narrow"),
        "<h3>The largest arrays that the step makes</h3>",
        page.table(["Array", "Bytes"], largest, numeric=(1,)) if largest else page.note("The compiler names none."),
    ]


def _transfers(asked: Mapping[str, Any]) -> list[str]:
    rows = [
        [kind, axes, str(times), page.memory(sent), page.percent(beside / sent if sent else 0.0)]
        for kind, axes, times, sent, beside in text.collective_totals(asked)
    ]
    if not rows:
        return [page.note("None: no device needs another." if asked["fits"] else "Not known: the step does not fit.")]
    head = ["Collective", "Mesh axes", "A step", "Sent by each device a step", "Beside other work"]
    said = "Counted in the compiled program, loops by their trips. Beside other work: scheduled between start and end."
    return [page.table(head, rows, numeric=(2, 3, 4)), page.note(said)]


def _time(record: Mapping[str, Any]) -> list[str]:
    roofline, chip = record["tried"][0]["roofline"], record["chip"]
    if not roofline:
        return [page.note("No time is computed: the step does not fit, or the figures of this machine are unknown.")]
    names = {
        "compute_seconds": f"compute, at {page.power(chip['flops'])} FLOP/s",
        "memory_seconds": f"memory, at {chip['bandwidth'] / 1e9:,.0f} GB/s",
        "overlapped_seconds": f"transfers beside work, at {chip['link'] / 1e9:.0f} GB/s a link and way",
        "exposed_seconds": "transfers alone",
        "step_seconds": "<b>a step: the longest of the first three, and the last</b>",
    }
    rows = [[label, f"{roofline[name] * 1e3:,.2f} ms"] for name, label in names.items()]
    said = "A bound by the vendor's figures, not a measurement: no step is faster, real ones are slower."
    return [page.table(["Part", "At the ceiling"], rows, numeric=(1,), kind="narrow"), page.note(said)]


def _tried(record: Mapping[str, Any]) -> str:
    rows = []
    for tried in record["tried"]:
        changes = ", ".join(f"{key}={value}" for key, value in tried["changes"].items()) or "as asked for"
        r = tried["roofline"]
        rows.append(
            [
                page.escape(changes),
                "fits" if tried["fits"] else "does not fit",
                page.memory(tried["needed"]),
                f"{r['step_seconds'] * 1e3:,.1f} ms" if r else "–",
                page.percent(r["mfu"]) if r else "–",
            ]
        )
    return page.table(["Settings", "", "Bytes a device", "A step at best", "MFU at best"], rows, numeric=(2, 3, 4))


def _parameters(rows: Sequence[Sequence[str]]) -> str:
    cells = [[page.escape(cell) for cell in row] for row in rows]
    return f'<div class="scroll">{page.table([page.escape(c) for c in text.COLUMNS], cells, numeric=(4,))}</div>'
