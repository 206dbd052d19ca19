"""The ledger: made of stored evidence, kept beside what is written by hand."""

import json
import re

import pytest

from experiments import claims
from experiments import workdir as files
from experiments.claims import ledger
from experiments.settings.errors import Refused

RECORD = {
    "claim": "a.py", "source": "Author 2020", "command": "python main.py --mode=claim --config=configs/claims/a.py",
    "date": "2026-01-02", "machine": "2 CPU cores",
    "rows": [{"statement": "A | B", "published": "1 < 2", "measured": "3", "scale": "4", "verdict": "does not",
              "numbers": {}}],
}  # fmt: skip


def test_the_ledger_is_made_of_its_evidence_and_keeps_what_is_written_by_hand(tmp_path):
    docs, run = tmp_path / "docs", tmp_path / "run"
    docs.mkdir()
    (docs / "LEDGER.md").write_text(f"before\n{ledger.BEGIN}\nold\n{ledger.END}\nafter\n")
    files.write_json(run / claims.FILE, RECORD)
    ledger.store([run], docs)
    assert json.loads((docs / "claims" / "a.json").read_text()) == RECORD
    ledger.write(docs)
    first = (docs / "LEDGER.md").read_text()
    assert first.startswith("before\n") and first.endswith("\nafter\n") and "old" not in first
    assert "| A \\| B (Author 2020) | 1 < 2 | 3 | 4 | does not |" in first and RECORD["command"] in first
    ledger.write(docs)
    assert (docs / "LEDGER.md").read_text() == first
    shown = (docs / "ledger.html").read_text()
    assert "1 &lt; 2" in shown and RECORD["command"] in shown
    for key, value in (
        ("date", ""),
        ("rows", []),
        ("claim", "../x"),
        ("claim", "..json"),
        ("claim", 3),
        ("source", ["a"]),
        ("rows", {"a": 1}),
        ("rows", ["a"]),
        ("rows", [RECORD["rows"][0] | {"measured": 3}]),
        ("rows", [RECORD["rows"][0] | {"verdict": "yes"}]),
    ):
        files.write_json(run / claims.FILE, RECORD | {key: value})
        with pytest.raises(Refused, match="has no usable"):
            ledger.store([run], docs)
    (docs / "LEDGER.md").write_text(f"{ledger.END}\n{ledger.BEGIN}\n")
    with pytest.raises(Refused, match="needs the lines"):
        ledger.write(docs)
    (docs / "LEDGER.md").write_text("no markers")
    with pytest.raises(Refused, match="needs the lines"):
        ledger.write(docs)


def test_text_of_a_claim_stays_in_its_cell_and_the_next_run_is_not_blocked(tmp_path):
    docs, run = tmp_path / "docs", tmp_path / "run"
    docs.mkdir()
    # As an earlier version left it, with a marker in a cell and as a line within the table.
    broken = f"before\n{ledger.BEGIN}\n| a {ledger.END} |\n{ledger.END}\n| rest |\n{ledger.END}\nafter\n"
    (docs / "LEDGER.md").write_text(broken)
    evil = f"x\n{ledger.END}\n<script>alert(1)</script>\n# head\n\u202e| ![i](http://a)"
    row = dict.fromkeys(("statement", "published", "measured", "scale"), evil) | {"verdict": "holds", "numbers": {}}
    files.write_json(run / claims.FILE, RECORD | {"rows": [row], "command": evil, "machine": evil, "source": evil})
    ledger.store([run], docs)
    ledger.write(docs)
    first = (docs / "LEDGER.md").read_text()
    table = first.removeprefix(f"before\n{ledger.BEGIN}\n").removesuffix(f"{ledger.END}\nafter\n")
    assert len(table) < len(first) - 20
    lines = [line for line in table.splitlines() if line]
    assert [line[:2] for line in lines] == ["| ", "|-", "| ", "- "]  # Head, rule, one row, one command.
    assert len(re.findall(r"(?<!\\)\|", lines[2])) == 6
    unfenced = lines[2] + lines[3].partition("`")[0]
    assert not re.search(r"<[a-z/!]|\]\(|\u202e", unfenced)
    ledger.write(docs)
    assert (docs / "LEDGER.md").read_text() == first
    shown = (docs / "ledger.html").read_text()
    assert "\u202e" not in shown and "alert(1)</script>" not in shown


def test_the_ledger_of_the_house_is_up_to_date(tmp_path):
    """Its table says what docs/claims holds, no more and no less."""
    text = (ledger.DOCS / ledger.LEDGER).read_text("utf-8")
    paths = sorted((ledger.DOCS / ledger.STORE).glob("*.json"))
    table = text.split(ledger.BEGIN)[1].split(ledger.END)[0]
    assert table == "\n" + ledger.markdown([json.loads(path.read_text()) for path in paths])
