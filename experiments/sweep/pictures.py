"""Optuna's own plots of a search, drawn from its journal by its matplotlib backend."""

import pathlib
import warnings
from typing import Any

from experiments import workdir as files
from experiments.workdir import disk

PLOTS = {  # file: function of optuna.visualization.matplotlib
    "history": "plot_optimization_history",
    "slice": "plot_slice",
    "contour": "plot_contour",
    "parallel": "plot_parallel_coordinate",
}
FOLDER = "search"


def draw(study: Any, metric: str, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Writes each of PLOTS as SVG into `search/` of the workdir and returns the paths.

    A plot that the finished trials do not allow is left out: a contour needs two settings, any plot two trials. Nothing
    of the reader's matplotlib changes: no window, and the style of before.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from optuna import visualization
    from optuna.trial import TrialState

    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    settings = {name for trial in done for name in trial.params}
    if len(done) < 2:
        return []
    backend = matplotlib.get_backend()
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    written = []
    try:
        for name, function in PLOTS.items():
            if name == "contour" and len(settings) < 2:
                continue
            with matplotlib.rc_context(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # That the backend is experimental, and that a legend is empty.
                axes = getattr(visualization.matplotlib, function)(study, target_name=metric)
                figure: Figure = (axes.ravel()[0] if hasattr(axes, "ravel") else axes).figure
                path = workdir / FOLDER / f"{name}.svg"
                disk.own_folder(path.parent)
                files.write_figure(path, figure, format="svg", metadata={"Date": None}, bbox_inches="tight")
                pyplot.close(figure)
            written.append(path)
    finally:
        pyplot.switch_backend(backend)
    return written
