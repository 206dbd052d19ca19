"""The table of a sweep as text and as CSV: order, numbers and what failed."""

import csv

from experiments.sweep import table

BITS = "eval/bits_per_byte"


def row(name, bits=None, **values):
    if bits is None:
        return {"name": name, "hash": name * 3, "status": "failed", "error": "it broke", "values": values}
    numbers = {BITS: bits, f"{BITS}_se": 0.0123, "eval/kind": "=", "parameters": 12345, "tokens": 6_000_000}
    return {"name": name, "hash": name * 3, "status": "finished", "values": values, "loss": 1.5} | numbers


def test_the_best_trial_stands_first_and_the_failed_last():
    lines = table.text([row("b", 2.5), row("x"), row("a", 1.25), row("c", 3.0)]).splitlines()
    assert [line.split()[0] for line in lines] == ["trial", "a", "b", "c", "x"]
    assert "= 1.2500 ± 0.0123" in lines[1] and "12,345" in lines[1] and "6,000,000" in lines[1]
    assert lines[4].split() == ["x", "failed"]


def test_a_trial_whose_result_lacks_something_is_named_and_stops_nobody(tmp_path):
    for lost in (BITS, f"{BITS}_se", "eval/kind", "parameters", "tokens"):
        damaged = {key: value for key, value in row("b", 0.5).items() if key != lost}
        lines = table.text([row("a", 1.25), damaged]).splitlines()
        assert sorted(lines[1:])[1].split() == ["b", "finished"] and "= 1.2500" in "".join(lines)
        assert table.best([row("a", 1.25), damaged], tmp_path).startswith("best: ")


def test_every_value_has_its_column(tmp_path):
    table.write([row("a", 1.25, rate=0.1), row("x", depth=3)], tmp_path)
    first, second = csv.DictReader((tmp_path / table.CSV).open())
    assert first["rate"] == "0.1" and first["depth"] == "" and first[BITS] == "1.25" and first["loss"] == "1.5"
    assert second["depth"] == "3" and second["status"] == "failed" and second["parameters"] == ""
