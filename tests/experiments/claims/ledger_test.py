"""The ledger: made of stored evidence, kept beside what is written by hand."""

import json
import re
import sys
import types
import xml.etree.ElementTree as ElementTree

import pytest

from experiments import claims
from experiments import workdir as files
from experiments.claims import curve_plot, interval_plot, ledger, pages
from experiments.claims.evidence import Evidence
from experiments.report import markdown, page
from experiments.report.markdown import code
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
    assert "| family | rows | does not |" in first and "| other | 1 | 1 |" in first and "| all | 1 | 1 |" in first
    named = (docs / "claims" / "README.md").read_text()
    assert "## other" in named and "| A \\| B | does not |  | see its page | [a](a.md) |" in named
    its = (docs / "claims" / "a.md").read_text()
    assert "**does not**: A \\| B" in its and "published: 1 < 2" in its and f"`{RECORD['command']}`" in its
    assert not (docs / "claims" / "a.svg").exists()  # no interval, no figure
    (docs / "claims" / "gone.md").write_text("of a claim whose evidence is gone")
    ledger.write(docs)
    assert (docs / "LEDGER.md").read_text() == first and not (docs / "claims" / "gone.md").exists()
    assert "1 &lt; 2" in (docs / "claims" / "a.html").read_text()
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
        ("again", {"rows": []}),
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


def test_a_second_run_stands_beside_the_first(tmp_path):
    """Of rows that hold is said what a run with other seeds says; it stays until the rows are others."""
    docs, run = tmp_path / "docs", tmp_path / "run"
    docs.mkdir()
    (docs / "LEDGER.md").write_text(f"{ledger.BEGIN}\n{ledger.END}\n")

    def store(*rows, **more):
        numbers = {"mean": 1.0, "low": 0.0, "high": 2.0, "seeds": [0, 1], "losses": [3.0]}
        made = [RECORD["rows"][0] | {"statement": f"{k}", "verdict": v, "numbers": numbers} for k, v in enumerate(rows)]
        files.write_json(run / claims.FILE, RECORD | {"rows": made} | more)
        ledger.store([run], docs)
        ledger.write(docs)
        return files.read_json(docs / "claims" / "a.json"), (docs / "LEDGER.md").read_text()

    with pytest.raises(Refused, match="without --first_seed first"):
        store("holds", first_seed=100)
    _, text = store("holds", "holds", "holds", "does not", "exact")
    assert "Run once more" not in text
    second = {"first_seed": 100, "date": "2026-03-04", "command": "second"}
    record, text = store("holds", "does not", "holds", "holds", "exact", **second)
    assert [row["verdict"] for row in record["rows"]] == ["holds", "holds", "holds", "does not", "exact"]
    assert record["date"] == RECORD["date"] and record["again"]["date"] == "2026-03-04"
    assert {*record["again"]["rows"][0]["numbers"]} == {"mean", "low", "high", "seeds"}
    said = "5 rows of 1 claims. Of 3 that hold the second run says: 2 holds, 1 does not; of 1 that do not, 1 hold."
    assert f"Run once more with other seeds: {said}" in " ".join(text.split())
    page = (docs / "claims" / "a.md").read_text()
    assert "## Once more, with other seeds\n\n- **holds**: 0\n  - 3\n- **does not**: 1" in page and "`second`" in page
    assert "| 1 | holds | does not | 1 [0, 2] | [a](a.md) |" in (docs / "claims" / "README.md").read_text()
    assert "Once more, with other seeds" in (docs / "claims" / "a.html").read_text()
    again = record["again"]
    assert store("does not", "holds", "holds", "does not", "exact")[0]["again"] == again
    assert "again" not in store("holds", "holds")[0]


def test_no_row_of_the_house_that_holds_is_refuted_by_its_second_run():
    both = [
        (first, second)
        for record in house() if "again" in record
        for first, second in zip(record["rows"], record["again"]["rows"], strict=True)
    ]  # fmt: skip
    assert both
    for first, second in both:
        assert {first["verdict"], second["verdict"]} != {"holds", "does not"}, first["statement"]
        assert not {*first["numbers"].get("seeds", ())} & {*second["numbers"].get("seeds", ())}


def test_a_claim_runs_by_other_seeds(tmp_path, monkeypatch):
    """Every seed is shifted, and the record says by how much; the claim's own seeds are refused."""
    seen = []

    def run(claim, workdir, jobs, quiet):
        seen.append(claim["seeds"])
        return [Evidence("s", "p", "m", "c", "exact", {})]

    monkeypatch.setitem(sys.modules, "experiments.claims.made_up", types.SimpleNamespace(run=run))
    monkeypatch.setitem(claims.CHECKS, "made_up", "made_up")
    claim = {"check": "made_up", "source": "A 2020", "seeds": (0, 1, 5)}
    own = claims.run(claim, tmp_path, name="a.py")
    other = claims.run(claim, tmp_path, name="a.py", first_seed=100)
    assert seen == [(0, 1, 5), (100, 101, 105)]
    assert "first_seed" not in own and "_from_" not in own["command"]
    assert other["first_seed"] == 100 and "--workdir=runs/claims/a_from_100 --first_seed=100 " in other["command"]
    with pytest.raises(Refused, match="use 6 or more"):
        claims.run(claim, tmp_path, name="a.py", first_seed=5)
    with pytest.raises(Refused, match="nothing by seed"):
        claims.run({"check": "made_up", "source": "A 2020"}, tmp_path, name="a.py", first_seed=100)


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
    assert first.startswith(f"before\n{ledger.BEGIN}\n") and first.endswith(f"{ledger.END}\nafter\n")
    assert first.count(ledger.END) == 1 and "| all | 1 | 1 |" in first
    for name in ("README.md", "a.md"):
        text = (docs / "claims" / name).read_text()
        unfenced = text.replace(code(evil), "")
        assert not re.search(r"<[a-z/!]|\]\(http|\u202e|^# head", unfenced, re.MULTILINE), name
    (row,) = [line for line in (docs / "claims" / "README.md").read_text().splitlines() if line.startswith("| x")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    ledger.write(docs)
    assert (docs / "LEDGER.md").read_text() == first
    for name in ("ledger.html", "claims/a.html"):
        shown = (docs / name).read_text()
        assert "\u202e" not in shown and "alert(1)</script>" not in shown


def house():
    """The evidence of the house."""
    return [json.loads(path.read_text()) for path in sorted((ledger.DOCS / ledger.STORE).glob("*.json"))]


def test_the_ledger_of_the_house_is_up_to_date():
    """Its counts and pages say what docs/claims holds, no more and no less: `python main.py --mode=ledger`."""
    text = (ledger.DOCS / ledger.LEDGER).read_text("utf-8")
    assert text.split(ledger.BEGIN)[1].split(ledger.END)[0] == "\n" + ledger.markdown(house())
    folder, made = ledger.DOCS / ledger.STORE, ledger.written_pages(house())
    assert {path.name for path in folder.iterdir() if path.suffix in (".md", ".svg")} == {*made}
    for name, text in made.items():
        assert (folder / name).read_text("utf-8") == text, name


def test_every_row_of_the_house_is_on_its_page_under_a_family():
    """The page of a claim has its rows, arms, command, seeds and caveats; the counts are those of the rows."""
    records, made = house(), ledger.written_pages(house())
    assert pages.OTHER not in pages.by_family(records)
    assert sum(pages.counts(records).values()) == sum(len(record["rows"]) for record in records)
    table = made[pages.README]
    for record in records:
        name = pages.stem(record["claim"])
        text = made[f"{name}.md"]
        assert table.count(f"[{name}]({name}.md)") == len(record["rows"])
        for row in record["rows"]:
            assert markdown.inline(row["statement"]) in text and markdown.inline(row["measured"]) in text
            assert markdown.inline(row["statement"]) in table
        assert record["command"] in text and "## Caveats" in text and "## Why, and what to expect" in text
        arms = pages.stated(record["claim"])[1].get("arms", {})
        assert all(f"| {markdown.inline(arm)} |" in text for arm in (arms if isinstance(arms, dict) else ()))
    assert max(len(line) for line in table.splitlines()) < 300  # one readable line a row


def test_the_page_of_the_ledger_counts_verdicts_and_shows_every_row_under_its_family():
    """Each family has a section with its rows and no others; the table above says how many have each verdict."""
    records = house()
    top, *sections = ledger._page(records).split('<section id="')[1:-1]
    families = pages.by_family(records)
    assert len(sections) == len(families)
    for section, (family, some) in zip(sections, families.items(), strict=True):
        assert f"<h2>{family.capitalize()}</h2>" in section
        assert section.count("<tr>") == 1 + sum(len(record["rows"]) for record in some)
        assert all(page.escape(row["statement"]) in section for record in some for row in record["rows"])
    holds = sum(row["verdict"] == "holds" for record in families["decoding"] for row in record["rows"])
    column = top.split("</thead>")[0].split("<th ")[1:].index('scope="col" class="n">holds</th>')
    cells = top.split('<th scope="row">decoding</th>')[1].split("</tr>")[0].split("</td>")
    assert cells[column - 1].endswith(f">{holds}")


def test_what_stands_between_backticks_is_code():
    assert pages._marked("`a < b` and <c>, `d`") == "<code>a &lt; b</code> and &lt;c&gt;, <code>d</code>"


def test_a_figure_shows_each_interval_on_its_own_scale():
    def row(mean, low, high, **more):
        return {"statement": "s", "verdict": "holds", "numbers": {"mean": mean, "low": low, "high": high, **more}}

    drawn = interval_plot.draw([row(0.5, 0.25, 0.75), row(-2.0, -4.0, 0.0, effect=1.0), {"numbers": {"error": 0.0}}])
    tree = ElementTree.fromstring(drawn)
    rest = "{http://www.w3.org/2000/svg}"
    circles = [float(each.get("cx")) for each in tree.iter(f"{rest}circle")]
    lines = [(float(each.get("x1")), float(each.get("x2"))) for each in tree.iter(f"{rest}line")]
    zero, half = 200.0, 192 / 1.15  # the middle of 8 to 392; the largest end lies at 1 / 1.15 of the half width
    assert circles == [round(zero + half * 2 / 3, 1), round(zero - half / 2, 1)]
    assert lines[0] == lines[2] == (zero, zero)
    assert lines[1] == (round(zero + half / 3, 1), round(zero + half, 1))
    assert lines[3] == (round(zero - half, 1), zero)
    (band,) = tree.iter(f"{rest}rect")
    assert float(band.get("x")) == round(zero - half / 4, 1)
    assert float(band.get("width")) == pytest.approx(half / 2, abs=0.11)
    assert interval_plot.draw([{"numbers": {"mean": float("nan"), "low": 0, "high": 1}}]) == ""


def test_curves_of_arms_stand_under_each_other_on_one_scale():
    arms = {
        "up": {"epochs": [2.0, 20.0, 200.0], "bits_per_byte": [[3.0, 3.5, 4.0], [3.0, 4.0, 5.0]]},
        "<down>": {"epochs": [2.0, 200.0], "bits_per_byte": [[5.0, 4.0], [5.0, 3.0]]},
    }
    row = RECORD["rows"][0] | {"numbers": {"curves": arms}}
    drawn = curve_plot.draw([RECORD["rows"][0], row])
    tree = ElementTree.fromstring(drawn)
    lines, bands = (
        [each.get("points") for each in tree.iter(f"{{http://www.w3.org/2000/svg}}{kind}")]
        for kind in ("polyline", "polygon")
    )
    # 44 to 392 across for 2 to 200 epochs, by their logarithm; 196 up to 12 for 2.9 to 5.1 bits, 5% beyond the ends.
    y = {bits: f"{196 - (bits - 2.9) / 2.2 * 184:.1f}" for bits in (3.0, 3.5, 3.75, 4.0, 4.5, 5.0)}
    assert lines[0] == f"44.0,{y[3.0]} 218.0,{y[3.75]} 392.0,{y[4.5]}"
    assert lines[1] == f"44.0,{y[5.0]} 392.0,{y[3.5]}"
    assert bands[0] == f"44.0,{y[3.0]} 218.0,{y[4.0]} 392.0,{y[5.0]} 392.0,{y[4.0]} 218.0,{y[3.5]} 44.0,{y[3.0]}"
    assert "&lt;down&gt;" in drawn and curve_plot.draw(RECORD["rows"]) == ""
    record = RECORD | {"rows": [row]}
    made = ledger.written_pages([record])
    assert made["a-curves.svg"] == drawn + "\n" and "(a-curves.svg)" in made["a.md"] and drawn in pages.html(record)
    over = {name: {"flops": arm["epochs"], "bits_per_byte": arm["bits_per_byte"]} for name, arm in arms.items()}
    same = curve_plot.draw([row | {"numbers": {"curves": over}}])
    assert "over FLOPs<" in same and same.replace("FLOPs", "epochs") == drawn
    once = curve_plot.draw([row | {"numbers": {"curves": {"up": {"epochs": [3.0], "bits_per_byte": [[4.0]]}}}}])
    assert 'polyline points="44.0,104.0"' in once  # One place of one value stands at the left, half of the way up.


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"mean": 0.12345, "low": -1, "high": 2.5}, "0.123 [-1, 2.5]"),
        ({"ratio": [8.1, 8.0, 8.2], "mean": 1, "low": 0, "high": 2}, "8.1 [8, 8.2]"),
        ({"error": 1.2e-16}, "largest error 1e-16"),
        ({}, "see its page"),
    ],
)
def test_what_was_found_is_shown_short(numbers, text):
    assert pages.number({"numbers": numbers}) == text


def test_an_arm_that_borrows_a_rate_has_its_line(monkeypatch):
    """It is its own model with the rate of the lender, as the record of the search says."""
    claim = {"arms": {"small": {"model.width": 8}, "wide": {"model.width": 64}}, "borrow": {"lent": ("wide", "small")}}
    monkeypatch.setattr(pages, "stated", lambda name: ("", claim))
    tuned = {"lent": {"chosen": {"optimizer.learning_rate": 0.5}}, "wide": {"chosen": {"optimizer.learning_rate": 0.1}}}
    lines = pages.markdown(RECORD | {"tuned": tuned}).split("\n")
    assert "| wide | model.width = 64, optimizer.learning_rate = 0.1 |" in lines
    assert "| lent | model.width = 64, optimizer.learning_rate = 0.5 |" in lines


def test_a_size_has_its_line_and_a_function_is_called_a_rule(monkeypatch):
    size = {"model.width": 8, "optimizer.learning_rate": lambda c: 1.0}
    monkeypatch.setattr(
        pages, "stated", lambda name: ("", {"arms": {"one": {"model.mixer": "lact"}}, "sizes": {"8": size}})
    )
    lines = pages.markdown(RECORD).split("\n")
    assert (
        "| one | model.mixer = lact |" in lines
        and "| 8 | model.width = 8, optimizer.learning_rate = by a rule |" in lines
    )
