"""How a run begins, begins again, goes on elsewhere, and what is read of it when its data are gone."""

import json
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import modes, training
from experiments import workdir as files
from experiments.generation import make as make_generator
from experiments.generation.chatting import spoken_to
from experiments.program import Program
from experiments.settings import identity
from experiments.settings.errors import CheckpointError, ConfigError, TrainingDiverged
from experiments.training import stopping, train
from experiments.workdir import saved, trained, vouched
from experiments.workdir.checkpoints import Checkpoints
from tests.experiments import tiny
from tests.experiments.cli_test import flags
from tests.experiments.training.train_test import assert_same_bits
from tests.experiments.workdir.trust_test import snapshot

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of four steps with checkpoints 2 and 4, and its config."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny.config(folder)
    train(config, folder / "run", quiet=True)
    return folder, config


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    return tmp_path / "run"


def unvouch(run):
    for path in (run / "checkpoints").glob("*.sha256.json"):
        path.unlink()


def lose(run):
    shutil.rmtree(run / "checkpoints")


@pytest.mark.parametrize("harm", [unvouch, lose])
def test_a_run_that_would_start_over_stops_and_loses_nothing(finished, run, harm):
    config = finished[1]
    harm(run)
    before = snapshot(run)
    with pytest.raises(CheckpointError, match="--overwrite"):
        train(config, run, quiet=True)
    assert {k: v for k, v in snapshot(run).items() if k != files.LOCK} == {
        k: v for k, v in before.items() if k != files.LOCK
    }
    if harm is unvouch:
        train(config, run, quiet=True, overwrite=True)
        (aside,) = run.glob("replaced-*")
        assert snapshot(aside).items() >= {k: v for k, v in before.items() if k.startswith("checkpoints/")}.items()
        assert (aside / files.METRICS).read_bytes() == (run / files.METRICS).read_bytes()  # The same run once more.
        assert Checkpoints(run).steps() == [2, 4]


def test_a_run_of_another_config_makes_way_when_asked(finished, run):
    folder, _ = finished
    other = tiny.config(folder, seed=1, train__steps=1)
    with pytest.raises(ConfigError, match="add --overwrite to move that run aside"):
        train(other, run, quiet=True)
    evaluated = (files.DRAFTS, files.TEXTS, files.ROUTING, f"{files.MEMORIES}/h2o.jsonl", "model.safetensors", "hf/a")
    for name in evaluated:  # What was found out of the old run's parameters says nothing of the new one's.
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("of the old one")
    train(other, run, quiet=True, overwrite=True)
    assert files.read_json(run / files.CONFIG)["config"]["seed"] == 1
    (aside,) = run.glob("replaced-*")
    assert files.read_json(aside / files.CONFIG)["config"]["seed"] == 0
    assert all((aside / name).read_text() == "of the old one" for name in evaluated)
    assert not any((run / name).exists() for name in evaluated)


def test_nothing_is_written_before_the_run_stands(finished, tmp_path, monkeypatch):
    folder, config = finished
    new = tmp_path / "new"
    with pytest.raises(ValueError, match="wandb='x' asks for Weights & Biases, which is not installed"):
        train(tiny.config(folder, train__wandb="x"), new, quiet=True)
    with pytest.raises(ConfigError, match="init.warm_start"):
        train(tiny.config(folder, init__warm_start="nowhere"), new, quiet=True)

    def broken(*_, **__):
        raise RuntimeError("it does not compile")

    monkeypatch.setattr(training.inputs, "prepare", broken)
    with pytest.raises(RuntimeError, match="does not compile"):
        train(config, new, quiet=True)
    assert not new.exists()


def test_a_folder_that_another_run_took_meanwhile_is_left_to_it(finished, tmp_path, monkeypatch):
    _, config = finished
    first = training.starting.state

    def late(*args, **kw):
        found = first(*args, **kw)
        shutil.copytree(finished[0] / "run", tmp_path / "late")
        return found

    monkeypatch.setattr(training.starting, "state", late)
    with pytest.raises(ConfigError, match="was taken by another run"):
        train(config, tmp_path / "late", quiet=True)
    assert (tmp_path / "late" / files.METRICS).exists()


# ==================== Numbers that are not finite ====================


def test_a_nan_of_the_last_update_is_no_success(finished, tmp_path, monkeypatch):
    folder, _ = finished
    config = tiny.config(folder, checkpoint__every=1, eval__every=0, train__steps=3)
    honest = Program.step

    def poisoned(self, state, batch):
        new, metrics = honest(self, state, batch)
        last = new["step"] == 3
        embedding = new["params"]["embedding"]
        new["params"] = new["params"] | {"embedding": embedding.at[0, 0].set(jnp.where(last, jnp.nan, embedding[0, 0]))}
        return new, metrics

    monkeypatch.setattr(Program, "step", poisoned)
    for _ in range(2):  # The start after it falls back, and ends in the same words.
        with pytest.raises(TrainingDiverged, match=r"\['params'\]\['embedding'\] .*not finite at step 3; .* is step 2"):
            train(config, tmp_path / "run", quiet=True)
    assert Checkpoints(tmp_path / "run").steps()[-1] == 2
    assert not (tmp_path / "run" / files.RESULT).exists()


def test_an_evaluation_that_is_not_finite_ends_the_run(finished, tmp_path, monkeypatch):
    folder, config = finished
    honest = training.running.evaluate.evaluate
    monkeypatch.setattr(training.running.evaluate, "evaluate", lambda *a: honest(*a) | {"eval/loss": float("inf")})
    with pytest.raises(TrainingDiverged, match="eval/loss=inf at step 2; the last good checkpoint is step none"):
        train(config, tmp_path / "run", quiet=True)
    assert Checkpoints(tmp_path / "run").steps() == []


# ==================== What may change between starts ====================


def test_a_finished_run_is_made_longer(finished, tmp_path, capsys):
    """With a rate that does not follow the length, the bits are those of a run that was always so long."""
    folder, _ = finished
    steady = {"optimizer__schedule": "constant", "optimizer__warmup": 1.0, "train__log_every": 2, "eval__every": 2}
    train(tiny.config(folder, train__steps=2, **steady), tmp_path / "run", quiet=True)
    train(tiny.config(folder, train__steps=4, **steady), tmp_path / "run")
    assert "4 steps, it had 2; its schedule goes on as if it had always had them" in capsys.readouterr().out
    train(tiny.config(folder, train__steps=4, **steady), tmp_path / "alone", quiet=True)
    assert_same_bits(tmp_path / "run", tmp_path / "alone")
    assert files.read_json(tmp_path / "run" / files.RESULT)["step"] == 4
    with pytest.raises(ConfigError, match="train.steps: 4 there, 2 asked for"):
        train(tiny.config(folder, train__steps=2, **steady), tmp_path / "run", quiet=True)


def test_a_longer_run_whose_schedule_follows_the_length_says_so(finished):
    folder, config = finished
    longer = tiny.config(folder, train__steps=8)
    about = {"config": files.plain(config.to_dict())}
    said = training.starting.longer(longer, about, 4)
    assert "8 steps, it had 4; optimizer.schedule='cosine' follows the length" in said
    assert training.starting.longer(config, about, 4) == "" == training.starting.longer(longer, {}, None)
    for damaged in ({"train": 5}, {"train": {"steps": "4"}}, {}):
        assert training.starting.longer(longer, {"config": damaged}, 4) == ""


def test_what_may_change_between_starts_is_one_table(finished):
    folder, config = finished
    mine = config.to_dict()
    for key, value in {
        "mesh__fsdp": 4, "eval__every": 7, "checkpoint__every": 9, "train__log_every": 3, "data__cache_dir": "x",
        "data__path": "moved", "train__steps": 9, "generate__top_k": 3, "sharding__embed": (), "train__wandb": "p",
    }.items():  # fmt: skip
        assert not identity.another_run(mine, tiny.config(folder, **{key: value}).to_dict()), key
    for key, value in {
        "seed": 1, "train__steps": 3, "data__length": 64, "train__accumulation": 2, "optimizer__b1": 0.5,
        "data__max_files": 3, "model__param_dtype": "bfloat16", "init__warm_start": "x", "objective": "insertion",
    }.items():  # fmt: skip
        dotted = key.replace("__", ".")
        assert list(identity.another_run(mine, tiny.config(folder, **{key: value}).to_dict())) == [dotted]


def test_moved_data_is_the_same_data_or_refused(finished, run, tmp_path):
    folder, config = finished
    shutil.copytree(folder / "texts", tmp_path / "texts")
    moved = config.copy_and_resolve_references().unlock()
    moved.data.path = str(tmp_path / "texts")
    assert train(moved.lock(), run, quiet=True)["step"] == 4
    (tmp_path / "texts" / "more.txt").write_text("one more document of many words")
    with pytest.raises(ConfigError, match="the corpus of .* had the hash .* bring the old files back"):
        train(moved, run, quiet=True)


# ==================== What is read of a run ====================


@pytest.fixture(scope="module")
def with_bpe(tmp_path_factory):
    """A run whose tokenizer was trained on its corpus, and the text that it writes."""
    folder = tmp_path_factory.mktemp("bpe")
    config = tiny.config(folder, data__tokenizer="bpe", data__vocab_size=270, checkpoint__every=0, eval__every=0)
    train(config, folder / "run", quiet=True)
    return folder, config


def text(workdir):
    model = trained.load(workdir)
    return make_generator(model.program, model.tokenizer)(
        model.params, ["ab"], {**model.config.generate.to_dict(), "temperature": 0.0}, seed=0
    )[0]


def test_a_run_works_alone_wherever_it_is(with_bpe, tmp_path, monkeypatch):
    folder, config = with_bpe
    told = text(folder / "run")
    shutil.copytree(folder / "texts", tmp_path / "kept")
    shutil.move(folder / "run", tmp_path / "moved")
    (folder / "texts" / "zz.txt").write_text("import numpy as np\n" * 400)
    assert text(tmp_path / "moved") == told
    with pytest.raises(ConfigError, match="the corpus of .* had the hash"):
        trained.load(tmp_path / "moved").corpus.valid  # noqa: B018 (it is read when it is asked for)
    shutil.rmtree(folder / "texts")
    shutil.rmtree(folder / "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert text(tmp_path / "moved") == told
    assert not (folder / "cache").exists() and not (tmp_path / "home").exists()
    # With the corpus back the tokenizer is still the one in the workdir, whatever would be trained now.
    shutil.copytree(tmp_path / "kept", folder / "texts")
    assert trained.load(tmp_path / "moved").corpus.tokenizer.hash == trained.load(tmp_path / "moved").tokenizer.hash
    shutil.move(tmp_path / "moved", folder / "run")


@pytest.mark.parametrize(
    "held", ["[]", "{}", '{"kind": "bpe"}', '{"kind": "bpe", "definition": 3}',
             '{"kind": "symbols", "num_symbols": "x"}',
             '{"kind": 3}', "{" * 3000, '{"kind": "bpe", "definition": "{}"}', '{"kind": "bytes"}'],
)  # fmt: skip
def test_a_tokenizer_that_is_not_the_runs_own_is_a_sentence(with_bpe, tmp_path, held):
    shutil.copytree(with_bpe[0] / "run", tmp_path / "run")
    (tmp_path / "run" / files.TOKENIZER).write_text(held)
    with pytest.raises((CheckpointError, ValueError), match=r"tokenizer.json.* restore it from a copy"):
        trained.load(tmp_path / "run")


def test_a_run_goes_on_with_its_own_tokenizer_and_mends_a_damaged_one(with_bpe, tmp_path):
    folder, config = with_bpe
    shutil.copytree(folder / "run", tmp_path / "run")
    good = (tmp_path / "run" / files.TOKENIZER).read_bytes()
    (tmp_path / "run" / files.TOKENIZER).write_text("[]")
    train(config, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / files.TOKENIZER).read_bytes() == good


def test_a_stranger_cannot_name_a_folder_that_is_then_made(finished, run, tmp_path):
    record = files.read_json(run / files.CONFIG)
    victim = tmp_path / "victim"
    record["config"]["data"]["cache_dir"] = str(victim)
    files.write_json(run / files.CONFIG, record)
    assert saved.saved_config(run).data.cache_dir == "~/.cache/tessera"
    text(run)
    assert not victim.exists()
    victim.mkdir()
    assert saved.saved_config(run).data.cache_dir == "~/.cache/tessera"  # There, but no cache.


def test_a_checkpoint_is_chosen_by_number_or_by_loss(run, capsys, monkeypatch):
    root = run / "checkpoints"
    losses = {step: vouched.loss(root, step) for step in (2, 4)}
    assert all(np.isfinite(list(losses.values())))
    assert trained.load(run, step="2").step == 2 and trained.load(run).step == 4
    assert trained.load(run, step="best").step == min(losses, key=losses.get)
    modes.run(flags(mode="export", workdir=str(run), step="2"), [])
    assert "parameters" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="--step=3 is no finished checkpoint in .*; there are 2, 4"):
        modes.run(flags(mode="evaluate", workdir=str(run), step="3"), [])


# ==================== Parameters from elsewhere ====================


@pytest.mark.parametrize("key", ["warm_start", "grow_from"])
def test_parameters_of_another_tokenizer_are_refused(with_bpe, tmp_path, key):
    folder, _ = with_bpe
    other = tmp_path / "other"
    tiny.corpus(other)
    for path in (other / "texts").iterdir():
        path.write_text(path.read_text().translate(str.maketrans("abcdefgh", "stuvwxyz")))
    options = {
        f"init__{key}": str(folder / "run"),
        "model__projection": "pattention" if key == "grow_from" else "dense",
    }
    config = tiny.config(folder, data__tokenizer="bpe", data__vocab_size=270, **options).unlock()
    config.data.path = str(other / "texts")
    if key == "grow_from":  # What the shapes would say is not what this is about.
        from experiments.workdir import grown

        corpus = training.inputs.load(config)
        with pytest.raises(CheckpointError, match="init.grow_from=.* was trained with another tokenizer"):
            grown.source(config, folder / "run", corpus.tokenizer, key="init.grow_from")
        return
    with pytest.raises(
        CheckpointError, match=r"another tokenizer \(.*\) than this run has .*use data.tokenizer='.*json'"
    ):
        train(config.lock(), tmp_path / "new", quiet=True)
    assert not (tmp_path / "new").exists()


def test_parameters_of_another_objective_are_refused(finished, tmp_path):
    folder, _ = finished
    config = tiny.config(folder, objective="masked_diffusion", init__warm_start=str(folder / "run"))
    with pytest.raises(
        CheckpointError, match="was trained for objective='next_token' and this run is for 'masked_diff"
    ):
        train(config, tmp_path / "new", quiet=True)


# ==================== Signals ====================


def test_a_terminal_that_closes_is_a_wish_to_stop():
    outside = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The tests themselves may run under nohup.
    try:
        _closing_terminals()
    finally:
        signal.signal(signal.SIGHUP, outside)


def _closing_terminals():
    with stopping.collected() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.requested == "SIGHUP"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.collected() as stop:  # Under nohup.
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_chat_template_is_the_one_that_a_run_began_with(tmp_path):
    pytest.importorskip("jinja2")
    lines = [{"instruction": f"say {i}", "output": "x" * (i % 9 + 1)} for i in range(80)]
    talks, template = tmp_path / "talks.jsonl", tmp_path / "t.jinja"
    talks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    good = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    good += "{% if add_generation_prompt %}<assistant>{% endif %}"
    template.write_text(good)
    chat = {"data__source": "chat", "data__path": str(talks), "data__template": str(template), "data__length": 64}
    config = lambda steps: tiny.config(tmp_path, **chat, train__steps=steps)  # noqa: E731
    train(config(2), tmp_path / "run", quiet=True)
    template.write_text(good.replace("<", "["))
    with pytest.raises(ConfigError, match=r"data.template=.* had the hash \w{12} when .* began and has \w{12} now"):
        train(config(3), tmp_path / "run", quiet=True)
    asked = saved.saved_config(tmp_path / "run").copy_and_resolve_references()
    asked.generate.chat = True
    with pytest.raises(ConfigError, match=r"and has \w{12} now"):
        trained.load(tmp_path / "run", asked)
    template.unlink()  # The run has its own.
    (tmp_path / "run").rename(tmp_path / "moved")
    model = trained.load(tmp_path / "moved", asked)
    said = spoken_to(model.tokenizer, True, model.config.data.template)
    assert said.decode(said.encode("one")) == "<user>one\n<assistant>" and model.corpus.hash
    assert train(config(3), tmp_path / "moved", quiet=True)["step"] == 3
    assert files.read_json(tmp_path / "moved" / files.CONFIG)["config"]["data"]["template"] == str(template)
    kept = tmp_path / "moved" / files.TEMPLATE
    assert kept.read_text() == good
    for harm in (lambda: kept.write_text("other"), lambda: kept.unlink(), lambda: kept.symlink_to(talks)):
        harm()  # As of a run that an older house began.
        with pytest.raises(ConfigError, match=r"and has \w+ now; bring the old file back"):
            trained.load(tmp_path / "moved", asked)
    with pytest.raises(ConfigError, match=r"and has nothing now; bring the old file back"):
        trained.load(tmp_path / "moved").corpus  # noqa: B018
    template.write_text(good)
    assert train(config(4), tmp_path / "moved", quiet=True)["step"] == 4 and kept.read_text() == good
