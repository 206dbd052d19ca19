"""--mode=tokenize: the measures of a corpus by hand, and the files that it leaves."""

import json
import types

import numpy as np
import pytest

import data
from experiments import modes, opening, tokenizers
from experiments.settings.errors import ConfigError, Refused
from tests.experiments import tiny


class Kind:
    """Three pieces, and the specials."""

    pieces = (b"a", b" ", b"ab", b"", b"", b"")
    vocab_size, hash, name = 6, "x", "kind"


def test_measures_by_hand():
    texts = ([0, 1, 2, 0], [2, 2, 1, 1])  # "a aba", "abab  "
    tokens = np.concatenate([[3, *ids, 4] for ids in texts])
    valid = data.Tokens(tokens, np.array([0, 6]), 11)
    got = tokenizers.measured(types.SimpleNamespace(tokenizer=Kind(), valid=valid))
    assert (got["documents"], got["bytes"], got["tokens"]) == (2, 11, 8)
    assert got["bytes_per_token"] == 11 / 8
    assert got["fertility"] == 5 / 3, "a | aba in two | abab in two"
    p = np.array([2, 3, 3]) / 8
    assert got["renyi_efficiency"] == pytest.approx(np.log((p**2.5).sum()) / -1.5 / np.log(3))
    assert got["coverage"] == 1.0
    # Ends of tokens: 1 2 4 5 and 2 4 5 6; of words: 1 5 and 4.
    assert got["boundary_f1"] == pytest.approx(2 * 3 / (8 + 3))
    low, high = got["interval"]
    assert 5 / 4 <= low <= 11 / 8 <= high <= 6 / 4
    assert got["scripts"] == {"blank": 1, "latin": 2, "special": 3}
    with pytest.raises(ConfigError, match="holds nothing out"):
        tokenizers.measured(
            types.SimpleNamespace(tokenizer=Kind(), valid=data.Tokens(tokens[:0], np.array([], int), 0))
        )


def test_the_mode_compares_and_leaves_a_figure(tmp_path, monkeypatch, capsys):
    made = tiny.config(tmp_path, data__vocab_size=300)
    monkeypatch.setattr(opening, "config", lambda *_: made)
    flags = types.SimpleNamespace(mode="tokenize", workdir=str(tmp_path / "out"), filter="bytes, bpe,lzw")
    modes.run(flags, [])
    rows = json.loads((tmp_path / "out" / tokenizers.FILE).read_text())
    assert [row["tokenizer"] for row in rows] == ["bytes", "bpe", "lzw"]
    assert rows[0]["bytes_per_token"] == 1 and rows[1]["bytes_per_token"] > 1.2
    assert len({row["bytes"] for row in rows}) == 1, "all read the same held-out text"
    assert "bytes/token" in capsys.readouterr().out and (tmp_path / "out" / tokenizers.FIGURE).exists()
    flags.filter = "bpe,bqe"
    with pytest.raises(Refused, match="'bqe' is no tokenizer; choose of bytes, bpe"):
        modes.run(flags, [])


def test_parallel_texts_and_morphemes_are_measured_where_they_are_given(tmp_path, monkeypatch, capsys):
    """Two documents each; tokens of a byte: bytes of one text over those of the other, the mean of both documents."""
    made = tiny.config(tmp_path, data__vocab_size=300).unlock()
    for name, some in {"en": ("abc", "abcd"), "ru": ("жж", "я")}.items():
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in some)
        (tmp_path / f"{name}.jsonl").write_text(lines, "utf-8")
    (tmp_path / "morphemes.txt").write_text("A\n\nxyz\n b\n")
    made.eval.texts = (f"en={tmp_path / 'en.jsonl'}", f"ru={tmp_path / 'ru.jsonl'}")
    made.eval.morphemes = str(tmp_path / "morphemes.txt")
    monkeypatch.setattr(opening, "config", lambda *_: made)
    flags = types.SimpleNamespace(mode="tokenize", workdir=str(tmp_path / "out"), filter="bytes")
    modes.run(flags, [])
    (row,) = json.loads((tmp_path / "out" / tokenizers.FILE).read_text())
    assert row["parity"] == {"en": 1.0, "ru": pytest.approx((4 / 3 + 2 / 4) / 2)}
    assert row["pure"] == pytest.approx(100 * 2 / 8)  # The corpus has the letters a to h, and blanks, which are none.
    out = capsys.readouterr().out
    assert "%Pure" in out and "en 1.00, ru 0.92" in out
    (tmp_path / "ru.jsonl").write_text(json.dumps({"text": "я"}) + "\n")
    with pytest.raises(ConfigError, match=r"unlike numbers of documents \(en 2, ru 1\)"):
        tokenizers.compare(made, tmp_path / "out", ["bytes"])
    made.eval.texts, made.eval.morphemes = (), str(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        tokenizers.compare(made, tmp_path / "out", ["bytes"])
