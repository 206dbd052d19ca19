"""Reports: one self-contained page from the files of a workdir, or from several workdirs side by side.

`write(workdir)` and `compare(workdirs, out)` read only the files that `experiments.workdir` describes, so they work at
any time: on a finished run, one under way, one that crashed, one that was never evaluated.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments import workdir as files
from experiments.report import data, grouping, kept, more, page, plots, routing

__all__ = ["compare", "write"]

_MAX_SAMPLES, _MAX_TEXT, _MAX_OTHER, _MAX_PROMPTS, _MAX_BESIDE = 10, 1500, 12, 4, 900
# Small charts against steps: key, whether it is a timing, and the vertical axis.
_SMALL = (
    ("train/learning_rate", False, plots.Axis("Learning rate", "plain", zero=True)),
    ("train/grad_norm", False, plots.Axis("Gradient norm", "plain")),
    ("tokens_per_second", True, plots.Axis("Tokens per second", "count", zero=True)),
    ("mfu", True, plots.Axis("Model FLOPs utilisation", "plain", zero=True)),
    ("peak_memory_bytes", True, plots.Axis("Peak memory", "bytes", zero=True)),
    ("data_wait_seconds", True, plots.Axis("Time waiting for data", "seconds", zero=True)),
)
_DRAWN = {"train/loss", "eval/loss", "train/bits_per_byte", data.BITS, f"{data.BITS}_se", "step", "tokens", "flops"}


def write(workdir: str | os.PathLike) -> pathlib.Path:
    """Builds `report.html` in `workdir` and returns its path.

    Raises ValueError if `workdir` holds no run, `experiments.workdir.WorkdirError` (an OSError) on a full disk.
    """
    run = data.load(workdir)
    texts, experts, drafts, cached = _evaluated(run)
    body = [
        _header(run),
        page.section("curves", "Learning curves", *_curves(run)),
        page.section("training", "Training", *_training(run)),
        *([page.section("texts", "Other texts", *texts)] if texts else []),
        *([page.section("routing", "Experts", *experts)] if experts else []),
        page.section("samples", "Samples over training", *_samples(run)),
        *([page.section("drafts", "Drafts", *drafts)] if drafts else []),
        *([page.section("kept", "What attention kept", *cached)] if cached else []),
        page.section("configuration", "Configuration", _configuration(run)),
        page.section("environment", "Data and environment", _environment(run)),
    ]
    path = run.path / files.REPORT
    files.write_file(path, page.document(f"{run.name} · run report", body).encode("utf-8"))
    return path


def _evaluated(run: data.Run) -> list[list[str]]:
    """The sections of what evaluations left: other texts, experts, drafts, caches. [] where there is nothing."""
    return [
        more.readable(files.TEXTS, lambda: more.texts(run)),
        more.readable(files.ROUTING, lambda: routing.parts(run, run.path / files.ROUTING)),
        more.readable(files.DRAFTS, lambda: _drafts(run)),
        more.readable(files.MEMORIES, lambda: kept.section(run.path)),
    ]


def compare(workdirs: Sequence[str | os.PathLike], out: str | os.PathLike, names: Sequence[str] = ()) -> pathlib.Path:
    """Builds one page that compares runs, writes it to `out` and returns its path.

    Runs whose configs differ in their seeds only are one group, drawn as a line with a band. Raises ValueError on an
    empty list or a folder without a run.

    Args:
      workdirs: of the runs; one that is named twice counts once.
      out: the path of the page.
      names: what the run in each workdir is called, see `grouping.group`.
    """
    if not workdirs:
        raise ValueError("runs='' names no workdir; give at least one, e.g. --runs=runs/a,runs/b.")
    first: dict[pathlib.Path, int] = {}
    for i, workdir in enumerate(workdirs):
        first.setdefault(pathlib.Path(workdir).resolve(), i)
    runs = [data.load(workdirs[i]) for i in first.values()]
    groups = grouping.group(runs, [names[i] for i in first.values()] if names else ())
    path = pathlib.Path(out)
    files.write_file(path, page.document(_title(groups), _comparison(groups)).encode("utf-8"))
    return path


def _header(run: data.Run) -> str:
    status, loud = data.status(run)
    environment = data.mapping(run.run, "environment")
    parts = [
        status,
        f"config {run.record['hash']}" if run.record.get("hash") else "",
        page.shown(environment.get("devices", "")),
        str((run.starts or [""])[0]).replace("T", " ").replace("Z", " UTC"),
    ]
    command = run.record.get("command")
    again = f"<h3>Run it again</h3><pre>{page.escape(command)}</pre>" if command else ""
    return (
        f'<header><p class="kicker">Run report</p><h1>{page.escape(run.name)}</h1><p class="sub">'
        + "".join(f"<span>{page.escape(part)}</span>" for part in parts if part)
        + "</p>"
        + (page.note(loud, "warn") if loud else "")
        + "".join(page.note(text, "warn") for text in run.notes)
        + f'</header><section id="summary"><div class="tiles">{_tiles(run)}</div></section>'
        + f'<section id="again">{again}{_changes(run)}</section>'
    )


def _tiles(run: data.Run) -> str:
    last = run.last(data.BITS) or (run.result if data.BITS in run.result else {})
    train = data.smooth(data.series(run, "train/loss")[1])
    parameters = data.mapping(run.run, "parameters")
    final = run.last("tokens") or {}
    tiles = []
    if last:
        bits = page.bits(last)
        step = data.number(last, "step")
        tiles.append(page.tile(f"bits per byte ± standard error, step {page.count(step)}", bits, main=True))
    else:
        tiles.append(page.tile("bits per byte", "not evaluated"))
    if len(train) and np.isfinite(train[-1]):
        tiles.append(page.tile("training loss, nats per token", f"{train[-1]:.3f}"))
    total, embedding = data.number(parameters, "total"), data.number(parameters, "embedding")
    share = f" ({page.count(embedding)} embedding)" if np.isfinite(embedding) else ""
    candidates = [
        (f"parameters{share}", page.count(total)),
        ("training tokens", page.count(data.number(final, "tokens"))),
        ("training FLOPs", page.power(data.number(final, "flops"))),
        ("training wall time", page.duration(data.last_timing(run, "seconds"))),
        ("tokens per second, median", page.count(data.median_timing(run, "tokens_per_second"))),
        ("model FLOPs utilisation, median", page.percent(data.median_timing(run, "mfu"))),
        ("standing still for checkpoints", page.duration(data.last_timing(run, "checkpoint_seconds"))),
        ("peak memory", page.memory(data.last_timing(run, "peak_memory_bytes"))),
        ("decoding state of a sequence", page.memory(data.number(run.run, "state_bytes"))),
    ]
    return "".join(tiles) + "".join(page.tile(label, value) for label, value in candidates if value != "–")


def _changes(run: data.Run) -> str:
    """The settings in which the config differs from the base that config.json carries."""
    base = run.base
    keys = _changed(run)
    if not base:
        return ""
    if not keys:
        return page.note("All settings are those of the base config.")
    rows = [
        [f"<code>{page.escape(key)}</code>"]
        + [
            f'<span class="value">{page.escape(page.shown(tree[key])) if key in tree else "–"}</span>'
            for tree in (base, run.config)
        ]
        for key in keys
    ]
    table = page.table(["Setting", "Base", "This run"], rows, kind="narrow changes")
    return f"<h3>What differs from the base config</h3>{table}"


def _changed(run: data.Run) -> list[str]:
    base, absent = run.base, object()
    keys = dict.fromkeys([*base, *run.config]) if base else {}
    return [key for key in keys if base.get(key, absent) != run.config.get(key, absent)]


def _curves(run: data.Run) -> list[str]:
    axes = data.usable_axes([run])
    loss, bits = [], []
    evaluated, smoothed = run.last("eval/loss") is not None, len(_trained(run, "train/loss", "step")) > 1
    kind = (run.last(data.BITS) or run.last("eval/loss") or {}).get("eval/kind")
    held_out = {"<=": "validation (upper bound)", "~": "validation (no likelihood)"}.get(kind, "validation")
    for key, _ in axes:
        x = plots.horizontal(key)
        x_eval, y_eval = data.series(run, "eval/loss", key)
        curves = [*_trained(run, "train/loss", key), plots.Curve(x_eval, y_eval, held_out, 1, points=True)]
        y = plots.Axis("Loss, nats per token", "plain", x.log)
        references = data.references(run, "loss")
        loss.append((key, plots.charts(f"loss-{key}", curves, x, y, references=references)))

        x_eval, y_eval = data.series(run, data.BITS, key)
        x_error, error = data.series(run, f"{data.BITS}_se", key)
        error = 1.96 * error if np.array_equal(x_error, x_eval) else None
        curves = [
            *_trained(run, "train/bits_per_byte", key),
            plots.Curve(x_eval, y_eval, held_out, 1, points=True, error=error),
        ]
        y = plots.Axis("Bits per byte", "plain", x.log)
        references = data.references(run, "bits_per_byte")
        drawn = plots.charts(f"bits-{key}", curves, x, y, references=references) if run.last(data.BITS) else ""
        bits.append((key, drawn))
    if not any(svg for _, svg in loss + bits):
        return [page.note("No losses have been logged yet.")]
    figures = [
        page.figure(
            1,
            "Loss",
            "Light: every logged step. Bold: running mean over 3% of the run. " * smoothed
            + "Points: validation." * evaluated,
            loss,
        ),
        page.figure(2, "Held-out bits per byte", "Bars: 95% interval over the validation text.", bits),
    ]
    missing = "" if run.last(data.BITS) else page.note("The run has not been evaluated yet: no bits per byte.")
    return [f'{page.switch(axes)}<div class="figures">{"".join(figures)}</div>', missing]


def _trained(run: data.Run, key: str, axis: str) -> list[plots.Curve]:
    """A training curve: raw and faint below its running mean; alone where it has too few points to need one."""
    x, y = data.series(run, key, axis)
    if len(y) < 60:
        return [plots.Curve(x, y, "training")]
    return [plots.Curve(x, y, faint=True), plots.Curve(x, data.smooth(y), "training")]


def _training(run: data.Run) -> list[str]:
    listed = {key for key, *_ in _SMALL}
    keys = dict.fromkeys(key for row in run.metrics for key, value in row.items() if not isinstance(value, str))
    others = [key for key in keys if key not in listed | _DRAWN and not key.startswith(routing.PREFIX)][:_MAX_OTHER]
    wanted = [*_SMALL, *((key, False, plots.Axis(more.named(key), "plain")) for key in others)]
    charts, constant = [], []
    for i, (key, timing, axis) in enumerate(wanted):
        curve = plots.Curve(*data.series(run, key, timing=timing))
        values = curve.y[np.isfinite(curve.y)]
        if len(values) > 1 and np.ptp(values) == 0:
            constant.append(f"{axis.label} {plots.tick_text(float(values[0]), axis.kind)}")
            continue
        svg = plots.chart(f"small-{i}", [curve], plots.horizontal("step"), axis, width=350, height=180)
        if svg:
            charts.append(f"<figure>{svg}</figure>")
    if not charts:
        return [page.note("Nothing has been logged yet.")]
    restarts = len(run.starts) - 1
    text = f"The run was started {restarts + 1} times; wall time counts training only." if restarts > 0 else ""
    same = f"Constant: {'; '.join(constant)}." if constant else ""
    return [f'<div class="pair">{"".join(charts)}</div>', *(page.note(said) for said in (same, text) if said)]


def _samples(run: data.Run) -> list[str]:
    steps = sorted({row["step"] for row in run.samples})
    if not steps:
        return [page.note("No samples have been drawn yet.")]
    places = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MAX_SAMPLES)).round().astype(int))
    chosen = [steps[i] for i in places]
    rows = []
    for step in chosen:
        texts = [page.sample_text(row, _MAX_TEXT) for row in run.samples if row["step"] == step][:4]
        rows.append(f'<div class="sample"><div class="at">step {step:,}</div><div>{"".join(texts)}</div></div>')
    text = "The prompt is set in grey."
    if len(chosen) < len(steps):
        text = f"{len(chosen)} of {len(steps)} occasions, evenly spaced. {text} All are in {files.SAMPLES}."
    return [page.note(text), *rows]


def _drafts(run: data.Run) -> list[str]:
    """What drafters were worth behind held-out prompts, each as it was measured last."""
    records, damaged = files.read_lines(run.path / files.DRAFTS)
    newest = {
        (row["drafter"], row.get("verifier"), str(row.get("options"))): row for row in records if row.get("wrote")
    }
    rows = []
    for row in newest.values():
        total = max(1, sum(row["wrote"]))
        bars = "".join(
            f"<tr><td>{n}</td><td>{page.percent(count / total)}</td><td>{'█' * round(30 * min(1, count / total))}</td>"
            "</tr>"
            for n, count in enumerate(row["wrote"], start=1)
        )
        plain, fast = row.get("plain_tokens_per_second") or 0, row.get("tokens_per_second") or 0
        rows.append([
            f"<code>{page.escape(row['drafter'])}</code> {page.escape(str(row.get('options') or ''))}",
            page.escape(str(row.get("verifier", ""))),
            f"{row.get('tokens', 0) / max(1, row.get('calls', 1)):.2f}",
            f"{fast / plain:.2f}" if plain and fast else "–",
            f"<table>{bars}</table>",
        ])  # fmt: skip
    head = ["Drafter", "Verifier", "Tokens a call", "Times plain decoding", "Rounds by tokens written"]
    left_out = [page.note(f"{files.DRAFTS}: {len(damaged)} unreadable line(s) left out.")] if damaged else []
    if not rows:
        return left_out
    return [page.note("Behind held-out prompts; from --mode=evaluate."), page.table(head, rows), *left_out]


def _configuration(run: data.Run) -> str:
    if not run.config:
        return page.note(f"{files.CONFIG} names no settings.")
    changed = set(_changed(run))
    groups: dict[str, list] = {}
    for key, value in run.config.items():
        head, dot, rest = key.partition(".")
        groups.setdefault(head if dot else "", []).append((rest or key, value, key in changed))
    tables = [
        page.facts([(key, value) for key, value, _ in rows], [key for key, _, mark in rows if mark], head or "general")
        for head, rows in groups.items()
    ]
    text = f"All {len(run.config)} settings" + (f", {len(changed)} of them changed" if changed else "")
    return f'<details><summary>{text}</summary><div class="settings">{"".join(tables)}</div></details>'


def _environment(run: data.Run) -> str:
    run_facts = dict(run.run)
    corpus = run_facts.pop("corpus", None)
    environment, code = run_facts.pop("environment", None), run_facts.pop("code", None)
    starts = run_facts.pop("starts", [])
    rows = [*run_facts.items(), ("starts", starts)] if starts else list(run_facts.items())
    tables = [
        page.facts(data.flatten(tree).items(), title=title)
        for title, tree in (("corpus", corpus), ("environment", environment), ("code", code), ("run", dict(rows)))
        if isinstance(tree, dict) and tree
    ]
    if not tables:
        return more.downloads(run) + page.note(f"{files.RUN} says nothing about the environment.")
    return f'{more.downloads(run)}<div class="settings">{"".join(tables)}</div>'


def _title(groups: Sequence[grouping.Group]) -> str:
    """The title of the page."""
    runs = sum(len(group.runs) for group in groups)
    return f"Comparison of {runs} runs" + (f" of {len(groups)} configs" if 1 < len(groups) < runs else "")


def _comparison(groups: Sequence[grouping.Group]) -> list[str]:
    """The sections of the page, as HTML."""
    runs = [run for group in groups for run in group.runs]
    notes = [f"{run.name}: {text}" for run in runs for text in run.notes] + grouping.code_notes(runs)
    header = (
        f'<header><p class="kicker">Comparison</p><h1>{page.escape(_title(groups))}</h1>'
        + '<p class="sub">'
        + "".join(f"<span>{page.escape(group.label)}</span>" for group in groups[:8])
        + "</p>"
        + "".join(page.note(text, "warn") for text in notes)
        + "</header>"
    )
    return [
        header,
        page.section("results", "Results", *page.results(groups)),
        page.section("tests", "Differences", *page.tests(groups)),
        page.section("settings", "Settings that differ", page.settings(runs, groups)),
        page.section("curves", "Learning curves", *_overlays(groups)),
        page.section("samples", "Samples side by side", *_samples_beside(groups)),
        page.section("runs", "Runs", *page.runs_table(groups), more.downloads(*runs)),
    ]


def _overlay(groups: Sequence[grouping.Group], key: str, axis: str, smoothed: bool) -> list[plots.Curve]:
    curves = []
    for i, group in enumerate(groups):
        lines = [data.series(run, key, axis) for run in group.runs]
        if smoothed:
            lines = [(x, data.smooth(y)) for x, y in lines]
        x, mean, low, high = data.mean_curve(lines)
        if len(x):
            band = (x, low, high) if len(lines) > 1 else None
            curves.append(plots.Curve(x, mean, group.label, i, points=not smoothed, band=band))
    return curves


def _overlays(groups: Sequence[grouping.Group]) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    axes = data.usable_axes(runs)
    tokenizers = {files.digest({"t": run.run["tokenizer"]}) for run in runs if "tokenizer" in run.run}
    wanted = [(data.BITS, "Held-out bits per byte", "Bits per byte", False)]
    if len(tokenizers) <= 1:
        wanted += [("train/loss", "Training loss, running mean", "Loss, nats per token", True)]
    figures = []
    for key, heading, label, smoothed in wanted:
        charts = []
        for axis, _ in axes:
            x = plots.horizontal(axis)
            curves = _overlay(groups, key, axis, smoothed)
            levels = data.references(runs[0], "bits_per_byte") if key == data.BITS else []
            y = plots.Axis(label, "plain", x.log)
            name = f"{key.replace('/', '-')}-{axis}"
            height = max(290.0, 60 + 13.0 * (len(curves) + len(levels)))  # room for a label at the end of each line
            charts.append((axis, plots.charts(name, curves, x, y, references=levels, height=height)))
        text = "Lines: mean over seeds. Bands: lowest to highest seed."
        figures.append(page.figure(1 + sum(map(bool, figures)), heading, text, charts))
    if not any(figures):
        return [page.note("No losses have been logged yet.")]
    parts = [f'{page.switch(axes)}<div class="figures">{"".join(figures)}</div>']
    if len(tokenizers) > 1:
        parts.append(page.note("The tokenizers differ, so losses per token cannot be compared and are left out."))
    return parts


def _samples_beside(groups: Sequence[grouping.Group]) -> list[str]:
    prompts = dict.fromkeys(str(row.get("prompt", "")) for group in groups for row in group.runs[0].samples)
    parts = []
    for prompt in list(prompts)[:_MAX_PROMPTS]:
        cells = []
        for i, group in enumerate(groups):
            row = next((row for row in reversed(group.runs[0].samples) if str(row.get("prompt", "")) == prompt), None)
            text = page.sample_text(row, _MAX_BESIDE) if row else page.note("no sample")
            step = f", step {row['step']:,}" if row else ""
            cells.append(f"<div><h3>{page.chip(i)}{page.escape(group.label)}{step}</h3>{text}</div>")
        width = f"repeat(auto-fit,minmax(min({240 if len(groups) > 2 else 360}px,100%),1fr))"
        parts.append(f'<div class="columns" style="grid-template-columns:{width}">{"".join(cells)}</div>')
    return parts or [page.note("No samples have been drawn yet.")]
