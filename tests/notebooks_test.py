"""Every notebook runs from top to bottom: all of them small, in this process, and one as a reader runs it."""

import sys

import matplotlib
import nbformat
import pytest
from nbclient import NotebookClient

from tests import environment

pytestmark = pytest.mark.usefixtures("one_device")
ROOT = environment.ROOT
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = {path.stem: path for path in NOTEBOOKS}
# What the cell tagged "parameters" sets, in place of what a reader has: the same cells, a few seconds of work.
SMALL = {
    "01_quickstart": {"STEPS": 60},
    "02_grow_a_tokenformer": {"STEPS": 6, "SMALL": 8, "LARGE": 16},
    "03_long_context": {"PAIRS": [4], "LENGTHS": [64, 128], "ROWS": 2},
    "04_diffusion_vs_autoregressive": {"STEPS": 6, "DRAWN": 2},
    "05_scaling_laws": {"WIDTHS": [16, 32], "STEPS": [4, 6, 8], "BOOTSTRAP": 10, "SHARE": 0.84},
    "06_write_a_kernel": {"SHAPES": [(1, 5), (63, 100)]},
}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook):
    """The one cell that is tagged."""
    (cell,) = (cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", []))
    return cell


def test_the_notebooks_are_those_that_are_run():
    assert list(NAMES) == list(SMALL)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "01_quickstart"])
def test_its_cells_run_small(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setenv("TESSERA_WORKDIR", str(tmp_path))
    monkeypatch.setattr(sys, "path", sys.path[:])
    matplotlib.use("agg")
    from matplotlib import pyplot

    notebook, names = nbformat.read(NAMES[name], as_version=4), {"__name__": "__main__"}
    try:
        for cell in code(notebook):
            exec(compile(cell.source, f"{name}:{cell.id}", "exec"), names)
            if cell is parameters(notebook):
                assert set(SMALL[name]) <= set(names)
                names.update(SMALL[name])
        assert pyplot.get_fignums()
    finally:
        pyplot.close("all")
    assert names["runs"] == tmp_path / name


def test_the_first_one_runs_as_a_reader_runs_it(tmp_path):
    """In a kernel of its own, from its own folder, with one device; it trains, draws, writes and leaves a report."""
    notebook = nbformat.read(NAMES["01_quickstart"], as_version=4)
    parameters(notebook).source = "\n".join(f"{key} = {value!r}" for key, value in SMALL["01_quickstart"].items())
    # One device and the compilers that a reader has: it trains long enough to earn their work back.
    env = environment.child() | {"TESSERA_WORKDIR": str(tmp_path), "XLA_FLAGS": ""}
    folder = {"metadata": {"path": ROOT / "notebooks"}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=folder).execute(env=env)
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    told = "".join(output.get("text", "") for output in outputs)
    bits = float(told.split("held-out bits per byte ")[1].split()[0])
    # Bytes drawn by their frequencies have 4.56 bits.
    assert bits < 4.56 and "def " in told
    assert (tmp_path / "01_quickstart" / told.splitlines()[-1]).name == "report.html"
    assert (tmp_path / "01_quickstart" / told.splitlines()[-1]).exists()
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_they_begin_alike():
    """One cell finds or installs the house; where to get it from is its first line and nowhere else."""
    firsts = {code(nbformat.read(path, as_version=4))[0].source.replace(name, "NAME") for name, path in NAMES.items()}
    assert len(firsts) == 1 and firsts.pop().startswith('REPOSITORY = ""  # Colab')


@each
def test_what_is_stored_is_small_and_without_errors_or_places_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 100_000
    for cell in code(notebook):
        assert cell.outputs == [] or cell.execution_count
        for output in cell.outputs:
            assert output.output_type != "error"
            assert not any(place in str(output) for place in ("/root/", "/home/", "/tmp/"))
