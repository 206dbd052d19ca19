"""The reports: built from made-up but realistic workdirs, parsed as HTML, drawn by a browser where one is installed."""

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess

import pytest

from experiments import report
from experiments import workdir as files
from experiments.report import data, grouping, page
from experiments.workdir import writers
from tests.experiments.report.made_up import COMPARISON, SECTIONS, Page, make_workdir, read


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("runs") / "quickstart")


def test_a_finished_run_of_5000_steps(finished):
    path = report.write(finished)
    assert path == finished / "report.html"
    found = read(path)
    assert found.ids("section") == SECTIONS
    # Two figures by four axes, and six small charts.
    assert found.count("chart") == 22 and [found.count(f"by-{axis}") for axis in data.AXES] == [2, 2, 2, 2]
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
    assert page.bits({"eval/kind": "~", data.BITS: 2.0}).startswith("~ ")


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
    groups = grouping.group([data.load(path) for path in seeds])
    assert [group.label for group in groups] == ["attention", "ttt_linear"]
    assert [group.seeds for group in groups] == [[("0", str(seed)) for seed in range(3)]] * 2
    assert "model.mixer" in found.text and "weight_decay" not in found.text and "learning_rate" not in found.text
    assert "paired, 3 seeds" in found.text and "at equal compute" not in found.text
    finals = [grouping.finals(group, data.BITS) for group in groups]
    mean, half = data.mean_interval(finals[0])
    assert page.with_error(mean, half).replace("<small>", "").replace("</small>", "") in found.text
    curves = [attributes["data-label"] for _, attributes in found.tags if attributes.get("class") == "curve"]
    assert curves == ["attention", "ttt_linear"] * 16  # For a page and for a phone.
    for path in seeds:
        assert path.name in found.text


def test_the_label_of_a_group_is_what_tells_it_from_the_others(tmp_path):
    """All settings that differ while they are few, else some that do, else the workdir; or what it is called."""

    def labels(*configs, names=()):
        runs = []
        for i, config in enumerate(configs):
            config = {"optimizer.rate": 0.1, "seed": 7, **config}
            runs.append(data.Run(tmp_path / f"run{i}", {"config": config}, {}, {}, [], [], [], []))
        return [group.label for group in grouping.group(runs, names)]

    wide, narrow = {"model.width": 64, "model.heads": 4, "lr": 1e-3}, {"model.width": 32, "model.heads": 2, "lr": 2e-3}
    assert labels(wide, narrow) == ["width 64, heads 4, lr 0.001", "width 32, heads 2, lr 0.002"]
    wide, narrow = wide | {"model.inner": 256}, narrow | {"model.inner": 128}
    assert labels(wide, narrow) == ["width 64", "width 32"]
    both = [at | {"model.mixer": mixer} for at in (wide, narrow) for mixer in ("attention", "lact")]
    for i, config in enumerate(both):
        config["a.steps"] = 100 + i  # follows from both, and would tell them apart alone
    told = [f"width {width}, {mixer}" for width in (64, 32) for mixer in ("attention", "lact")]
    assert labels(*both) == told
    assert labels(*both, both[1] | {"seed": 8}) == told  # another seed of the second
    assert labels(wide, narrow, narrow | {"seed": 8}, names=("a", "b", "c")) == ["a", "b"]
    assert labels(wide, narrow, names=("a", "a")) == ["run0", "run1"]
    assert labels({"text": "x" * 50}, {"text": "y" * 50}) == ["run0", "run1"]


def test_runs_of_unequal_length_are_compared_at_equal_compute(seeds, tmp_path):
    longer = make_workdir(tmp_path / "longer", steps=2000, changes={"train.steps": 2000, "model.mixer": "attention"})
    found = read(report.compare([longer, *seeds[:3]], tmp_path / "c.html"))
    shared = 1000 * 4096 * 3.1e7
    groups = grouping.group([data.load(path) for path in (longer, *seeds[:3])])
    values, compute = grouping.outcomes(groups)
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


def test_constants_are_told_measures_have_names_and_numbers_can_be_taken_away(tmp_path):
    path = make_workdir(tmp_path / "run", steps=1000)
    lines = (path / files.METRICS).read_text().splitlines()
    rows = [json.loads(line) | {"train/nll": 1.0 + i, "train/report/load": 0.25} for i, line in enumerate(lines)]
    (path / files.METRICS).write_bytes(b"".join(map(files.line, rows)))
    made = report.write(path).read_text()
    assert "Negative log-likelihood, nats per token" in made and "train/nll<" not in made
    assert "Constant: training: load 0.25." in made
    found = dict(re.findall(r'download="run\.(csv|json)" href="data:text/\w+;base64,([^"]+)"', made))
    assert json.loads(base64.b64decode(found["json"])) == rows
    table = list(csv.DictReader(io.StringIO(base64.b64decode(found["csv"]).decode())))
    assert [float(row["train/nll"]) for row in table] == [row["train/nll"] for row in rows]
    other = make_workdir(tmp_path / "other", steps=100)
    made = report.compare([path, other], tmp_path / "c.html").read_text()
    found = re.search(r'download="comparison.json" href="data:text/json;base64,([^"]+)"', made)
    both = [{"run": name} | row for name, at in (("run", path), ("other", other)) for row in data.load(at).metrics]
    assert json.loads(base64.b64decode(found[1])) == both and {row["run"] for row in both} == {"run", "other"}


def test_a_real_browser_draws_the_page_if_one_is_installed(finished, tmp_path):
    """Charts have a size, the switch switches, pointing at a curve reads its value. Without a browser: parsed only."""
    path = report.write(finished)
    assert read(path).count("chart") == 22
    if shutil.which("chromium"):
        probe = tmp_path / "probe.html"
        probe.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --window-size=1200,900 --dump-dom"
        command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'user'}", f"file://{probe}"]
        out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", out)[1]))
        assert seen["visible"] == 8 and seen["shown"] and not seen["wide"]
        command = [word.replace("1200,900", "500,900") for word in command]
        out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        phone = json.loads(html.unescape(re.search("<title>(.*?)</title>", out)[1]))
        assert phone["visible"] == 8 and phone["shown"] and not phone["wide"]
        step, training, *_ = (line.split() for line in seen["tip"].split("\n"))
        assert step[:2] == ["training", "step"] and training[0] == "training"
        x, y = data.series(data.load(finished), "train/loss")
        place = int(step[2].replace(",", "")) / 10 - 1
        assert float(training[1]) == pytest.approx(data.smooth(y)[round(place)], abs=0.01)
