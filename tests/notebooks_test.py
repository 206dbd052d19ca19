"""Every notebook runs from top to bottom: all of them small, in this process, and one as a reader runs it."""

import copy
import importlib.util
import json
import sys

import matplotlib
import nbformat
import pytest
from nbclient import NotebookClient

from experiments.pretrained import writing
from experiments.training import train
from experiments.workdir import trained
from tests import environment
from tests.experiments import tiny

_SPEC = importlib.util.spec_from_file_location("address", environment.ROOT / "notebooks" / "address.py")
address = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(address)
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
    "07_a_pretrained_model": {"TOKENS": 4, "STEPS": 2, "ROWS": 2, "LENGTH": 64},
}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook):
    """The one cell that is tagged."""
    (cell,) = (cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", []))
    return cell


def pretrained(folder):
    """A model of this house as a folder of transformers' form: what the real one is to a reader, in no time."""
    config = tiny.config(folder, data__tokenizer="bpe", data__vocab_size=300, model__channel="swiglu")
    train(config, folder / "made", quiet=True)
    writing.hugging_face(trained.load(folder / "made"), folder / "hf")
    return folder / "hf"


def test_the_notebooks_are_those_that_are_run():
    assert list(NAMES) == list(SMALL)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "01_quickstart"])
def test_its_cells_run_small(name, tmp_path, monkeypatch):
    small = SMALL[name] | ({"MODEL": str(pretrained(tmp_path))} if name.startswith("07") else {})
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
                assert set(small) <= set(names)
                names.update(small)
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
def test_the_address_of_the_repository_is_written_once(path):
    plain = json.loads(path.read_text("utf-8"))
    one, two = "https://github.com/OWNER/tessera", "https://github.com/other/fork.git"
    made = [address.addressed(copy.deepcopy(plain), path.name, where) for where in (one, two)]
    again = address.addressed(copy.deepcopy(made[1]), path.name, one)
    assert made[0] == again and made[0] != made[1]
    title, first = ("".join(cell["source"]) for cell in (made[0]["cells"][0], code_of(made[0])[0]))
    assert title.split("\n")[2].endswith(f"/github/OWNER/tessera/blob/main/notebooks/{path.name})")
    assert first.startswith(f'REPOSITORY = "{one}"  # Colab only')
    rest = [line for line in title.split("\n") if "colab-badge" not in line]
    assert [line for line in rest if line] == [
        line for line in "".join(plain["cells"][0]["source"]).split("\n") if line
    ]
    with pytest.raises(ValueError, match="use e.g. https://github.com/OWNER/tessera"):
        address.addressed(copy.deepcopy(plain), path.name, "github.com/OWNER")


def code_of(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@each
def test_what_is_stored_is_small_and_without_errors_or_places_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 100_000
    assert any("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)
    for cell in code(notebook)[2:]:  # Behind the cells that find the house and set numbers.
        assert cell.execution_count, cell.source
        for output in cell.outputs:
            assert output.output_type != "error"
            assert not any(place in str(output) for place in ("/root/", "/home/", "/tmp/"))
