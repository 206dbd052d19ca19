"""The experts' section of a report: there where the metrics have layers, with the numbers of the last logged step."""

import numpy as np
import pytest

from experiments import report
from experiments import workdir as files
from experiments.report import data, routing
from experiments.routing import traces
from experiments.settings.errors import Refused
from experiments.workdir import writers
from tests.experiments.report.made_up import make_workdir


def test_a_dense_run_has_no_such_section(tmp_path):
    make_workdir(tmp_path / "dense", steps=50)
    assert 'id="routing"' not in report.write(tmp_path / "dense").read_text()


def test_loads_curves_and_what_follows_what(tmp_path):
    path = tmp_path / "moe"
    make_workdir(path, steps=50)
    load = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    with writers.Writer(path, tensorboard=False) as writer:
        for step in (60, 70):
            values = {f"train/layers/load/{i:02}/{e:02}": load[i, e] * step / 70 for i in range(2) for e in range(3)}
            values |= {f"train/layers/{name}/{i:02}": 0.5 + i for name in routing.DRAWN for i in range(2)}
            writer.scalars(step, values | {"tokens": step, "flops": step})
    np.testing.assert_allclose(routing.loads(data.load(path)), load)
    traces.save(str(path / files.ROUTING), np.array([[[0], [2]], [[0], [1]], [[0], [2]], [[1], [0]]]), 3)
    page = report.write(path).read_text()
    assert "Which tokens go where" not in page  # A trace without texts: those of earlier versions.
    section = page[page.index('id="routing"') :]
    assert all(f">{100 * share:.1f}<" in section for share in load.ravel())
    assert all(label.split(",")[0] in page for label in routing.DRAWN.values())
    # Expert 1 is followed by 0 each time, which is surer than 0 by 2 in two of three.
    assert "layer 0 to 1" in section and "1 to 0" in section and "train/layers/" not in section


def test_which_tokens_go_where(tmp_path):
    """Blanks go to expert 0 alone, "<b>" to 1 and 2; expert 2 has nothing that the others lack."""
    path = tmp_path / "moe"
    make_workdir(path, steps=50)
    with writers.Writer(path, tensorboard=False) as writer:
        writer.scalars(60, {"train/layers/load/00/00": 1.0, "train/layers/entropy/00": 1.0, "tokens": 1, "flops": 1})
    trace = np.array([0, 0, 0, 1, 1, 1, 2, 0])[:, None, None]
    told = [0, 0, 0, 1, 1, 1, 1, 2], [" ", "<b>", "x"]
    traces.save(str(path / files.ROUTING), trace, 3, told)
    assert traces.read(path / files.ROUTING)[0].tolist() == trace.tolist()
    tokens, texts = traces.read_texts(path / files.ROUTING)
    assert (tokens.tolist(), texts) == told
    page = report.write(path).read_text()
    section = page[page.index("Which tokens go where") :]
    cells = section[: section.index("</table>")]
    assert cells.count("<code>space</code> 100.0%") == 1 and cells.count("<code>x</code> 100.0%") == 1
    assert "<code>&lt;b&gt;</code> 75.0%" in cells and "<code>&lt;b&gt;</code> 25.0%" in cells
    assert cells.index("space") < cells.index("<code>x</code>") < cells.index("75.0%") < cells.index("25.0%")
    assert "50.0%" in cells and "37.5%" in cells and "12.5%" in cells  # loads


def test_texts_that_do_not_fit_the_trace_are_told(tmp_path):
    path = tmp_path / "moe"
    make_workdir(path, steps=50)
    with writers.Writer(path, tensorboard=False) as writer:
        writer.scalars(60, {"train/layers/load/00/00": 1.0, "train/layers/entropy/00": 1.0, "tokens": 1, "flops": 1})
    for told in (([0, 3], ["a", "b"]), ([0], ["a"])):
        traces.save(str(path / files.ROUTING), np.array([[[0], [0]], [[0], [0]]]), 1, told)
        with pytest.raises(Refused, match="is no trace of routing"):
            traces.read_texts(path / files.ROUTING)
        assert "Which tokens go where" not in report.write(path).read_text()


def test_of_many_layers_the_first_the_last_and_some_between_are_drawn():
    layers = [f"{i:02}" for i in range(40)]
    shown = routing._spread(layers)
    assert shown[0] == "00" and shown[-1] == "39" and len(shown) == routing.MOST
    assert routing._spread(layers[:3]) == layers[:3]
