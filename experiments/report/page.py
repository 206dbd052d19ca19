"""The look of a report: one self-contained page, and the small pieces of HTML and number text that it is made of."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.report import data, grouping, plots
from experiments.settings.visible import visible

_CSS = """
:root{color-scheme:light dark;--page:#fbfbf9;--card:#fff;--ink:#1b1c1e;--muted:#62666d;--grid:#e4e5e3;--rule:#d3d5d2;
--accent:#0067a3;--wash:#e8f1f8;--warn:#a33b00;--warnwash:#fdf0e7;
--s0:#0067a3;--s1:#c44e00;--s2:#00805e;--s3:#a2438a;--s4:#8a6a00;--s5:#5b6069;--s6:#4540a8;--s7:#8c1d40;
--serif:"Iowan Old Style","Palatino Linotype",Palatino,"URW Palladio L",P052,Georgia,"Liberation Serif",serif;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif;
--mono:ui-monospace,"SF Mono","Cascadia Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media (prefers-color-scheme:dark){:root{--page:#15171a;--card:#1b1e22;--ink:#e6e7e8;--muted:#9aa0a8;--grid:#2b2f35;
--rule:#383d44;--accent:#6bb6ee;--wash:#1c2e3d;--warn:#f3a673;--warnwash:#35261b;
--s0:#5fb4f0;--s1:#f58a45;--s2:#3cc79c;--s3:#e394cb;--s4:#dcb83c;--s5:#a9afb8;--s6:#a39df5;--s7:#ee8aa5}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 var(--sans);font-variant-numeric:tabular-nums}
main{max-width:1040px;margin:0 auto;padding:52px 32px 88px}
h1,h2{font-family:var(--serif);font-weight:600;line-height:1.2;letter-spacing:-.005em;text-wrap:balance}
h1{font-size:36px;margin:2px 0 8px;overflow-wrap:anywhere}
h2{font-size:23px;margin:60px 0 16px;padding-top:14px;border-top:1px solid var(--rule)}
h3{font-size:14px;font-weight:600;margin:26px 0 8px}
p{margin:0 0 12px;max-width:72ch}
a{color:var(--accent)}
.kicker{font-size:13px;color:var(--accent);font-weight:600;margin:0}
.sub,.note,figcaption{color:var(--muted)}
.note{font-size:14px}
.sub span{display:inline-block;max-width:100%;overflow-wrap:anywhere}
.sub span+span::before{content:"·";margin:0 .55em}
.warn{background:var(--warnwash);color:var(--warn);padding:9px 14px;border-radius:5px;max-width:none;font-size:14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(168px,1fr));gap:26px 28px;margin:34px 0 0}
.tile b{display:block;font:600 25px/1.2 var(--serif);font-variant-numeric:lining-nums tabular-nums;white-space:nowrap}
.tile b small{font:500 14px var(--sans);color:var(--muted)}
.tile span{display:block;font-size:13px;color:var(--muted);margin-top:3px}
.tile.main b{color:var(--accent)}
sup{font-size:.68em;line-height:0}
pre,code,.text{font-family:var(--mono);font-size:13px}
pre{background:var(--card);border:1px solid var(--rule);border-radius:5px;padding:11px 14px;margin:0 0 14px;
white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5}
.scroll{overflow-x:auto;margin:0 0 14px}
table{border-collapse:collapse;width:100%;font-size:14px}
table.narrow{width:auto;min-width:50%}
th,td{text-align:left;vertical-align:baseline;padding:6px 24px 6px 0;border-bottom:1px solid var(--grid)}
th:last-child,td:last-child{padding-right:0}
thead th{font-weight:500;font-size:13px;color:var(--muted);border-bottom:1px solid var(--rule);vertical-align:bottom}
thead{border-top:1.5px solid var(--ink)}
tbody tr:last-child>*{border-bottom:1.5px solid var(--ink)}
th[scope=row]{font-weight:500}
.scroll td,.scroll th{white-space:nowrap}
.scroll .value,.scroll .prose td,.scroll .prose th{white-space:normal}
.prose td,.prose th{overflow-wrap:break-word}
.prose td[data-head=Verdict]{white-space:nowrap}
.n{text-align:right;white-space:nowrap}
td.key,th.key{font-family:var(--mono);font-size:13px;font-weight:400}
td.value{font-family:var(--mono);font-size:13px;overflow-wrap:anywhere}
.changed{background:var(--wash)}
.changed .value,mark{color:var(--accent);font-weight:600;background:none}
.chip{display:inline-block;width:14px;height:4px;border-radius:2px;vertical-align:middle;margin-right:9px}
.switch{position:absolute;opacity:0;pointer-events:none}
.switch+label{display:inline-block;padding:4px 14px;border:1px solid var(--rule);font-size:14px;cursor:pointer;
color:var(--muted);background:var(--card);margin-right:-1px}
.switch:first-of-type+label{border-radius:5px 0 0 5px}
label.end{border-radius:0 5px 5px 0!important}
.switch:checked+label{color:var(--accent);background:var(--wash);font-weight:600}
.switch:focus-visible+label{outline:2px solid var(--accent);outline-offset:1px}
.by{display:none}
#x-step:checked~.figures .by-step,#x-tokens:checked~.figures .by-tokens,#x-flops:checked~.figures .by-flops,
#x-seconds:checked~.figures .by-seconds{display:block}
figure{margin:26px 0 0;position:relative}
figcaption{font-size:14px;max-width:80ch;margin-top:6px}
figcaption b{color:var(--ink);font-weight:600}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:6px 44px}
.chart{width:100%;height:auto;display:block;overflow:visible;font-family:var(--sans)}
.tip{position:absolute;pointer-events:none;background:var(--card);border:1px solid var(--rule);border-radius:5px;
padding:5px 10px;font-size:13px;line-height:1.45;white-space:pre;box-shadow:0 2px 10px #0002}
.sample{display:grid;grid-template-columns:104px minmax(0,1fr);gap:4px 20px;padding:13px 0;
border-top:1px solid var(--grid)}
.sample .at{color:var(--muted);font-size:13px}
.text{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;margin:0}
.text i{font-style:normal;color:var(--muted)}
.settings table{table-layout:fixed}
.settings td.key{width:46%}
.columns{display:grid;gap:8px 32px}
details{margin:0 0 14px}
summary{cursor:pointer;color:var(--accent);font-size:14px;padding:4px 0}
.settings{columns:2;column-gap:44px}
.settings table{break-inside:avoid;margin-bottom:16px}
@media (max-width:760px){main{padding:28px 18px}.settings{columns:1}.sample{grid-template-columns:1fr}
h1{font-size:29px}}
@media (max-width:760px){.prose thead{display:none}.prose tr,.prose th,.prose td{display:block;border:0;padding:2px 0}
.prose tr{padding:12px 0;border-bottom:1px solid var(--grid)}
.prose tbody tr:last-child>*{border:0}.prose .n{text-align:left;white-space:normal}
.prose td::before{content:attr(data-head) ": ";color:var(--muted);font-size:13px}}
.small{display:none}
@media (max-width:760px){.wide{display:none}.small{display:block}.tiles{grid-template-columns:1fr 1fr;gap:20px 14px}
.tile b{font-size:21px}}
@media print{main{padding:0;max-width:none}.switch+label,.tip{display:none}figure,.tile,.sample{break-inside:avoid}}
"""


def document(title: str, body: Iterable[str]) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main><script>{plots.SCRIPT}</script></body></html>\n"
    )


def escape(text: Any) -> str:
    """Text that is safe in HTML; characters that would hide or reorder it are spelt out (\\x1b, \\u202e)."""
    return html.escape(visible(text), quote=True)


def section(name: str, title: str, *parts: str) -> str:
    """A section with an id, so that it can be linked to."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n' + "\n".join(part for part in parts if part) + "</section>"


def note(text: str, kind: str = "note") -> str:
    """A quiet line of text (`kind` "note") or a loud one ("warn")."""
    return f'<p class="{kind}">{escape(text)}</p>'


def tile(label: str, value: str, *, main: bool = False) -> str:
    """One headline number; `value` is HTML."""
    return f'<div class="tile{" main" if main else ""}"><b>{value}</b><span>{escape(label)}</span></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = (), kind: str = "") -> str:
    """A table of HTML cells; the columns in `numeric` are set flush right; the first column names its row.

    `kind`: "narrow", "prose" where cells hold sentences (they wrap, and stand below each other on a narrow screen), or
    both.
    """
    align = ['class="n"' if i in numeric else "" for i in range(len(head))]
    top = "".join(f'<th scope="col" {align[i]}>{cell}</th>' for i, cell in enumerate(head))
    lines = []
    for row in rows:
        first, *rest = row
        named = [f'{align[i]} data-head="{head[i]}"' if "prose" in kind.split() else align[i] for i in range(len(head))]
        cells = "".join(f"<td {named[i]}>{cell}</td>" for i, cell in enumerate(rest, 1))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    inner = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{inner}</table></div>'


def facts(rows: Iterable[tuple[str, Any]], changed: Sequence[str] = (), title: str = "") -> str:
    """A table of keys and values; keys in `changed` are highlighted."""
    lines = []
    for key, value in rows:
        mark = ' class="changed"' if key in changed else ""
        lines.append(f'<tr{mark}><td class="key">{escape(key)}</td><td class="value">{escape(shown(value))}</td></tr>')
    head = f'<thead><tr><th colspan="2">{escape(title)}</th></tr></thead>' if title else "<thead></thead>"
    return f"<table>{head}<tbody>{''.join(lines)}</tbody></table>"


def switch(axes: Sequence[tuple[str, str]]) -> str:
    """Radio buttons (key, name) that choose the horizontal axis; they work by CSS alone."""
    parts = []
    for i, (key, name) in enumerate(axes):
        end = ' class="end"' if i == len(axes) - 1 else ""
        checked = " checked" if i == 0 else ""
        parts.append(f'<input class="switch" type="radio" name="x" id="x-{key}"{checked}>')
        parts.append(f'<label for="x-{key}"{end}>{name}</label>')
    return "".join(parts)


def figure(number: int, title: str, caption: str, charts: Sequence[tuple[str, str]]) -> str:
    """A numbered figure: `charts` are (axis key or "", svg); those with a key are shown by the switch."""
    drawn = "".join(
        f'<div class="by by-{key}">{svg}</div>' if key else f"<div>{svg}</div>" for key, svg in charts if svg
    )
    if not drawn:
        return ""
    return (
        f"<figure>{drawn}<figcaption><b>Figure {number}. {escape(title)}.</b> {escape(caption)}</figcaption></figure>"
    )


def shown(value: Any) -> str:
    """A config or environment value as text; a list of equal items is counted. No digit of a setting is dropped."""
    if isinstance(value, list):
        items = [shown(item) for item in value]
        return f"{len(items)} × {items[0]}" if len(items) > 1 and len(set(items)) == 1 else ", ".join(items)
    if isinstance(value, float):
        return repr(value) if abs(value) < 1e6 else f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return str(value)


def _three(value: float) -> str:
    """Three significant digits without an exponent: 1.95, 20.5, 1,020."""
    return f"{float(f'{value:.3g}'):,.10g}"


def count(value: float) -> str:
    """1234 as "1,234", 1.95e6 as "1.95 M"; "–" where there is no number."""
    if not math.isfinite(value):
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{_three(value / size)} {letter}"
    return f"{value:,.0f}"


def power(value: float) -> str:
    """1.3e13 as HTML "1.3 × 10¹³"."""
    if not math.isfinite(value) or value <= 0:
        return "–"
    factor, exponent = f"{value:.2e}".split("e")
    return f"{factor}&nbsp;×&nbsp;10<sup>{int(exponent)}</sup>"


def duration(seconds: float) -> str:
    """Seconds as the two largest units: "2 h 05 min"."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def memory(size: float) -> str:
    """Bytes in binary units."""
    if not math.isfinite(size):
        return "–"
    for unit, scale in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if size >= scale:
            return f"{_three(size / scale)} {unit}"
    return f"{size:.0f} bytes"


def with_error(value: float, error: float, digits: int = 3) -> str:
    """A value and its error to the same decimals, two significant digits of the error: "2.241 ± 0.012"."""
    if not math.isfinite(value):
        return "–"
    if not math.isfinite(error) or error <= 0:
        return f"{value:.{digits}f}"
    digits = max(digits, min(6, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f} <small>± {error:.{digits}f}</small>"


MARKS = {"=": "", "<=": "≤ ", "~": "~ "}  # Of eval/kind, the loosest last.


def bits(row: dict) -> str:
    """Bits per byte with standard error, marked ≤ for an upper bound and ~ for a number that is no likelihood."""
    bound = MARKS[data.kind(row)]
    return bound + with_error(data.number(row, data.BITS), data.number(row, f"{data.BITS}_se"))


def percent(share: float) -> str:
    """0.413 as "41.3%"."""
    return f"{100 * share:.1f}%" if math.isfinite(share) else "–"


def sample_text(row: dict, limit: int) -> str:
    """One sample as HTML, cut at `limit` characters."""
    text = str(row.get("text", ""))
    cut = text if len(text) <= limit else text[:limit] + " …"
    return f'<p class="text"><i>{escape(row.get("prompt", ""))}</i>{escape(cut)}</p>'


def chip(index: int) -> str:
    return f'<span class="chip" style="background:var(--s{index % plots.COLOURS})"></span>'


def results(groups: Sequence[grouping.Group]) -> list[str]:
    """Two tables, quality and cost of each group, as means over its seeds."""
    runs = [run for group in groups for run in group.runs]
    shared = data.shared_compute(runs)
    quality, cost = [], []
    for i, group in enumerate(groups):
        bound = MARKS[max(grouping.kinds([group]), key=list(MARKS).index, default="=")]
        final = bound + with_error(*data.mean_interval(grouping.finals(group, data.BITS)))
        equal = bound + with_error(*data.mean_interval([data.at_compute(run, shared) for run in group.runs]))
        loss = with_error(*data.mean_interval(grouping.finals(group, "eval/loss")))
        name = chip(i) + escape(group.label)
        quality.append([name, str(len(group.runs)), *(cell.replace(f"{bound}–", "–") for cell in (final, equal)), loss])
        last = [run.metrics[-1] if run.metrics else {} for run in group.runs]

        def mean(values: Iterable[float]) -> float:
            return data.mean_interval(list(values))[0]

        cost.append(
            [
                name,
                count(mean(data.number(data.mapping(run.run, "parameters"), "total") for run in group.runs)),
                count(mean(data.number(row, "tokens") for row in last)),
                power(mean(data.number(row, "flops") for row in last)),
                duration(mean(data.last_timing(run, "seconds") for run in group.runs)),
                count(mean(data.median_timing(run, "tokens_per_second") for run in group.runs)),
                percent(mean(data.median_timing(run, "mfu") for run in group.runs)),
                memory(mean(data.last_timing(run, "peak_memory_bytes") for run in group.runs)),
                memory(mean(data.number(run.run, "state_bytes") for run in group.runs)),
            ]
        )
    text = "Mean over seeds ± half of the 95% Student-t interval; a single seed has none."
    if all(row[2] == row[3] for row in quality):  # all stopped at the same compute: one column says it
        quality = [[*row[:3], "–", *row[4:]] for row in quality]
    else:
        text += f" Equal compute: at {power(shared)} FLOPs, the most that every run has been evaluated at."
    parts = [_filled(["Config", "Seeds", "Bits per byte", "at equal compute", "Validation loss"], quality)]
    parts.append(f'<p class="note">{text}</p>')
    if len(grouping.kinds(groups)) > 1:
        text = "≤ marks an upper bound, ~ no likelihood at all; gaps between kinds are not differences of models."
        parts.append(note(text, "warn"))
    head = ["Config", "Parameters", "Tokens", "FLOPs", "Wall time", "Tokens/s", "MFU", "Peak memory", "State"]
    return [*parts, "<h3>Cost, mean over seeds</h3>", _filled(head, cost)]


def _filled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns in which no row has a number."""
    kept = [column for column in range(len(head)) if column == 0 or any(row[column] != "–" for row in rows)]
    cells = [[row[column] for column in kept] for row in rows]
    return table([head[column] for column in kept], cells, numeric=tuple(range(1, len(kept))))


def tests(groups: Sequence[grouping.Group]) -> list[str]:
    if len(groups) < 2:
        return [note("There is one config only, so there is nothing to test.")]
    found, compute = grouping.outcomes(groups)
    values = [dict(zip(group.seeds, row, strict=True)) for group, row in zip(groups, found, strict=True)]
    rows, kinds = [], set()
    for i, group in enumerate(groups[1:], 1):
        test = data.contrast(values[0], values[i])
        kinds.add(test.kind)
        interval = "–"
        if math.isfinite(test.half_width):
            interval = f"{test.mean - test.half_width:+.4f} to {test.mean + test.half_width:+.4f}".replace("-", "−")
        name = {"paired": f"paired, {test.pairs} seeds", "unpaired": "Welch, unpaired", "none": "too few seeds"}
        p = "–" if not math.isfinite(test.p) else "&lt; 0.001" if test.p < 0.001 else f"{test.p:.3f}"
        difference = f"{test.mean:+.4f}".replace("-", "−") if math.isfinite(test.mean) else "–"
        rows.append([chip(i) + escape(group.label), difference, interval, p, name[test.kind]])
    head = ["Config", "Δ bits per byte", "95% interval", "<i>p</i>", "t-test"]
    place = f"at equal compute, {power(compute)} FLOPs" if math.isfinite(compute) else "at the end of training"
    text = f"Against “{escape(groups[0].label)}” {place}; below zero is better."
    if len(rows) > 1:
        text += " The p-values are not corrected for the number of comparisons."
    return [table(head, rows, numeric=(1, 2, 3), kind="narrow"), f'<p class="note">{text}</p>']


def settings(runs: Sequence[data.Run], groups: Sequence[grouping.Group]) -> str:
    keys = grouping.differences(runs)
    if not keys:
        return note("The configs are the same." if any(run.config for run in runs) else "No config was found.")
    rows = []
    for key in keys:
        cells = []
        for group in groups:
            found = dict.fromkeys(shown(run.config[key]) if key in run.config else "–" for run in group.runs)
            cells.append(f'<span class="value">{escape(", ".join(found))}</span>')
        rows.append([f"<code>{escape(key)}</code>", *cells])
    head = ["Setting", *(chip(i) + escape(group.label) for i, group in enumerate(groups))]
    return table(head, rows, kind="narrow")


def runs_table(groups: Sequence[grouping.Group]) -> list[str]:
    """Every run in one line, and the commands that repeat them."""
    runs = [(i, run) for i, group in enumerate(groups) for run in group.runs]
    seeds = [grouping.seeds(run) for _, run in runs]
    # Of several seeds in a config (weights, data), those that every run shares say nothing here.
    varying = [c for c in range(min(map(len, seeds))) if len({seed[c] for seed in seeds}) > 1] or [0]
    rows = []
    for (i, run), seed in zip(runs, seeds, strict=True):
        cells = [", ".join(seed[c] for c in varying if c < len(seed)) or "–", run.record.get("hash", "–")]
        name = chip(i) + escape(run.name)
        rows.append([name, *map(escape, [*cells, data.status(run)[0]]), bits(run.last(data.BITS) or {})])
    drawn = table(["Workdir", "Seed", "Config", "Status", "Bits per byte ± standard error"], rows, numeric=(4,))
    commands = [str(run.record["command"]) for _, run in runs if run.record.get("command")]
    again = f"<h3>Run them again</h3><pre>{escape(chr(10).join(commands))}</pre>" if commands else ""
    return [drawn, again]
