"""Charts as small inline SVG, drawn by matplotlib.

Colours are the page's CSS variables, so that one drawing serves both themes. Each line is labelled at its end instead
of in a legend.
"""

import dataclasses
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import numpy as np

from experiments.report import data
from experiments.settings.visible import visible

# Colours that cannot occur otherwise stand for CSS variables until the drawing is done.
_VARIABLES = {"#010101": "--ink", "#020202": "--muted", "#030303": "--grid"}
_INK, _MUTED, _GRID = _VARIABLES
COLOURS = 8
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_TEXT = 10.0  # points; the charts are drawn at the size at which they are read
_POINTS = 900
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


# Reads values off the drawn lines: the page is complete without it.
SCRIPT = """
for (const svg of document.querySelectorAll("svg.chart")) {
  const [x0, x1, xa, xb, xlog] = svg.dataset.x.split(" ").map(Number);
  const [y0, y1, ya, yb, ylog] = svg.dataset.y.split(" ").map(Number);
  const invert = (p, p0, p1, a, b, log) => {
    const t = (p - p0) / (p1 - p0);
    return log ? a * Math.pow(b / a, t) : a + (b - a) * t;
  };
  const large = v => Math.abs(v) >= 1e4 && Math.abs(v) < 1e12;
  const show = v => large(v) ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(4));
  let curves, tip, rule;
  const clear = () => { tip?.remove(); rule?.remove(); tip = rule = null; };
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("pointermove", event => {
    curves ??= [...svg.querySelectorAll(".curve")].map(g => {
      const n = (g.querySelector("path").getAttribute("d").match(/-?[\\d.]+/g) || []).map(Number);
      return [g.dataset.label, n.filter((_, i) => i % 2 == 0), n.filter((_, i) => i % 2)];
    });
    const box = svg.getBoundingClientRect(), unit = svg.viewBox.baseVal.width / box.width;
    const px = (event.clientX - box.left) * unit;
    clear();
    if (px < x0 - 6 || px > x1 + 6) return;
    let at = null;
    for (const [, xs] of curves) for (const x of xs) if (at === null || Math.abs(x - px) < Math.abs(at - px)) at = x;
    if (at === null) return;
    const lines = [svg.getAttribute("aria-label").split(" against ")[1] + " " + show(invert(at, x0, x1, xa, xb, xlog))];
    for (const [label, xs, ys] of curves) {
      let i = 0;
      xs.forEach((x, j) => { if (Math.abs(x - at) < Math.abs(xs[i] - at)) i = j; });
      if (Math.abs(xs[i] - at) < 8) lines.push((label ? label + "  " : "") + show(invert(ys[i], y0, y1, ya, yb, ylog)));
    }
    rule = document.createElementNS(svg.namespaceURI, "line");
    for (const [k, v] of Object.entries({x1: at, x2: at, y1: y0, y2: y1, stroke: "var(--muted)", "stroke-width": .7}))
      rule.setAttribute(k, v);
    svg.append(rule);
    tip = document.createElement("div");
    tip.className = "tip";
    tip.textContent = lines.join("\\n");
    svg.parentNode.style.position = "relative";
    svg.parentNode.append(tip);
    const left = at / unit;
    tip.style.left = (left > box.width * .6 ? left - tip.offsetWidth - 12 : left + 12) + "px";
    tip.style.top = y1 / unit + 6 + "px";
  });
}
"""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line: x, y [points]; `band` is (x, low, high); `error` the half height of error bars at the points."""

    x: np.ndarray
    y: np.ndarray
    label: str = ""
    colour: int = 0
    faint: bool = False
    points: bool = False
    error: np.ndarray | None = None
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def drawable(self) -> bool:
        return bool(np.isfinite(self.y).any())


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis: its label, the kind of number, log or linear, and whether a linear axis has to show zero.

    The kinds of numbers are "count", "flops", "seconds" and "bytes".
    """

    label: str
    kind: str = "count"
    log: bool = False
    zero: bool = False


def horizontal(key: str) -> Axis:
    """The horizontal axis of one of `data.AXES`."""
    kind = {"flops": "flops", "seconds": "seconds"}.get(key, "count")
    return Axis(data.AXES[key][1], kind, data.AXES[key][2])


def chart(
    name: str,
    curves: Sequence[Curve],
    x: Axis,
    y: Axis,
    *,
    references: Sequence[tuple[str, float]] = (),
    width: float = 720,
    height: float = 290,
) -> str:
    """One chart as an `<svg>` element; `name` must be unique on the page. Empty text if there is nothing to draw.

    Curves are thinned to about 900 points with their extremes kept. A log axis falls back to linear where values
    are not positive; a linear vertical axis that would span more than a factor of 50 becomes logarithmic.
    """
    curves = [curve for curve in curves if curve.drawable]
    if not curves:
        return ""
    values = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in curves])
    places = np.concatenate([curve.x for curve in curves])
    y = dataclasses.replace(
        y, log=bool(values.min() > 0 and (y.log or (not y.zero and values.max() > 50 * values.min())))
    )
    x = dataclasses.replace(x, log=bool(x.log and places.min() > 0 and places.max() > 2 * places.min()))
    x_divisor, x_unit = _unit(x.kind, float(places.max()))
    y_divisor, y_unit = _unit(y.kind, float(values.max()))

    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": _TEXT, "path.simplify": False}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the look does not depend on the reader's own style
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(width / 72, height / 72))
        labels = [curve.label for curve in curves] + [label for label, _ in references]
        right = 14 + 5.4 * max(min(len(label), 26) for label in labels)
        axes = figure.add_axes((50 / width, 42 / height, 1 - (50 + right) / width, 1 - 56 / height))
        _style(axes, x, y, x_unit, y_unit)
        for curve in curves:
            _draw(axes, curve, x, x_divisor, y_divisor)
        for _, level in references:
            axes.axhline(level / y_divisor, color=_MUTED, lw=0.9, dashes=(2, 3))
        if not x.log and 0 < places.min() < 0.2 * places.max():
            axes.set_xlim(left=0)
        if y.zero and not y.log:
            axes.set_ylim(min(0.0, float(values.min()) / y_divisor), (float(values.max()) / y_divisor or 1.0) * 1.06)
        _ticks(axes.xaxis, axes.get_xlim(), x)
        _ticks(axes.yaxis, axes.get_ylim(), y)
        ends = [_end(curve, x_divisor, y_divisor) + (f"#0a000{curve.colour % COLOURS}",) for curve in curves]
        ends += [(label, None, level / y_divisor, _MUTED) for label, level in references]
        _label_ends(axes, ends)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        description = f"{y.label} against {x.label}"
        return _inline(buffer.getvalue(), name, description, axes, x, y, width, height)


def charts(
    name: str,
    curves: Sequence[Curve],
    x: Axis,
    y: Axis,
    *,
    references: Sequence[tuple[str, float]] = (),
    height: float = 290,
) -> str:
    """A chart for the width of a page and one for that of a phone, of which the page shows the one that fits."""
    wide = chart(name, curves, x, y, references=references, height=height)
    small = chart(f"{name}-small", curves, x, y, references=references, width=350, height=max(230.0, 0.8 * height))
    return f'<div class="wide">{wide}</div><div class="small">{small}</div>' if wide else ""


def _unit(kind: str, largest: float) -> tuple[float, str]:
    """The divisor and the unit in which values up to `largest` read well."""
    steps = {
        "seconds": [(86400.0, "days"), (3600.0, "hours"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")],
        "bytes": [(2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "bytes")],
    }.get(kind, [])
    for divisor, unit in steps:
        if largest >= 2 * divisor:
            return divisor, unit
    return steps[-1] if steps else (1.0, "")


def tick_text(value: float, kind: str = "count", log: bool = False) -> str:
    """A short number for an axis: 0.001, 2.5, 40k, 3M, 2×10¹²."""
    if value == 0:
        return "0"
    if kind == "flops" or not (0.01 if log else 1e-4) <= abs(value) < 1e12:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        power = "10" + str(exponent).translate(_SUPERSCRIPTS)
        factor = f"{value / 10.0**exponent:.3g}"
        return power if factor == "1" else f"{factor}×{power}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and (kind == "count"):
            return f"{value / size:.4g}{letter}"
    return f"{value:.6g}".replace("-", "−")


def _style(axes, x: Axis, y: Axis, x_unit: str, y_unit: str) -> None:
    axes.figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=_MUTED, linewidth=0.9)
    axes.tick_params(axis="x", color=_MUTED, labelcolor=_MUTED, length=4, width=0.9, pad=4)
    axes.tick_params(axis="y", length=0, labelcolor=_MUTED, pad=6)
    axes.grid(axis="y", color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xscale("log" if x.log else "linear")
    axes.set_yscale("log" if y.log else "linear")
    axes.margins(x=0.0, y=0.06)
    notes = [[unit] * bool(unit) + ["log scale"] * axis.log for unit, axis in ((x_unit, x), (y_unit, y))]
    texts = [axis.label + (f" ({', '.join(note)})" if note else "") for axis, note in zip((x, y), notes, strict=True)]
    axes.set_xlabel(texts[0], color=_MUTED, labelpad=5)
    # The vertical label stands above the axis, to be read without turning one's head.
    axes.set_title(texts[1], loc="left", x=-axes.bbox.x0 / axes.bbox.width, pad=6, fontsize=_TEXT, color=_INK)


def _draw(axes, curve: Curve, x: Axis, x_divisor: float, y_divisor: float) -> None:
    place, value = data.decimate(curve.x, np.where(np.isfinite(curve.y), curve.y, np.nan), _POINTS, x.log)
    colour, dash = f"#0a000{curve.colour % COLOURS}", DASHES[curve.colour // COLOURS % len(DASHES)]
    if curve.band is not None:
        at, low, high = curve.band
        keep = np.unique(np.linspace(0, len(at) - 1, min(len(at), 300)).astype(int))
        axes.fill_between(
            at[keep] / x_divisor, low[keep] / y_divisor, high[keep] / y_divisor, color=colour, alpha=0.16, lw=0
        )
    if curve.error is not None and np.isfinite(curve.error).any() and len(curve.x) <= _POINTS:
        bars = np.nan_to_num(curve.error)
        axes.vlines(curve.x / x_divisor, (curve.y - bars) / y_divisor, (curve.y + bars) / y_divisor, color=colour, lw=1)
    few = curve.points and np.isfinite(value).sum() <= 80 or np.isfinite(value).sum() == 1
    (line,) = axes.plot(
        place / x_divisor,
        value / y_divisor,
        color=colour,
        alpha=0.34 if curve.faint else 1.0,
        lw=0.8 if curve.faint else 1.7 if curve.label else 1.1,
        linestyle=dash,
        marker="o" if few else None,
        markersize=3.6,
        markeredgewidth=0,
        clip_on=not few,
        solid_joinstyle="round",
    )
    if not curve.faint:
        line.set_gid(f"curve:{visible(curve.label)}")


def _ticks(axis, limits: tuple[float, float], about: Axis) -> None:
    from matplotlib import ticker

    low, high = sorted(limits)
    if about.log:
        decades = math.log10(high / low)
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        if decades < 0.9:
            places = ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        else:
            every = max(1, math.ceil(decades / 7))
            factors = (1, 2, 5) if decades < 2.2 else (1, 3) if decades < 3.2 else (1,)
            places = [f * 10.0**e for e in exponents if e % every == 0 for f in factors]
    else:
        places = ticker.MaxNLocator(6 if axis.axis_name == "x" else 5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    places = [place for place in places if low * (1 - 1e-9) <= place <= high * (1 + 1e-9) or low <= place <= high]
    axis.set_major_locator(ticker.FixedLocator(places))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: tick_text(value, about.kind, about.log)))
    axis.axes.set(**{f"{axis.axis_name}lim": limits})


def _end(curve: Curve, x_divisor: float, y_divisor: float) -> tuple[str, float, float]:
    last = np.flatnonzero(np.isfinite(curve.y))[-1]
    return ("" if curve.faint else curve.label), curve.x[last] / x_divisor, curve.y[last] / y_divisor


def _label_ends(axes, ends: Sequence[tuple[str, float | None, float, str]]) -> None:
    """Writes each label at the right of its line's end, pushed apart where they would overlap."""
    scale = 72 / axes.figure.dpi
    bottom, top = axes.bbox.y0 * scale, axes.bbox.y1 * scale
    wanted = sorted(
        (float(np.clip(axes.transData.transform((axes.get_xlim()[0], y))[1] * scale, bottom, top)), label, colour)
        for label, _, y, colour in ends
        if label
    )
    gap = _TEXT * 1.25
    heights = [height for height, _, _ in wanted]
    for i in range(1, len(heights)):  # push upwards, then back down from the top
        heights[i] = max(heights[i], heights[i - 1] + gap)
    limit = top + 4
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - gap
    for height, (_, label, colour) in zip(heights, wanted, strict=True):
        shown = visible(label, keep="")
        text = shown if len(shown) <= 26 else shown[:25] + "…"
        axes.annotate(
            text,
            (axes.bbox.x1 * scale + 8, height),
            xycoords="figure points",
            color=colour,
            va="center_baseline",
            annotation_clip=False,
        )


def _inline(svg: bytes, name: str, description: str, axes, x: Axis, y: Axis, width, height) -> str:
    """matplotlib's file as a bare element: no namespaces, metadata or global style, unique ids, CSS colours."""
    root = ElementTree.fromstring(svg)
    used = set(re.findall(rb'(?:url\(#|href="#)([^)"]+)', svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _attribute(value, name) for key, value in element.attrib.items()}
        identity = element.attrib.pop("id", "")
        if identity.startswith("curve:"):
            element.attrib |= {"class": "curve", "data-label": identity.removeprefix("curve:")}
        elif identity.encode() in used:
            element.attrib["id"] = f"{name}-{identity}"
        if "d" in element.attrib:
            element.attrib["d"] = _path(element.attrib["d"])
        element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))
    scale = 72 / axes.figure.dpi
    box = axes.bbox
    edges = [(box.x0, box.x1), (box.y0, box.y1)]
    across = [*(f"{edge * scale:.2f}" for edge in edges[0]), *(f"{v:.9g}" for v in axes.get_xlim()), str(int(x.log))]
    up = [*(f"{height - edge * scale:.2f}" for edge in edges[1]), *(f"{v:.9g}" for v in axes.get_ylim())]
    root.attrib = {
        "class": "chart",
        "viewBox": f"0 0 {width:g} {height:g}",
        "role": "img",
        "aria-label": description,
        "data-x": " ".join(across),
        "data-y": " ".join([*up, str(int(y.log))]),
    }
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(value: str, name: str) -> str:
    value = re.sub(r"\s*font-family:[^;]*;?", "", value)
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    value = re.sub(r"^#(?=m)", f"#{name}-", value)
    value = re.sub(r"#0a000(\d)", r"var(--s\1)", value)
    return re.sub("|".join(_VARIABLES), lambda match: f"var({_VARIABLES[match[0]]})", value)


def _path(text: str) -> str:
    """A path with one decimal (a tenth of a point) and without the letters that the format implies."""
    text = " ".join(re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), text).split())
    return text if "C" in text or "Q" in text else re.sub(r"(?<=\d) L ", " ", text)
