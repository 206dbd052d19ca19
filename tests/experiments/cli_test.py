"""The door: every flag has a sentence, every mistake gets one, and nothing is written when one was made."""

import os
import pathlib
import subprocess
import sys
import threading
import types

import jax
import pytest
from ml_collections import ConfigDict

import main
from configs import base, transformer
from experiments import modes, opening
from experiments import workdir as files
from experiments.settings import named, overrides
from experiments.settings.errors import ConfigError, Refused, sentence
from experiments.training import train
from tests import environment
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = pathlib.Path(__file__).resolve().parents[2]


def flags(**given):
    """Flags as absl hands them over."""
    defaults = dict.fromkeys(("config", "workdir", "prompt", "prompts", "runs"))
    plain = {
        "mode": "train",
        "output": "",
        "smoke": False,
        "bench_filter": "",
        "filter": "",
        "topology": "",
        "simulate": 0,
    }
    plain |= {"jobs": 1, "launcher": "local", "coordinator": "", "num_processes": 0, "process_id": -1, "first_seed": 0}
    return types.SimpleNamespace(**(defaults | plain | given))


def refusal(changes=(), **given) -> list[str]:
    """The lines that a command is refused with; anything else is an error of the test."""
    with pytest.raises(Exception) as caught:
        modes.run(flags(**given), [tuple(c.split("=", 1)) for c in changes])
    told = sentence(caught.value)
    assert told, repr(caught.value)
    return told.splitlines()


def test_help_fits_a_screen_and_names_everything():
    lines = main.usage().splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 100
    for name in main.MODES:
        assert any(line.startswith(f"  --mode={name} ") and line.endswith(".") for line in lines)
    for name in main.KNOWN:
        assert any(line.startswith(f"  --{name} ") and line.endswith(".") and len(line) > 40 for line in lines)
    defined = {flag.name for flag in main.FLAGS.flags_by_module_dict()[main.__name__]}
    assert defined == set(main.KNOWN)


def test_help_may_be_read_in_part():
    """`python main.py --help | head -1`: nobody reads what is printed."""
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, environment.ROOT / "main.py", "--help"]
    ended = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True, env=environment.child())
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_overrides_are_taken_out_of_the_command_line():
    taken, rest = overrides.split(
        ["--config=c.py", "--config.a.b=1", "-config.c", "2", "--mode=plan", "--config.d", "--noconfig.e", "word",
         "--config.f=x=y", "--", "--config.g=1"]
    )  # fmt: skip
    assert taken == [("a.b", "1"), ("c", "2"), ("d", None), ("e", "false"), ("f", "x=y")]
    assert rest == ["--config=c.py", "--mode=plan", "word", "--", "--config.g=1"]


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("4", 1, 4), ("-4", 1, -4), ("1_000", 1, 1000), ("1e3", 1, 1000), ("0.5", 1.0, 0.5), ("3", 1.0, 3.0),
        ("inf", 1.0, float("inf")), ("true", False, True), ("No", True, False), (None, False, True), ("", "a", ""),
        ("3", "a", "3"), ("a,b", (), ("a", "b")), ("a", (), ("a",)), ("", ("a",), ()), ("('a', 'b')", (), ("a", "b")),
        ("()", ("a",), ()), ("[1, 2]", (), (1, 2)), ("('\\n',)", (), ("\n",)),
        ("({'source': 'text', 'weight': 2},)", (), ({"source": "text", "weight": 2},)),
    ],
)  # fmt: skip
def test_a_value_takes_the_type_of_its_key(text, default, value):
    read, problem = overrides.parse("k", text, default)
    assert not problem and read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "default", "kind"),
    [
        *((text, 1, "a whole number") for text in ("1.5", "x", "", "inf", "1e400")),
        ("nan", 1.0, "a number"), ("x", 1.0, "a number"), ("maybe", True, "true or false"),
        ("('a'", (), "a tuple"), ("(open('x'),)", (), "a tuple"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_with_one_that_works(text, default, kind):
    read, problem = overrides.parse("group.k", text, default)
    assert read is None and problem.startswith(f"--config.group.k={text} must be {kind}, e.g. --config.group.k=")
    assert overrides.parse("group.k", problem.rsplit("=", 1)[1].removesuffix(".").strip("'"), default)[1] == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.widht=3", "did you mean --config.model.width?"),
        ("modle.width=3", "did you mean --config.model.width?"),
        ("width=3", "did you mean --config.model.width?"),
        ("lr=3", "did you mean --config.optimizer.learning_rate?"),
        ("optimizer.lr=3", "did you mean --config.optimizer.learning_rate?"),
        ("model.d_model=3", "did you mean --config.model.width?"),
        ("model.width.x=3", "model.width is one value: --config.model.width=256."),
        ("model=3", "--config.model=3 is a group; set one of its keys, e.g. --config.model.channel=mlp."),
        ("qqq=3", "Known in it: any_subset, block_diffusion, checkpoint, "),
    ],
)
def test_a_key_that_is_not_there(change, told):
    with pytest.raises(Refused) as caught:
        overrides.apply(base.get_config(), [tuple(change.split("="))])
    assert told in str(caught.value) and str(caught.value).startswith(f"--config.{change.split('=')[0]}")


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("model.width", "model.width"), ("learning_rate", "optimizer.learning_rate"), ("model.layers", "model.layers"),
        ("n_head", "model.num_heads"), ("qqq", ""), ("qqq.width", ""), ("modes", ""),
    ],
)  # fmt: skip
def test_the_setting_that_a_flag_means(flag, key):
    assert overrides.meant(flag) == key


def test_what_others_call_a_setting_names_one_that_is_there():
    for key in overrides._ELSEWHERE:
        assert not overrides.unknown(base.get_config(), key.split("."))


def test_all_wrong_overrides_are_told_together():
    with pytest.raises(Refused) as caught:
        overrides.apply(base.get_config(), [("model.width", "x"), ("train.steps", "5"), ("seeed", "1")])
    assert len(str(caught.value).splitlines()) == 2


BROKEN = {
    "syntax.py": ("def get_config(:", r"SyntaxError: .* \(line 1\); correct the file"),
    "name.py": ("import os\n\nx = undefined", r"NameError: .*undefined.* \(line 3\)"),
    "none.py": ("x = 1", r"has no function get_config\(\)"),
    "other.py": ("def get_config():\n    return {}", "gives a dict; return a ConfigDict"),
    "raises.py": ("def get_config():\n    return 1 / 0", r"cannot be made: ZeroDivisionError: .* \(line 2\)"),
    "needs.py": (
        "def get_config(preset):\n    return preset",
        "the file takes a preset; use --config=.*needs.py:PRESET",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_file_is_told_with_its_line(name, tmp_path):
    text, told = BROKEN[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(Refused, match=told) as caught:
        overrides.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_config_file_that_is_not_there(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, near in (
        ("configs/quikstart.py", "quickstart.py"),
        ("quickstart", "quickstart.py"),
        ("transfomer.py:tiny", "transformer.py:tiny"),
    ):
        with pytest.raises(Refused, match=rf"is not a config file; did you mean --config=configs/{near}\?"):
            overrides.load(name)
    with pytest.raises(Refused, match="configs is a folder; give a file, e.g. --config=configs/sweeps/scaling.py"):
        overrides.load("configs", "get_sweep", dict)
    for name in ("", "README.md", "/nowhere/zzz.py"):
        with pytest.raises(Refused, match="is not a config file; try --config=configs/quickstart.py"):
            overrides.load(name)
    with pytest.raises(Refused, match="did you mean '124m'"):
        overrides.load("configs/transformer.py:125m")
    with pytest.raises(Refused, match="takes no preset; use --config=configs/quickstart.py"):
        overrides.load("configs/quickstart.py:tiny")
    assert overrides.load("configs/transformer.py:tiny") == transformer.get_config("tiny")
    assert isinstance(overrides.load(str(ROOT / "configs" / "transformer.py")), ConfigDict)


def test_what_is_asked_by_name_holds_in_a_smoke_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    made = opening.config(
        flags(config="configs/quickstart.py", smoke=True),
        [("train.steps", "7"), ("model.mixer", "attention,attention")],
    )
    assert made.train.steps == 7 and made.data.length == 32 and made.model.num_layers == 2 and made.is_locked


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained workdir."""
    folder = tmp_path_factory.mktemp("cli")
    train(tiny.config(folder), folder / "run", quiet=True)
    return folder / "run"


def test_a_workdir_brings_its_own_config(run):
    saved = opening.config(flags(workdir=str(run)), [])
    assert saved.to_dict() == tiny.config(run.parent).to_dict()
    with pytest.raises(Refused, match="--config is missing; try --config=configs/quickstart.py."):
        opening.config(flags(workdir=str(run.parent / "none")), [])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"mode": "generate"}, 'generate needs either --prompt="text" or --prompts=FILE'),
        ({"mode": "generate", "prompt": "a", "prompts": "b"}, "generate needs either"),
        ({"mode": "generate", "prompts": "/nowhere"}, "--prompts=/nowhere cannot be read: no such file"),
        ({"mode": "generate", "prompts": os.devnull}, f"--prompts={os.devnull} is empty; give a file"),
        ({"mode": "generate", "prompt": ""}, '--prompt="" is empty; give the text to continue'),
        ({"mode": "generate", "prompt": "a", "output": "b"}, "--output=b goes with --prompts=FILE"),
        ({"mode": "report", "runs": ","}, "--runs=, names no workdir; try --runs=runs/a,runs/b or --runs='runs/*'."),
        ({"mode": "report", "runs": "/nowhere"}, "--runs=/nowhere holds no run"),
    ],
)
def test_a_command_that_lacks_something(given, told, run):
    (line,) = refusal(workdir=str(run), **given)
    assert line.startswith(told)


@pytest.mark.parametrize("mode", ["train", "evaluate", "generate", "export", "report"])
def test_a_mode_that_needs_a_workdir_says_so(mode):
    prompt = "x" if mode == "generate" else None
    assert refusal(mode=mode, prompt=prompt) == ["--workdir is missing; try --workdir=runs/first."]
    if mode not in ("train",):
        (line,) = refusal(mode=mode, prompt=prompt, workdir="/nowhere")
        assert line.startswith("--workdir=/nowhere holds no run")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("generate.max_tokens=0", "generate.max_tokens=0 must be at least 1, e.g. 200."),
        ("generate.temperature=-1", "generate.temperature=-1.0 must not be negative, e.g. 0.8."),
        ("generate.top_p=0", "generate.top_p=0.0 must lie between 1e-06 and 1, e.g. 1.0."),
        ("generate.topp=1", "--config.generate.topp is not a key of the config; did you mean --config.generate.top_p?"),
        ("generate.memory=all", "generate.memory='all' is unknown; did you mean 'full'? choose one of: "),
        ("generate.drafter=me", "generate.drafter='me' is unknown; choose one of: "),
        ("generate.engine.lanes=0", "generate.engine.lanes=0 must be at least 1, e.g. 8."),
        ("model.width=4", "--config.model.width cannot change a trained model; change eval or generate"),
    ],
)
def test_what_may_be_asked_of_a_trained_model(change, told, run):
    (line,) = refusal([change], mode="generate", prompt="x", workdir=str(run))
    assert line.startswith(told)


def test_windows_is_refused_in_a_sentence_before_anything_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(main.sys, "platform", "win32")
    with pytest.raises(SystemExit) as left:
        main.main(["main.py"], [])
    assert left.value.code == 2 and "start it in WSL2" in capsys.readouterr().err


def test_prompts_may_come_through_a_pipe_and_one_that_nobody_writes_into_is_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(Refused, match="cannot be read: it is a pipe that nobody writes into; give a file"):
        named.prompts(flags(mode="generate", prompts=str(pipe)))
    reader, writer = os.pipe()  # As `--prompts=<(command)` hands one over, before and after it has written.
    late = threading.Timer(0.2, lambda: (os.write(writer, b"one\ntwo\n"), os.close(writer)))
    late.start()
    try:
        assert named.prompts(flags(mode="generate", prompts=f"/dev/fd/{reader}")) == ["one", "two"]
    finally:
        late.join()
        os.close(reader)


def test_a_trained_model_is_read_by_every_mode(run, capsys, tmp_path):
    with pytest.raises(ConfigError, match="belongs to a run of another config"):
        modes.run(flags(mode="evaluate", workdir=str(run), config=str(ROOT / "configs" / "quickstart.py")), [])
    modes.run(flags(mode="evaluate", workdir=str(run)), [("eval.rows", "8")])
    assert capsys.readouterr().out.startswith("held-out bits per byte = ")
    modes.run(flags(mode="generate", workdir=str(run), prompt="abc é"), [("generate.max_tokens", "3")])
    once = capsys.readouterr().out
    modes.run(flags(mode="generate", workdir=str(run), prompt="abc é"), [("generate.max_tokens", "3"), ("seed", "8")])
    again = capsys.readouterr().out
    assert once.startswith("abc é") and again.startswith("abc é") and once != again
    (tmp_path / "prompts.txt").write_bytes(b"one\r\n\n \nb\xffd\n")
    modes.run(flags(mode="generate", workdir=str(run), prompts=str(tmp_path / "prompts.txt")), [])
    out, rule = capsys.readouterr().out, "=" * 20 + "\n"
    assert [text[:3] for text in out.split(rule)] == ["", "one", "b\ufffdd"]
    more = {"mode": "generate", "workdir": str(run), "prompts": str(tmp_path / "prompts.txt")}
    (line,) = refusal(["generate.engine.capacity=9", "generate.max_tokens=7"], **more)
    assert line.startswith(
        "prompt 1 has 4 tokens and generate.max_tokens=7 more do not fit generate.engine.capacity=9;"
    )
    modes.run(flags(**more, output=str(tmp_path / "out.jsonl")), [("generate.max_tokens", "3")])
    assert capsys.readouterr().out == f"2 prompts, 0 of them failed: {tmp_path / 'out.jsonl'}\n"
    modes.run(flags(mode="export", workdir=str(run)), [])
    assert capsys.readouterr().out.endswith(f" parameters: {run / 'model.safetensors'}\n")
    modes.run(flags(mode="report", workdir=str(run)), [])
    modes.run(flags(mode="report", workdir=str(tmp_path / "both"), runs=f"{run}, {run}"), [])
    assert (run / files.REPORT).exists() and (tmp_path / "both" / "comparison.html").exists()
    before = (run / files.METRICS).read_bytes()
    modes.run(flags(workdir=str(run)), [])
    assert "the run was finished before" in capsys.readouterr().out and (run / files.METRICS).read_bytes() == before


def test_bad_commands_end_with_a_sentence_and_code_2_and_write_nothing(tmp_path):
    """The real door, once: what a shell sees. Whole processes, so only a few commands."""
    workdir = f"--workdir={tmp_path / 'run'}"
    quick = "--config=configs/quickstart.py"
    commands = [
        ([quick, workdir, "--config.model.widht=3"], "--config.model.widht is not a key of the config; did you mean"),
        ([quick, workdir, "--modes=plan"], "--modes=plan is not a flag; did you mean --mode=plan?"),
        ([quick, workdir, "--lr=0.1"], "--lr=0.1 is not a flag; settings begin with --config: --config.opt"),
        ([quick, workdir, "--confg.seed=1"], "--confg.seed=1 is not a flag; settings begin with --config: --config.s"),
        ([quick, workdir, "--mode=trian"], "--mode=trian is not a mode; did you mean --mode=train?"),
        ([quick, workdir, "plan"], "'plan' is not a flag; did you mean --mode=plan?"),
        ([quick, workdir, "--simulate=x"], "--simulate=x must be a whole number, e.g. --simulate=8."),
        (["--mode=bench", "--tune=maybe"], "--tune=maybe must be true or false."),
        ([quick, workdir, "--simulate=8", "--config.data.batch_size=12"], "data.batch_size=12 does not divide over 8"),
        ([quick, "--workdir=/proc/run"], "'/proc/run' cannot be used: "),
        (
            ["--mode=evaluate", "--workdir=no\u202e\u2028\x1b[1m"],
            "--workdir=no\\u202e\\u2028\\x1b[1m holds no run; give",
        ),
    ]
    env = environment.child()
    for arguments, told in commands:
        done = subprocess.run(
            [sys.executable, "main.py", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2 and done.stdout == "", done
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {told}"), line
    assert os.listdir(tmp_path) == []


def test_a_refusal_imports_nothing_heavy():
    """A wrong key needs no jax; a wrong value needs no checkpoints, plots or grain."""
    code = """
import sys, types
from experiments import modes
from experiments.settings.errors import sentence
flags = types.SimpleNamespace(
    config="configs/quickstart.py", workdir="/tmp/none", mode="train", smoke=False, coordinator="", num_processes=0,
    process_id=-1,
)
def heavy(key, value):
    try:
        modes.run(flags, [(key, value)])
    except ValueError as error:
        assert sentence(error), error
    names = ("jax", "flax", "optax", "orbax", "grain", "matplotlib", "tensorboardX", "scipy.stats", "sklearn")
    return sorted(set(names) & set(sys.modules))
print(heavy("model.widht", "3"), heavy("model.width", "129"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[] ['flax', 'jax', 'optax']", done


def test_a_full_memory_is_a_sentence_and_other_faults_of_a_library_are_not():
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 27136129936 bytes.")
    told = "the memory is used up (Out of memory allocating 27136129936 bytes); use a smaller data.batch_size or "
    assert sentence(full).startswith(told)
    assert sentence(MemoryError()).startswith("the memory is used up (out of memory); use a smaller data.batch_size")
    assert sentence(jax.errors.JaxRuntimeError("INTERNAL: x")) == "" == sentence(KeyError("RESOURCE_EXHAUSTED"))


@pytest.mark.parametrize("mode", ["train", "evaluate", "generate", "export", "report", "plan"])
def test_a_workdir_in_a_store_is_refused_at_once(mode, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (told,) = refusal(mode=mode, workdir="gs://bucket/runs/a", config=str(ROOT / "configs/quickstart.py"), prompt="a")
    assert told.startswith("--workdir=gs://bucket/runs/a is in a store (gs:)") and "--workdir=/mnt/" in told
    assert not list(tmp_path.iterdir())


def test_runs_are_named_by_patterns_too(tmp_path):
    for name in ("b", "a", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "[x]").mkdir()  # A name that is one is taken as it stands.
    for name in ("a", "b", "[x]"):
        files.write_config(tmp_path / name, {}, "")
    assert named.runs(flags(runs=f"{tmp_path}/*")) == [tmp_path / "[x]", tmp_path / "a", tmp_path / "b"]
    assert named.runs(flags(runs=f"{tmp_path}/[x],{tmp_path}/b")) == [tmp_path / "[x]", tmp_path / "b"]
    (tmp_path / "[x]" / "c").mkdir()  # Nor are the folders above a pattern patterns themselves.
    files.write_config(tmp_path / "[x]" / "c", {}, "")
    assert named.runs(flags(runs=f"{tmp_path}/[x]/*")) == [tmp_path / "[x]" / "c"]
    with pytest.raises(Refused, match="names no workdir"):
        named.runs(flags(runs=f"{tmp_path}/none*"))
