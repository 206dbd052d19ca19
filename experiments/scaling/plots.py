"""Figures that a paper could print: loss against compute, isoFLOP parabolas, the frontier, held-out errors.

Each function returns a matplotlib Figure, drawn without pyplot or global state; `save` writes it as SVG, PDF and PNG.
"""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments import workdir as files
from experiments.scaling.fit import Extrapolation, Fit
from experiments.scaling.isoflop import IsoFLOP, budgets_of
from experiments.scaling.laws import compute_optimal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.scaling.coordinates import Coordinates  # It trains, and so imports jax.

FORMATS = ("svg", "pdf", "png")
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text: selectable, and accepted by publishers
    "svg.fonttype": "none",
    "svg.hashsalt": "tessera",  # the same figure is the same file
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
}
_INK, _ACCENT, _HELD = "#333333", "#0b5fa5", "#c2410c"


@contextlib.contextmanager
def drawing(width: float, height: float, columns: int = 1):
    """(figure, axes) in inches, under our style only; the user's own style is not read."""
    import matplotlib  # slow to import, and only drawing needs it
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, height))
        yield figure, figure.subplots(1, columns)


def save(figure: "Figure", path: str | pathlib.Path, formats: Sequence[str] = FORMATS) -> list[pathlib.Path]:
    """Writes `figure` as `path` with each suffix of `formats` and returns the paths."""
    import matplotlib

    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"formats={tuple(formats)!r} has {name!r}; use some of {FORMATS}.")
    base = pathlib.Path(path)
    written = []
    with matplotlib.rc_context():
        matplotlib.rcParams.update(_STYLE)
        for name in formats:
            out = base.with_name(f"{base.name}.{name}")
            # No date inside: the same figure twice is the same bytes.
            undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(name)
            files.write_figure(out, figure, format=name, metadata=undated)
            written.append(out)
    return written


def loss_against_compute(fit: Fit, columns: Mapping[str, np.ndarray]) -> "Figure":
    """Runs coloured by size, the curve of the fit for each size, and the compute-optimal frontier (Chinchilla form).

    `columns`: `parameters`, `tokens`, `flops`, `loss`, `[R]` each.
    """
    sizes, flops = np.asarray(columns["parameters"]), np.asarray(columns["flops"])
    with drawing(4.2, 3.0) as (figure, axes):
        points = axes.scatter(flops, columns["loss"], c=np.log10(sizes), s=9, cmap="viridis", zorder=3, linewidths=0)
        colour = points.get_cmap()
        levels = np.unique(sizes) if len(np.unique(sizes)) <= 12 else np.geomspace(sizes.min(), sizes.max(), 8)
        for size in levels:
            near = flops[np.abs(np.log(sizes / size)) < 0.2]
            if not len(near):
                continue
            along = np.geomspace(near.min(), near.max() * 1.001, 60)
            loss = fit.predict({"parameters": np.full(60, size), "tokens": along / (6 * size)})
            axes.plot(along, loss, color=colour(points.norm(np.log10(size))), alpha=0.6, linewidth=0.8)
        along = np.geomspace(flops.min(), flops.max() * 10, 100)
        best, low, high = fit.derived(lambda values: compute_optimal(values, along)["loss"])
        axes.plot(along, best, color=_INK, linestyle="--", label="compute-optimal")
        if np.isfinite(low).all():
            axes.fill_between(along, low, high, color=_INK, alpha=0.15, linewidth=0)
        axes.axhline(fit.values["E"], color=_INK, linewidth=0.6, linestyle=":")
        axes.annotate(f"E = {fit.values['E']:.3f}", (flops.min(), fit.values["E"]), va="bottom", color=_INK)
        axes.set(xscale="log", xlabel="training FLOPs", ylabel="loss (nats per token)")
        axes.legend(loc="upper right")
        figure.colorbar(points, ax=axes, label="log10 parameters", shrink=0.8)
    return figure


def isoflops(result: IsoFLOP, columns: Mapping[str, np.ndarray], *, tolerance: float = 0.1) -> "Figure":
    """Parabolas of each budget with their minima, and beside them the power law of the minima."""
    budget = budgets_of(columns["flops"], tolerance)
    with drawing(6.4, 2.8, 2) as (figure, (left, right)):
        from matplotlib import cm, colors

        logs = np.log10(result.budgets)
        shade = cm.ScalarMappable(colors.Normalize(logs.min(), logs.max()), "viridis")
        colours = shade.to_rgba(logs)
        for k, (value, curve) in enumerate(zip(result.budgets, result.curves, strict=True)):
            rows = np.isclose(budget, value)
            size = np.asarray(columns["parameters"])[rows]
            along = np.linspace(np.log(size.min()), np.log(size.max()), 80)
            left.plot(np.exp(along), np.polyval(curve, along), color=colours[k])
            left.scatter(size, np.asarray(columns["loss"])[rows], color=colours[k], s=8, linewidths=0)
            left.scatter(result.parameters[k], result.loss[k], marker="*", s=24, color=_INK, zorder=4)
            right.scatter(value, result.parameters[k], color=colours[k], s=14, zorder=3)
        left.set(xscale="log", xlabel="parameters", ylabel="loss (nats per token)")
        figure.colorbar(shade, ax=left, label="log10 FLOPs", shrink=0.8)
        along = np.geomspace(result.budgets.min() / 2, result.budgets.max() * 10, 50)
        a = result.exponents["a"]
        right.plot(
            along, result.constants["n"] * along**a, color=_INK, linestyle="--", label=f"$N^* \\propto C^{{{a:.3f}}}$"
        )
        right.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="optimal parameters")
        right.legend()
    return figure


def frontier(fit: Fit, flops: np.ndarray, minima: IsoFLOP | None = None) -> "Figure":
    """Optimal parameters and tokens against compute `flops`, with 95% bands, and isoFLOP minima if given."""
    flops = np.asarray(flops, np.float64)
    with drawing(6.4, 2.6, 2) as (figure, axes):
        for ax, key, exponent in zip(axes, ("parameters", "tokens"), ("a", "b"), strict=True):
            best, low, high = fit.derived(lambda values, key=key: compute_optimal(values, flops)[key])
            power = float(compute_optimal(fit.values, flops)[exponent])
            ax.plot(flops, best, color=_ACCENT, label=f"fit: $C^{{{power:.3f}}}$")
            if np.isfinite(low).all():
                ax.fill_between(flops, low, high, color=_ACCENT, alpha=0.2, linewidth=0)
            if minima is not None:
                ax.scatter(minima.budgets, getattr(minima, key), color=_INK, s=12, zorder=3, label="isoFLOP minima")
            ax.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=f"optimal {key}")
            ax.legend()
    return figure


def held_out(result: Extrapolation, columns: Mapping[str, np.ndarray]) -> "Figure":
    """Relative error of the predictions of held-out runs against their compute, or size where all have one budget.

    `columns`: `parameters` and `flops`, `[R]` of ALL runs.
    """
    flops, sizes = (np.asarray(columns[key])[result.held_out] for key in ("flops", "parameters"))
    x, label = (sizes, "parameters") if flops.max() < 1.1 * flops.min() else (flops, "training FLOPs")
    with drawing(3.4, 2.6) as (figure, axes):
        axes.axhline(0, color=_INK, linewidth=0.6)
        axes.scatter(x, 100 * result.error, color=_HELD, s=12, linewidths=0)
        axes.set(xscale="log", xlabel=label, ylabel="predicted / measured - 1 (%)")
        axes.set_title(f"median |error| {100 * result.median:.2f}%", loc="left", fontsize=8)
    return figure


def coordinates(result: "Coordinates", title: str = "") -> "Figure":
    """How far each activation moved after each step against the width: level lines where rates carry over."""
    steps = result.moved.shape[1]
    with drawing(1.8 * steps + 1.6, 2.6, steps) as (figure, axes):
        import matplotlib

        axes = np.atleast_1d(axes)
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(result.names)))
        for step, ax in enumerate(axes):
            for k, name in enumerate(result.names):
                ax.plot(result.widths, result.moved[:, step, k], color=colours[k], marker="o", markersize=3, label=name)
            ax.set(xscale="log", yscale="log", xlabel="width", title=f"step {step + 1}")
            ax.set_xticks(result.widths, [str(width) for width in result.widths])
            ax.set_xticks([], minor=True)
            ax.set_ylim(0.5 * result.moved.min(), 2 * result.moved.max())
        axes[0].set_ylabel("moved by (root mean square)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
        if title:
            figure.suptitle(title, fontsize=8)
    return figure
