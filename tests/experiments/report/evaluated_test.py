"""What evaluations left in a workdir may hold anything, in any place: the page is written all the same."""

import json
import os

import numpy as np
import pytest

from experiments import report
from experiments import workdir as files
from experiments.report import data, kept, more, routing
from experiments.routing import traces
from experiments.workdir import writers
from tests.experiments.report.made_up import make_workdir, read
from tests.json_places import changed, places

VALUES = (None, True, -1, 1.5, "NaN", "Infinity", 10**400, "", "<b>\u202e", [], [[]], ["x"], {}, {"a": 1}, 2**63)
TEXT = {
    "step": 7,
    "texts": [
        {"name": "a", "path": "a.txt", "documents": 1, "of": 2, "bytes": 9, "bits_per_byte": 2.0, "se": 0.1,
         "kind": "="},
    ],
}  # fmt: skip
DRAFT = {
    "step": 7, "drafter": "lookup", "verifier": "token", "options": {"n": 2}, "prompts": 2, "tokens": 8, "calls": 4,
    "wrote": [1, 3], "tokens_per_second": 9.0, "plain_tokens_per_second": 3.0,
}  # fmt: skip
NUMBERS = (
    "bits_per_byte", "full_bits_per_byte", "difference_se", "kept_mass", "best_mass", "rows", "prompt",
    "tokens_per_second", "state_bytes", "full_tokens_per_second", "full_state_bytes",
)  # fmt: skip
MEMORY = {
    "about": {"policy": ["h2o", [["budget", 4.0]]], "prompt": 1}, "seen": [[1, 0.5, 0.0], [1, 1, 1]],
    **{f"memory/{name}": 1 for name in NUMBERS},
}  # fmt: skip
SECTIONS = {
    files.TEXTS: more.texts, files.DRAFTS: report._drafts,
    f"{files.MEMORIES}/h2o.json": lambda run: kept.section(run.path),
    files.ROUTING: lambda run: routing.parts(run, run.path / files.ROUTING),
}  # fmt: skip
KEPT = {files.TEXTS: TEXT, files.DRAFTS: DRAFT, f"{files.MEMORIES}/h2o.json": MEMORY}


@pytest.fixture
def run(tmp_path):
    path = make_workdir(tmp_path / "run", steps=20)
    with writers.Writer(path, tensorboard=False) as writer:
        values = {f"train/layers/load/{i:02}/{e:02}": 0.5 for i in range(2) for e in range(2)}
        values |= {f"train/layers/{name}/{i:02}": 0.5 for name in routing.DRAWN for i in range(2)}
        writer.scalars(21, values | {"tokens": 21, "flops": 21})
    (path / files.MEMORIES).mkdir()
    for name, told in KEPT.items():
        (path / name).write_text(json.dumps(told) + "\n")
    traces.save(str(path / files.ROUTING), np.array([[[0], [1]], [[0], [1]]]), 2)
    return path


def shown(path):
    return report._evaluated(data.load(path))


def test_every_section_is_there(run):
    page = read(report.write(run))
    assert {"texts", "routing", "drafts", "kept"} <= set(page.ids("section"))
    assert not any("holds what no evaluation wrote" in part for parts in shown(run) for part in parts)


@pytest.mark.parametrize("name", KEPT)
def test_every_place_of_a_file_may_hold_anything(run, name):
    loaded = data.load(run)
    for at in places(KEPT[name]):
        for value in VALUES:
            (run / name).write_text(json.dumps(changed(KEPT[name], at, value)) + "\n")
            for part in more.readable(name, lambda: SECTIONS[name](loaded)):
                assert "\u202e" not in part and "<b>" not in part, (at, value)


@pytest.mark.parametrize("name", [*KEPT, files.ROUTING])
@pytest.mark.parametrize("harm", ["link", "pipe", "folder", b"", b"[]\n", b"[" * 50_000 + b"\n", b"\xff\n", b"\0\n"])
def test_a_file_that_is_none_of_ours_is_a_note_and_the_page_is_written(run, name, harm):
    path, outside = run / name, run.parent / "outside"
    whole = path.read_bytes()
    path.unlink()
    if harm == "link":
        outside.write_bytes(whole)
        path.symlink_to(outside)
    elif harm == "pipe":
        os.mkfifo(path)  # Nobody will ever write to it.
    elif harm == "folder":
        path.mkdir()
    else:
        path.write_bytes(harm)
    loaded = data.load(run)
    said = "".join(more.readable(name, lambda: SECTIONS[name](loaded)))
    if harm == "link":
        assert "it is a link" in said and outside.read_bytes() == whole
    elif isinstance(harm, str):
        assert "no plain file" in said or "a folder stands" in said
    elif name == files.DRAFTS:
        assert "line(s) left out" in said or not harm
    else:
        assert "holds what no evaluation wrote" in said or "is no trace of routing" in said, said


def test_a_folder_of_results_that_is_a_link_is_not_read(run):
    (run / files.MEMORIES).rename(run.parent / "outside")
    (run / files.MEMORIES).symlink_to(run.parent / "outside")
    assert shown(run)[3] == []


def test_a_line_of_loads_asks_for_no_more_places_than_a_table_has(run, monkeypatch):
    monkeypatch.setattr(routing, "CELLS", 8)
    for layers, good in ((2, True), (3, False)):  # Of four experts each.
        with writers.Writer(run, tensorboard=False) as writer:
            cells = {f"train/layers/load/{i:02}/{e:02}": 0.25 for i in range(layers) for e in range(4)}
            writer.scalars(20 + layers, cells | {"tokens": 22})
        assert ("holds what no evaluation wrote" not in shown(run)[1][0]) == good


def test_a_trace_of_more_experts_than_pairs_are_counted_of_is_left_out(run):
    traces.save(str(run / files.ROUTING), np.array([[[0], [1]]]), 30_000)
    assert all("held-out tokens" not in part for part in shown(run)[1])
