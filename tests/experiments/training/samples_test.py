"""What a run continues for its report is of its own corpus: a held-out line, a task's question, a row's beginning."""

import numpy as np
import pytest

import data
from experiments import workdir as files
from experiments.program import inputs
from experiments.training import samples, train
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("one_device")


def prompt(config):
    corpus = inputs.load(config)
    return samples.prompt(config, corpus), corpus


def test_of_text_it_is_a_line_of_the_held_out_split(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(
            f"x\n\nDocument {i} begins with this line, which has more than 48 characters.\n"
        )
    config = tiny.config(
        tmp_path, data__path=str(folder), data__length=256, data__validation=0.3, eval__sample_prompt="auto"
    )
    found, corpus = prompt(config)
    held = bytes(int(i) for i in corpus.valid.tokens[:] if i < 256).decode()
    assert found in held and found.startswith("Document ") and found.endswith(" begins with this line, which has")
    assert len(found) <= 48
    text = bytes(int(i) for i in corpus.train.tokens[:] if i < 256).decode()
    assert found not in text  # It stands in no text that was trained on: every document names its number.


def test_a_row_that_begins_inside_a_line_gives_the_next_one(tmp_path, monkeypatch):
    config = tiny.config(tmp_path, data__length=256, eval__sample_prompt="auto")
    tokens = np.frombuffer(b"lf of a line that began before\na whole line that goes on\nmore", np.uint8).astype(
        np.int32
    )[None]
    batch = {"tokens": tokens, "targets": np.roll(tokens, -1, axis=1), "scored": np.ones(tokens.shape, bool)}
    corpus = inputs.load(config)
    monkeypatch.setattr(inputs, "eval_batches", lambda *_: iter([batch]))
    assert samples.prompt(config, corpus) == "a whole line that goes on"
    batch["tokens"] = batch["tokens"].copy()
    batch["tokens"][0, :1] = corpus.tokenizer.bos  # A document begins in the row: its first line is whole.
    assert samples.prompt(config, corpus) == "f of a line that began before"


def test_what_is_asked_for_by_name_stays(tmp_path):
    for asked in ("", "def ", "Auto"):
        assert prompt(tiny.config(tmp_path, eval__sample_prompt=asked))[0] == asked
    chat = tiny.config(tmp_path, eval__sample_prompt="auto", generate__chat=True)
    assert samples.prompt(chat, None) == ""


@pytest.mark.parametrize("objective", ["next_token", "masked_diffusion"])
def test_of_a_task_it_is_the_question_and_of_pictures_their_beginning(tmp_path, objective):
    """In whole rows and in shifted ones: all up to the first answer and nothing of it."""
    asked = {"eval__sample_prompt": "auto", "data__path": "", "objective": objective}
    found, corpus = prompt(tiny.config(tmp_path, data__source="task:sorting", data__length=64, **asked))
    length = 64 + (objective == "next_token")  # A row that is shifted is one symbol longer.
    split = corpus.valid
    rows, answers = split.task.sample(split.seed, np.arange(split.count), length)
    questions = {tuple(row[: np.argmax(answer)].tolist()) for row, answer in zip(rows, answers, strict=True)}
    assert tuple(int(word) for word in found.split()) in questions and min(map(len, questions)) > 4
    found, corpus = prompt(tiny.config(tmp_path, data__source="digits", data__length=66, **asked))
    numbers = [int(word) for word in found.split()]
    assert found.endswith(" ") and len(numbers) == 16 and max(numbers) <= 16


@pytest.mark.parametrize(
    ("text", "most", "line"),
    [
        ("ab\n  a line that is long enough\nmore", 99, "  a line that is long enough"),
        ("short\nshorter", 99, "short"),
        ("one two three four five six seven eight nine ten eleven", 99, "one two three four five six seven eight nine"),
        ("one two three four five six", 13, "one two three"),
        ("x" * 80, 99, "x" * 48),
        ("x" * 80, 5, "x" * 5),
        ("\ufffd\ufffdcut at a character\ufffd", 99, "cut at a character"),
        ("\n \n", 99, ""),
    ],
)
def test_a_line_is_cut_between_words(text, most, line):
    assert samples._line(data.ByteTokenizer(), text, most) == line


def test_a_document_that_begins_in_the_row_is_preferred_to_one_that_goes_on_in_it():
    special, row = (256, 257, 258), np.array([7, 8, 257, 256, 5, 6, 257])
    assert samples._document(row, special) == ([5, 6], True)
    assert samples._document(row[:3], special) == ([7, 8], False)
    assert samples._document(row[2:4], special) == ([], True)
    assert samples._document(np.array([9, 9]), special) == ([9, 9], False)


def test_a_run_keeps_it_beside_what_it_wrote(tmp_path, capsys):
    config = tiny.config(tmp_path, eval__sample_prompt="auto", eval__sample_tokens=3, train__steps=40, eval__every=40)
    train(config, tmp_path / "run")
    said = capsys.readouterr().out
    (row,) = files.read_lines(tmp_path / "run" / files.SAMPLES, numbers=False)[0]
    assert row["prompt"] and row["prompt"] == samples.prompt(config, inputs.load(config))
    assert "the steps read the training text" not in said  # Twice or so.
    assert "checkpoint" in said and "training stood still for" in said
