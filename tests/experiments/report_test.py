"""The reports: built from made-up but realistic workdirs, parsed as HTML, drawn by a browser where one is installed."""

import copy
import html
import html.parser
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from experiments import report, writers
from experiments import workdir as files
from experiments.report import data, page, plots

BASE = {
    "seed": 0,
    "model": {"mixer": "attention", "channel": "swiglu", "num_layers": 6, "width": 256, "num_heads": 4, "dropout": 0.0},
    "train": {"steps": 5000, "batch_size": 16, "sequence_length": 256, "learning_rate": 3e-3, "warmup_steps": 200},
    "optimizer": {"name": "adamw", "b1": 0.9, "b2": 0.95, "weight_decay": 0.1, "clip": 1.0},
    "data": {"name": "python_stdlib", "tokenizer": "bytes", "seed": 0},
    "eval": {"every": 250, "tokens": 65536},
}
PROMPT = "def read("
TEXT = (
    "self, size=-1):\n        if self.closed:\n"
    "            raise ValueError('I/O operation on <closed> file & \"more\"')\n"
    "        return self._buffer.read(size)\n"
)


def make_workdir(path, *, steps=5000, every=10, seed=0, gain=0.0, changes=None, kind="=", evaluate=True, finished=True):
    """A workdir as a run of `steps` steps leaves it, through the real writer; `gain` lowers its loss."""
    noise = np.random.default_rng([seed, round(1000 * abs(gain))])
    config = copy.deepcopy(BASE)
    config["seed"] = seed
    for key, value in (changes or {"train.learning_rate": 1e-3}).items():
        group, name = key.split(".")
        config[group][name] = value
    files.write_config(path, config, f"python main.py --config=configs/quickstart.py --workdir={path.name}", base=BASE)
    corpus = {"name": "python standard library", "bytes": 33_554_432, "files": 1742, "hash": "9f2c41d07be8"}
    facts = {
        "environment": files.environment(),
        "corpus": corpus | {"unigram_bits_per_byte": 4.56, "trigram_bits_per_byte": 2.94},
        "tokenizer": "bytes",
        "parameters": {"total": 4_853_248, "embedding": 65_536},
        "flops_per_token": 3.1e7,
        "matmul_flops_per_second": 2.1e11,
    }
    files.write_run(path, facts)
    with writers.Writer(path) as writer:
        for step in range(every, steps + 1, every):
            tokens = step * 4096
            count = {"tokens": tokens, "flops": tokens * 3.1e7}
            loss = 1.05 - gain + 4.5 * (1 + step / 30) ** -0.55 + noise.normal(0, 0.05)
            rate = 3e-3 * min(step / 200, 0.5 * (1 + math.cos(math.pi * step / steps)))
            norm = float(np.exp(noise.normal(-0.7, 0.25))) * (1 + 20 * (noise.random() < 0.004))
            train = {"train/loss": loss, "train/grad_norm": norm, "train/learning_rate": rate}
            writer.scalars(step, count | train)
            speed = 41_000 + 900 * noise.normal() - 9000 * (noise.random() < 0.02)
            writer.timing(
                step,
                {
                    "seconds": step * 0.1013,
                    "tokens_per_second": speed,
                    "mfu": speed * 3.1e7 / 2.1e12,
                    "peak_memory_bytes": int(1.17e9 + 2e7 * min(step, 900) / 900),
                    "data_wait_seconds": abs(noise.normal(0, 2e-4)),
                },
            )
            if evaluate and step % 250 == 0:
                held = loss + 0.04 + noise.normal(0, 0.004)
                bits = {"eval/loss": held, "eval/bits_per_byte": held / math.log(2), "eval/bits_per_byte_se": 0.011}
                writer.scalars(step, count | bits | {"eval/kind": kind})
                writer.sample(step, PROMPT, TEXT[: 20 + step // 25] + f"\n        # step {step}\x00\x1b[0m")
    if finished:
        files.write_json(path / files.RESULT, {"step": steps, "status": "finished"})
    return path


class Page(html.parser.HTMLParser):
    """What a page holds: its tags with attributes, its text, and whether every element is closed in order."""

    VOID = {"meta", "input", "br", "link", "img", "hr"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(text)

    @property
    def text(self):
        return "".join(self.texts)

    def ids(self, tag=None):
        return [attributes["id"] for name, attributes in self.tags if "id" in attributes and tag in (None, name)]

    def count(self, kind):
        return sum(kind in (attributes.get("class") or "").split() for _, attributes in self.tags)


SECTIONS = ["summary", "again", "curves", "training", "samples", "configuration", "environment"]
COMPARISON = ["results", "tests", "settings", "curves", "samples", "runs"]


def read(path):
    """Parses a page and checks what holds for every page: well formed, self-contained, ids unique, under 1 MB."""
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert found.open == []
    ids = found.ids()
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        for key, value in attributes.items():
            assert key not in ("src", "srcset", "action", "data") and not key.startswith("on")
            if key == "href":
                assert value.startswith("#") and value[1:] in ids
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target.startswith("#") and target[1:] in ids
    assert "//" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.S)  # no address of any kind
    assert "@import" not in text and "url(" not in text[: text.index("</style>")]
    assert not re.search(r"#0[123a]0", text)  # every stand-in colour has become a CSS variable
    assert len(text.encode()) < 1_000_000
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("runs") / "quickstart")


def test_a_finished_run_of_5000_steps(finished):
    path = report.write(finished)
    assert path == finished / "report.html"
    found = read(path)
    assert found.ids("section") == SECTIONS
    # Two figures by four axes, and six small charts.
    assert found.count("chart") == 14 and [found.count(f"by-{axis}") for axis in data.AXES] == [2, 2, 2, 2]
    last = data.load(finished).last(data.BITS)
    for wanted in (
        "finished at step 5,000",
        f"{last[data.BITS]:.3f} ± 0.011",
        "4.85 M",
        "20.5 M",
        "6.35\xa0×\xa01014",
        page.duration(5000 * 0.1013),
        "1.11 GiB",
        "python main.py --config=configs/quickstart.py --workdir=quickstart",
        "9f2c41d07be8",
        "unigram",
        "8 × cpu",
    ):
        assert wanted in found.text, wanted
    # The one changed setting stands in the table of differences and is marked in the full list.
    assert found.count("changed") == 1 and "train.learning_rate" in found.text
    assert report.write(finished).read_bytes() == path.read_bytes()


def test_samples_are_escaped_and_control_characters_spelt_out(finished):
    text = report.write(finished).read_text()
    assert "&lt;closed&gt; file &amp; &quot;more&quot;" in text and "<closed>" not in text
    assert "\\x00\\x1b[0m" in text and "\x00" not in text and "\x1b" not in text
    assert page.escape("\ud800<") == "?&lt;"


def test_nothing_in_the_files_can_inject_a_tag(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    path = tmp_path / "run"
    files.write_config(path, {"seed": 0, evil: evil, "m": {evil: 1}}, evil, base={"seed": 0, evil: 1})
    files.write_run(path, {"environment": {evil: evil}, "corpus": {f"{evil}_loss": 1.0}, "tokenizer": evil, evil: evil})
    with writers.Writer(path, tensorboard=False) as writer:
        for step in range(1, 100):
            writer.scalars(step, {"train/loss": 1.0 / step, evil: step, "eval/kind": evil})
        writer.sample(3, evil, evil)
    other = make_workdir(tmp_path / "other", steps=50)
    for made in (report.write(path), report.compare([path, other], tmp_path / "c.html")):
        text = made.read_text()
        found = Page(text)
        assert text.count("<script>") == 1 and "img" not in {tag for tag, _ in found.tags}
        assert "alert(1)" in found.text


@pytest.mark.parametrize("missing", [files.CONFIG, files.RUN, files.TIMING, files.METRICS, files.SAMPLES])
def test_any_file_may_be_missing(tmp_path, missing):
    path = make_workdir(tmp_path / "run", steps=500)
    (path / missing).unlink()
    found = read(report.write(path))
    assert found.ids("section") == SECTIONS
    axes = {id.removeprefix("x-") for id in found.ids("input")}
    expected = set(data.AXES)
    if missing == files.TIMING:
        expected -= {"seconds"}
    if missing == files.METRICS:
        expected = set()
        assert "nothing logged yet" in found.text and "No losses have been logged yet." in found.text
    assert axes == expected


def test_runs_that_lack_files_can_be_compared(tmp_path):
    runs = []
    for missing in (files.CONFIG, files.RUN, files.TIMING, files.METRICS, files.SAMPLES):
        runs.append(make_workdir(tmp_path / missing, steps=250))
        (runs[-1] / missing).unlink()
    found = read(report.compare(runs, tmp_path / "c.html"))
    assert found.ids("section") == COMPARISON and "nothing logged yet" in found.text


def test_an_unfinished_run_without_evaluation_and_with_torn_lines(tmp_path):
    path = make_workdir(tmp_path / "run", steps=300, evaluate=False, finished=False)
    with open(path / files.METRICS, "ab") as file:
        file.write(b'rubbish\n{"step": 310, "tokens": 1270000, "flops": 4e13, "train/loss": 2.0}\n{"step": 320, "tr')
    (path / files.RUN).write_text("{")
    found = read(report.write(path))
    assert "unfinished at step 310" in found.text and "not evaluated" in found.text
    assert "metrics.jsonl: 1 unreadable line(s) left out (line 31)." in found.text
    assert "run.json' does not hold a JSON object" in found.text
    assert "No samples have been drawn yet." in found.text and "Figure 2" not in found.text


def test_a_run_that_ends_in_nan_says_so(tmp_path):
    path = make_workdir(tmp_path / "run", steps=300, finished=False)
    with writers.Writer(path, tensorboard=False) as writer:
        values = {"train/loss": float("nan"), "train/grad_norm": float("inf")}
        writer.scalars(310, {"tokens": 1, "flops": 1.0} | values)
    found = read(report.write(path))
    assert "stopped at step 310" in found.text and "The training loss was not finite at step 310" in found.text


def test_only_nan_draws_nothing_and_breaks_nothing(tmp_path):
    path = tmp_path / "run"
    with writers.Writer(path, tensorboard=False) as writer:
        writer.scalars(1, {"train/loss": float("nan"), "eval/bits_per_byte": float("inf"), "train/grad_norm": None})
        writer.timing(1, {"seconds": float("nan"), "mfu": float("nan")})
    found = read(report.write(path))
    assert found.count("chart") == 0


def test_bounds_are_labelled_apart(tmp_path):
    bound = make_workdir(tmp_path / "diffusion", steps=500, kind="<=")
    exact = make_workdir(tmp_path / "autoregressive", steps=500, changes={"model.mixer": "x"})
    found = read(report.write(bound))
    assert "≤ " in found.text and "upper bound" in found.text
    assert "≤ " not in read(report.write(exact)).text
    assert "≤ marks an upper bound" in read(report.compare([bound, exact], tmp_path / "c.html")).text


@pytest.mark.parametrize("wrong", [None, 3, "text", [1], {"a": []}, float("nan")])
def test_no_value_in_the_files_breaks_a_report(tmp_path, wrong):
    path = make_workdir(tmp_path / "run", steps=30)
    record = {"config": wrong, "hash": wrong, "command": wrong, "base": wrong}
    files.write_json(path / files.CONFIG, record)
    names = ("environment", "corpus", "tokenizer", "parameters", "flops_per_token", "starts")
    files.write_json(path / files.RUN, dict.fromkeys(names, wrong))
    files.write_json(path / files.RESULT, {"step": wrong, data.BITS: wrong})
    line = {"step": 200} | dict.fromkeys(["tokens", "flops", "train/loss", data.BITS, f"{data.BITS}_se"], wrong)
    for name in (files.METRICS, files.TIMING):
        with open(path / name, "ab") as file:
            file.write(files.line({key: value for key, value in line.items() if not isinstance(value, dict)}))
    with open(path / files.SAMPLES, "ab") as file:
        file.write(json.dumps({"step": 200, "text": wrong}).encode() + b"\n")
    read(report.write(path))
    read(report.compare([path, make_workdir(tmp_path / "other", steps=50)], tmp_path / "c.html"))


def test_a_folder_without_a_run_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config.json or metrics.jsonl; give the --workdir of a run\.$"):
        report.write(tmp_path)
    with pytest.raises(ValueError, match=r"give at least one, e\.g\. --runs=runs/a,runs/b\.$"):
        report.compare([], tmp_path / "c.html")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    root = tmp_path_factory.mktemp("seeds")
    runs = []
    for mixer, gain in (("attention", 0.0), ("ttt_linear", 0.2)):
        for seed in range(3):
            change = {"model.mixer": mixer}
            runs.append(make_workdir(root / f"{mixer}-{seed}", steps=1000, seed=seed, gain=gain, changes=change))
    return runs


def test_a_comparison_groups_seeds_and_shows_only_what_differs(seeds, tmp_path):
    found = read(report.compare(seeds, tmp_path / "deep" / "c.html"))
    assert found.ids("section") == COMPARISON
    assert "Comparison of 6 runs of 2 configs" in found.text
    groups = data.group([data.load(path) for path in seeds])
    assert [group.label for group in groups] == ["attention", "ttt_linear"]
    assert [group.seeds for group in groups] == [[("0", str(seed)) for seed in range(3)]] * 2
    assert "model.mixer" in found.text and "weight_decay" not in found.text and "learning_rate" not in found.text
    assert "paired, 3 seeds" in found.text and "at equal compute" not in found.text
    finals = [data.finals(group, data.BITS) for group in groups]
    mean, half = data.mean_interval(finals[0])
    assert page.with_error(mean, half).replace("<small>", "").replace("</small>", "") in found.text
    curves = [attributes["data-label"] for _, attributes in found.tags if attributes.get("class") == "curve"]
    assert curves == ["attention", "ttt_linear"] * 8
    for path in seeds:
        assert path.name in found.text


def test_runs_of_unequal_length_are_compared_at_equal_compute(seeds, tmp_path):
    longer = make_workdir(tmp_path / "longer", steps=2000, changes={"train.steps": 2000, "model.mixer": "attention"})
    found = read(report.compare([longer, *seeds[:3]], tmp_path / "c.html"))
    shared = 1000 * 4096 * 3.1e7
    groups = data.group([data.load(path) for path in (longer, *seeds[:3])])
    values, compute = data.outcomes(groups)
    assert compute == pytest.approx(shared, rel=1e-12)
    run = data.load(longer)
    row = next(row for row in run.metrics if row["step"] == 1000 and data.BITS in row)
    assert values[0] == [row[data.BITS]]
    assert found.text.count("at equal compute") == 2


def test_different_tokenizers_are_compared_in_bits_per_byte_only(seeds, tmp_path):
    other = make_workdir(tmp_path / "bpe", steps=500, changes={"data.tokenizer": "bpe"})
    facts = files.read_json(other / files.RUN)
    files.write_json(other / files.RUN, facts | {"tokenizer": "bpe 4096"})
    found = read(report.compare([seeds[0], other], tmp_path / "c.html"))
    assert "losses per token cannot be compared" in found.text and "Training loss" not in found.text


def test_many_configs_fit_on_one_page(tmp_path):
    runs = [make_workdir(tmp_path / f"r{i}", steps=500, changes={"train.batch_size": i + 1}) for i in range(20)]
    found = read(report.compare(runs, tmp_path / "c.html"))
    assert "batch size 20" in found.text


def test_intervals_and_tests_against_known_numbers():
    from scipy import stats

    a = {("0",): 2.0, ("1",): 2.2, ("2",): 2.1}
    b = {("2",): 2.05, ("0",): 1.9, ("1",): 2.12}
    test = data.contrast(a, b)
    expected = stats.ttest_rel([1.9, 2.12, 2.05], [2.0, 2.2, 2.1])
    low, high = expected.confidence_interval(0.95)
    assert (test.kind, test.pairs) == ("paired", 3)
    # A sum of three numbers near 2 in float64, then divided by a spread of about 0.015: 3 * 2 * 2^-52 / 0.015.
    assert test.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (test.mean - test.half_width, test.mean + test.half_width) == pytest.approx((low, high), rel=1e-12)
    welch = data.contrast(a, {("7",): 1.9, ("8",): 2.12})
    assert welch.kind == "unpaired" and welch.p == pytest.approx(
        stats.ttest_ind([1.9, 2.12], [2.0, 2.2, 2.1], equal_var=False).pvalue, rel=1e-12
    )
    assert data.contrast(a, {("0",): 1.9}).kind == "none"
    same = data.contrast(a, dict(a))
    assert (same.kind, same.mean, same.half_width, same.p) == ("paired", 0.0, 0.0, 1.0)
    # t(0.975, 3) = 3.182446 (any table); the values 1..4 have mean 2.5 and standard deviation sqrt(5/3).
    assert data.mean_interval([1, 2, 3, 4]) == pytest.approx((2.5, 3.182446 * math.sqrt(5 / 3) / 2), rel=1e-6)
    assert math.isnan(data.mean_interval([1.0])[1]) and math.isnan(data.mean_interval([])[0])


@pytest.mark.parametrize("log", [False, True])
def test_thinning_keeps_extremes_ends_and_gaps(log):
    noise = np.random.default_rng(0)
    x = np.arange(1, 50_001, dtype=np.float64)
    y = noise.normal(size=50_000)
    y[31_234], y[77], y[40_000] = 1e6, -1e6, np.nan
    kept_x, kept_y = data.decimate(x, y, 1000, log)
    assert len(kept_x) <= 1250 and (np.diff(kept_x) > 0).all()
    assert np.isin(kept_x, x).all() and np.array_equal(kept_y, y[kept_x.astype(int) - 1], equal_nan=True)
    assert np.nanmax(kept_y) == 1e6 and np.nanmin(kept_y) == -1e6 and np.isnan(kept_y).sum() == 1
    assert kept_x[0] == 1 and kept_x[-1] == 50_000
    short = data.decimate(x[:900], y[:900], 1000, log)
    assert short[0] is not None and len(short[0]) == 900


def test_smoothing_is_a_mean_that_skips_gaps_and_does_not_lag():
    y = np.full(500, 2.0)
    y[7] = np.nan
    assert (data.smooth(y) == 2.0).all()
    line = np.linspace(5, 1, 500)
    inner = slice(0, 480)  # the last windows are cut off on one side
    assert np.abs(data.smooth(line) - line)[inner].max() < 1e-12
    noisy = np.random.default_rng(0).normal(size=10_000)
    assert data.smooth(noisy)[2000:8000].std() < 3 / math.sqrt(300)
    assert np.isnan(data.smooth(np.array([np.nan, 1.0]))[0])


def test_the_mean_curve_of_seeds_is_read_where_all_are_defined():
    first = (np.array([1.0, 2.0, 4.0]), np.array([4.0, 3.0, 1.0]))
    second = (np.array([2.0, 3.0, 9.0]), np.array([5.0, 4.0, 4.0]))
    x, mean, low, high = data.mean_curve([first, second])
    assert x.tolist() == [2, 3, 4]
    assert mean.tolist() == [4, 3, 2.5] and low.tolist() == [3, 2, 1] and high.tolist() == [5, 4, 4]
    assert len(data.mean_curve([])[0]) == 0


def test_wall_time_comes_from_the_timing_lines(tmp_path):
    path = tmp_path / "run"
    with writers.Writer(path, tensorboard=False) as writer:
        for step in (5, 10, 20, 30):
            writer.scalars(step, {"train/loss": float(step)})
        writer.timing(10, {"seconds": 4.0})
        writer.timing(20, {"seconds": 6.0})
    x, y = data.series(data.load(path), "train/loss", "seconds")
    assert x.tolist() == [2.0, 4.0, 6.0] and y.tolist() == [5.0, 10.0, 20.0]  # step 30 has no time yet


def test_a_chart_draws_the_points_that_it_is_given():
    x, y = np.array([0.0, 50.0, 100.0]), np.array([1.0, 3.0, 2.0])
    svg = plots.chart("c", [plots.Curve(x, y, "a <b>")], plots.Axis("step"), plots.Axis("loss", "plain"))
    found = Page(svg)
    (root,) = [attributes for tag, attributes in found.tags if tag == "svg"]
    left, right, low, high, log = map(float, root["data-x"].split())
    bottom, top, floor, ceiling, _ = map(float, root["data-y"].split())
    labels = [i for i, (_, attributes) in enumerate(found.tags) if attributes.get("data-label") == "a <b>"]
    path = next(attributes["d"] for tag, attributes in found.tags[labels[0] :] if tag == "path")
    drawn = np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2)
    back_x = low + (drawn[:, 0] - left) / (right - left) * (high - low)
    back_y = floor + (drawn[:, 1] - bottom) / (top - bottom) * (ceiling - floor)
    # Coordinates are kept to a tenth of a point: half of that, and half of the hundredth in the box's own edges.
    assert log == 0
    np.testing.assert_allclose(back_x, x, atol=0.06 * (high - low) / (right - left))
    np.testing.assert_allclose(back_y, y, atol=0.06 * (ceiling - floor) / (bottom - top))


@pytest.mark.parametrize(
    ("value", "kind", "log", "text"),
    [
        (0, "count", False, "0"),
        (2500, "count", False, "2.5k"),
        (2500, "plain", False, "2500"),
        (0.002, "plain", False, "0.002"),
        (0.001, "plain", True, "10⁻³"),
        (2e12, "flops", True, "2×10¹²"),
        (1e15, "flops", True, "10¹⁵"),
        (-3, "plain", False, "−3"),
    ],
)
def test_axis_numbers(value, kind, log, text):
    assert plots.tick_text(value, kind, log) == text


def test_headline_numbers():
    assert page.with_error(2.2413, 0.0123) == "2.241 <small>± 0.012</small>"
    assert page.with_error(2.2413, 0.00123) == "2.2413 <small>± 0.0012</small>"
    assert page.with_error(2.2413, math.nan) == "2.241" and page.with_error(math.nan, 1) == "–"
    assert [page.duration(s) for s in (5.04, 185, 7500, 200_000)] == ["5.0 s", "3 min 05 s", "2 h 05 min", "2 d 7 h"]
    assert [page.count(n) for n in (1234, 1.95e6, 7e9, math.nan)] == ["1,234", "1.95 M", "7 B", "–"]
    assert (
        page.memory(3 * 2**30) == "3 GiB"
        and page.memory(1020 * 2**20) == "1,020 MiB"
        and page.count(9.999e8) == "1,000 M"
        and page.power(1.3e13) == "1.30&nbsp;×&nbsp;10<sup>13</sup>"
    )
    assert page.power(9.999e12) == "1.00&nbsp;×&nbsp;10<sup>13</sup>"
    assert page.shown(["cpu"] * 8) == "8 × cpu" and page.shown([1, 2, 1]) == "1, 2, 1" and page.shown(True) == "True"


PROBE = """<script>
const visible = [...document.querySelectorAll("svg.chart")].filter(svg => svg.getBoundingClientRect().width > 300);
const box = visible[0].getBoundingClientRect();
const at = {clientX: box.left + box.width * 0.5, clientY: box.top + 40, bubbles: true};
visible[0].dispatchEvent(new PointerEvent("pointermove", at));
const tip = document.querySelector(".tip").textContent;
document.querySelector("#x-flops").checked = true;
const height = name => document.querySelector(name).offsetHeight;
const shown = height(".by-flops") > 0 && height(".by-step") == 0;
document.title = JSON.stringify({visible: visible.length, tip, shown, wide: document.body.scrollWidth > innerWidth});
</script>"""


def test_a_real_browser_draws_the_page_if_one_is_installed(finished, tmp_path):
    """Charts have a size, the switch switches, pointing at a curve reads its value. Without a browser: parsed only."""
    path = report.write(finished)
    assert read(path).count("chart") == 14
    if shutil.which("chromium"):
        probe = tmp_path / "probe.html"
        probe.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --window-size=1200,900 --dump-dom"
        command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'user'}", f"file://{probe}"]
        out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", out)[1]))
        assert seen["visible"] == 8 and seen["shown"] and not seen["wide"]
        step, training, *_ = (line.split() for line in seen["tip"].split("\n"))
        assert step[:2] == ["training", "step"] and training[0] == "training"
        x, y = data.series(data.load(finished), "train/loss")
        place = int(step[2].replace(",", "")) / 10 - 1
        assert float(training[1]) == pytest.approx(data.smooth(y)[round(place)], abs=0.01)
