"""Other texts are measured document by document, and the sum is that of a plain form."""

import hashlib
import json
import math

import jax
import numpy as np
import pytest

from configs import base
from experiments import modes, report
from experiments import workdir as files
from experiments.settings.errors import ConfigError, Refused
from experiments.training import evaluate, other_texts, train
from experiments.workdir import trained
from kernels import masks
from tests.experiments import tiny
from tests.experiments.cli_test import flags

TEXTS = {"a.txt": "one of these words", "b.txt": "two " * 30, "c.txt": "é\n" * 7}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    train(tiny.config(folder), folder / "run")
    (folder / "new").mkdir()
    for name, text in TEXTS.items():
        (folder / "new" / name).write_text(text)
    return folder / "run"


def measured(run, **changes):
    config = trained.saved_config(run).copy_and_resolve_references()
    with config.unlocked():
        config.eval.update(changes)
    model = trained.load(run, config)
    return model, list(other_texts.evaluate(model, evaluate.make_step(model.program)))


def bits_by_hand(model, content: bytes) -> float:
    """Each piece of T tokens by itself, from the logits of one row."""
    ids = [model.tokenizer.bos, *content, model.tokenizer.eos]
    T, total = model.config.data.length, 0.0
    for k in range(0, len(ids), T):
        row, after = ids[k : k + T], ids[k + 1 : k + T + 1]
        lm = model.program.merge(model.params)
        logits = np.asarray(lm.logits(lm(np.asarray([row], np.int32), mask=masks.Causal()).features)[0], np.float64)
        law = jax.nn.log_softmax(logits[: len(after), : model.tokenizer.vocab_size])
        total -= sum(float(law[i, token]) for i, token in enumerate(after))
    return total / math.log(2)


def test_each_document_by_itself_equals_a_plain_form(run):
    model, (found,) = measured(run, texts=(f"new={run.parent / 'new'}",), rows=0)
    contents = sorted((t.encode() for t in TEXTS.values()), key=lambda b: hashlib.sha256(b).digest())
    lines = list(other_texts.each_document(found, model.tokenizer))
    assert [line["sha256"] for line in lines] == [hashlib.sha256(c).hexdigest() for c in contents]
    wanted = [bits_by_hand(model, c) for c in contents]
    np.testing.assert_allclose([line["bits"] for line in lines], wanted, rtol=1e-5)
    assert [line["bytes"] for line in lines] == [len(c) for c in contents]
    assert found.documents == found.of == 3 and found.bytes == sum(map(len, contents))
    assert found.bits_per_byte == pytest.approx(sum(wanted) / found.bytes, rel=1e-5)
    # The error of a ratio over three documents, by its definition.
    residual = np.array(wanted) - found.bits_per_byte * np.array([len(c) for c in contents])
    assert found.se == pytest.approx(math.sqrt(3 / 2 * (residual**2).sum()) / found.bytes, rel=1e-3)


def test_whole_documents_within_the_rows_that_are_allowed(run):
    """32 tokens a row: the documents take 1, 4 and 1 rows, in an order that their hashes give."""
    rows = {text: -(-(len(text.encode()) + 2) // 32) for text in TEXTS.values()}
    order = sorted(TEXTS.values(), key=lambda t: hashlib.sha256(t.encode()).digest())
    total = np.cumsum([rows[text] for text in order])
    for allowed in (1, 3, 4, 5, 6, 7):
        _, (found,) = measured(run, texts=(str(run.parent / "new"),), rows=allowed)
        assert found.documents == max(int((total <= allowed).sum()), 1) and found.of == 3 and found.name == "new"
    _, (found,) = measured(run, texts=(f"one={run.parent / 'new' / 'b.txt'}",), rows=0)
    assert found.documents == 1 and found.se > 0 and "(95 % over rows: " in other_texts.line(found)


def test_the_command_prints_lines_and_the_report_has_a_table(run, capsys):
    texts = f"new={run.parent / 'new'},b={run.parent / 'new' / 'b.txt'}"
    modes.run(flags(mode="evaluate", workdir=str(run), output=str(run.parent / "each.jsonl")), [("eval.texts", texts)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("held-out bits per byte = ") and lines[1].startswith("new: bits per byte = ")
    assert lines[2].startswith("b: bits per byte = ") and lines[3].startswith("4 documents: ")
    each = [json.loads(line) for line in (run.parent / "each.jsonl").read_text().splitlines()]
    assert [line["text"] for line in each] == ["new"] * 3 + ["b"]
    page = report.write(run).read_text()
    assert "Other texts" in page and str(run.parent / "new") in page
    (run / files.TEXTS).write_text('{"texts": [3]}')
    assert f"{files.TEXTS} holds what no evaluation wrote" in report.write(run).read_text()
    other_texts.check_output(str(run.parent / "each.jsonl"))  # It may be written anew.


@pytest.mark.parametrize("held", [b"my diary\n", b'{"text": "a corpus"}\n', b"[1]\n", b"[" * 50_000, b"7"])
def test_a_file_of_something_else_is_not_written_over(held, tmp_path):
    path = tmp_path / "each.jsonl"
    other_texts.check_output(str(path))
    path.write_bytes(held)
    with pytest.raises(Refused, match="--output=.* holds what no evaluation of texts wrote; give a new file"):
        other_texts.check_output(str(path))
    path.write_bytes(b"")
    other_texts.check_output(str(path))


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (("a=x", "a=y"), "two texts of the name 'a'"),
        (("a=",), "names no text; use NAME=PATH"),
        (("gone.txt",), "eval.texts 'gone': path='gone.txt' does not exist"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(texts, told, run):
    with pytest.raises(ConfigError, match=told):
        measured(run, texts=texts)


def test_texts_that_are_not_there_are_told_before_anything_is_measured(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    config = base.get_config()
    for path, there in ((tmp_path / "a.txt", True), (tmp_path / "?.txt", True), (tmp_path / "b*", False)):
        config.eval.texts = (f"a={path}",)
        if there:
            other_texts.check(config)
            continue
        with pytest.raises(ConfigError, match="eval.texts 'a': .*b.' does not exist; use a file, folder or pattern"):
            other_texts.check(config)
