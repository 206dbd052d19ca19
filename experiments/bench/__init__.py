"""`--mode=bench`: correctness first, then speed as ratios, all candidates of a row interleaved in one process."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import workdir as files
from experiments.bench import (
    attention,
    checks,
    columns,
    context,
    controls,
    decoding,
    drafts,
    experts,
    memories,
    mixers,
    packed,
    pattention,
    prefill,
    recurrent,
    stalls,
    storage,
    timing,
    tokens,
    training,
)
from experiments.bench import tune as search
from experiments.bench.comparison import Comparison, Planned
from experiments.program import counting
from experiments.settings.errors import Refused

OTHER: dict[str, Callable[[], dict[str, Any]]] = {
    "data": training.data_path,
    "startup/a": functools.partial(training.start_up, "a"),
    "startup/b": functools.partial(training.start_up, "b"),
    "past/b": decoding.past,
    "serve/stalls/long_texts": functools.partial(stalls.long_prompt, 1500),
    # Steps of short rows are short, so that less of a prompt goes beside one.
    "serve/stalls/short_texts": functools.partial(stalls.long_prompt, 16, chunks=(8,)),
}


def run(
    *, filter: str = "", workdir: str | None = None, topology: str = "", tune: bool = False
) -> list[dict[str, Any]]:
    """Runs the rows whose name contains `filter`, prints a table, writes `bench.json` and `bench.png` to `workdir`.

    With `topology` (a TPU generation: v5e, v5p, v6e) nothing is timed: kernels are compiled for it, and the compiler's
    figures are printed. With `tune` the tiles of the rows' kernels are searched instead (`experiments.bench.tune`).
    """
    if tune and topology:
        raise Refused(f"--tune times kernels, and --topology={topology} has no chip; use one of them.")
    console = Console(width=132, highlight=False)
    platform = jax.devices()[0].platform
    rows = [row for row in planned("tpu" if topology else platform) if filter in row.name]
    if not rows and not any(filter in name for name in OTHER):
        raise Refused(f"--bench_filter={filter} is in no row's name; use e.g. --bench_filter=attention/.")
    folder = pathlib.Path(workdir or "runs/bench")
    if topology:
        found = [_compile(row, topology, console) for row in rows if row.ahead_of_time]
    elif tune:
        found = [said for row in rows for said in search.row(row, console)]
    else:
        found = _measure(rows, filter, console)
    record = {"platform": platform, "topology": topology, "tuned": tune, "rows": found}
    files.write_file(folder / "bench.json", json.dumps(record, indent=1).encode())
    if not (topology or tune) and found:
        _plot(found, folder / "bench.png")
        mixers.plot(found, folder / "mixers.png")
    console.print(f"written to {folder / 'bench.json'}")
    return found


def planned(platform: str) -> list[Planned]:
    """Every row for `platform` (cpu, gpu, tpu), not built yet."""
    return [
        *attention.planned(platform),
        *context.planned(platform),
        *pattention.planned(platform),
        *recurrent.planned(platform),
        *experts.planned(platform),
        *mixers.planned(platform),
        *memories.planned(),
        *prefill.planned(),
        *columns.planned(platform),
        *training.planned(),
        *checks.planned(),
        *storage.planned(),
        *drafts.planned(),
        *decoding.planned(),
        *controls.planned(),
        *packed.planned(),
        *tokens.planned(),
    ]


def _measure(rows: list[Planned], filter: str, console: Console) -> list[dict[str, Any]]:
    flops, bandwidth = counting.matmul_rate(seconds=0.5), copy_rate()
    console.print(
        f"{jax.devices()[0].device_kind}, {jax.device_count()} device(s), jax {jax.__version__}; measured here: "
        f"matmul {flops / 1e9:.0f} GFLOP/s (float32), copy {bandwidth / 1e9:.1f} GB/s"
    )
    if jax.devices()[0].platform != "cpu":
        flops = counting.matmul_rate(jnp.bfloat16, seconds=0.5)
        console.print(f"matmul {flops / 1e9:.0f} GFLOP/s (bfloat16), the ceiling of the shares below")
    found = []
    for plan in rows:
        try:
            row = plan.build()
            wrong = row.check()
            timed = [] if wrong else _timed(row, flops, console)
        except Exception as error:  # Whatever compiler or device raise is the result of this row, not of the others.
            wrong = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        if wrong:
            console.print(f"{plan.name}: WRONG, not timed: {wrong}")
            timed = [{"row": plan.name, "wrong": wrong}]
        found += timed
        jax.clear_caches()
    found += _others(filter, console)
    return found


def _timed(row: Comparison, ceiling: float, console: Console) -> list[dict[str, Any]]:
    timings = timing.interleave(row.candidates, rounds=row.rounds, calls=row.calls)
    base = timings[row.baseline]
    table = Table(title=row.name, title_justify="left")
    unit = row.work[1]
    for name in ("", "wall ms", "spread", "CPU ms", f"x {row.baseline}", "x by CPU", "GFLOP/s", "share", "temp MiB",
                 f"{unit}/s" if unit else "", *([row.counted[0]] if row.counted[0] else [])):  # fmt: skip
        table.add_column(name, justify="right" if name else "left")
    records = []
    for name, t in timings.items():
        flops, work = row.of(row.flops, name), row.of(row.work[0], name)
        rate = flops / t.median
        record = {
            "row": row.name,
            "candidate": name,
            "baseline": row.baseline,
            "wall_ms": t.median * 1e3,
            "cpu_ms": t.median_cpu * 1e3,
            "spread": t.spread,
            "times_faster": timing.ratio(t, base),
            "times_faster_cpu": timing.cpu_ratio(t, base),
            "flops_per_second": rate,
            "share_of_ceiling": rate / ceiling,
            "temporaries": row.temporaries.get(name),
            "work_per_second": work / t.median,
            "unit": unit,
        }
        if row.counted[0]:
            record[row.counted[0]] = row.counted[1][name]
        records.append(record)
        temp = record["temporaries"]
        table.add_row(
            name, f"{t.median * 1e3:.2f}", f"{t.spread:.0%}", f"{t.median_cpu * 1e3:.2f}",
            f"{record['times_faster']:.2f}", f"{record['times_faster_cpu']:.2f}",
            f"{rate / 1e9:.1f}" if flops else "", f"{rate / ceiling:.0%}" if flops else "",
            "" if temp is None else f"{temp / 2**20:.1f}", f"{record['work_per_second']:,.0f}" if unit else "",
            *([f"{row.counted[1][name]:,}"] if row.counted[0] else []),
        )  # fmt: skip
    console.print(table)
    return records


def _others(filter: str, console: Console) -> list[dict[str, Any]]:
    """Rows that are not a comparison of calls: the data path, start-up and memory of processes, a cache's growth."""
    found = []
    for name, measure in OTHER.items():
        if filter not in name:
            continue
        result = measure()
        found.append({"row": name, **result})
        numbers = (f"{key} {value:,.2f}" for key, value in result.items() if key != "largest")
        console.print(f"{name}: " + ", ".join(numbers))
        for array in result.get("largest", ()):
            console.print(f"  {array}")
    return found


def copy_rate(size: int = 1 << 28) -> float:
    """Measured bytes per second of a copy, read and written bytes counted."""
    x = jnp.asarray(np.ones(size // 4, np.float32))
    copy = jax.jit(lambda x: x + 1)
    best = min(timing.interleave({"copy": lambda: copy(x)}, rounds=5)["copy"].wall)
    return 2 * size / best


def _compile(row: Planned, generation: str, console: Console) -> dict[str, Any]:
    try:
        said = {"compiles": True, **row.ahead_of_time(generation)}
    except Exception as error:  # Whatever the compiler raises is the result of this row.
        said = {"compiles": False, "error": str(error).splitlines()[0][:200]}
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in said.items())
    console.print(f"{row.name} for {generation}: " + ", ".join(shown))
    return {"row": row.name, "topology": generation, **said}


def _plot(found: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Horizontal bars: how many times faster than its baseline each candidate is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = [r for r in found if "times_faster" in r and r["candidate"] != r["baseline"]]
    if not bars:
        return
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.28 * len(bars)), layout="constrained")
    names = [f"{r['row']}  {r['candidate']} / {r['baseline']}" for r in bars]
    axes.barh(names, [r["times_faster"] for r in bars], color="#0072b2", height=0.6)
    axes.axvline(1.0, color="#444444", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the baseline (wall time, median of paired rounds)")
    axes.spines[["top", "right"]].set_visible(False)
    files.write_figure(path, figure, format="png", dpi=120)
    plt.close(figure)
