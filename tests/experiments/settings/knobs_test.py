"""Knobs are data: the config, ranges, names, smoke sizes, the page and the refusal of what nothing reads follow."""

import itertools

import jax
import pytest
from ml_collections import ConfigDict

import data
from configs import base, knobs, transformer
from configs.knobs.kinds import group, number, one_of, readers, switch, whole
from experiments import generation, opening, preflight
from experiments import workdir as files
from experiments.generation import canvas
from experiments.program import optimizers
from experiments.settings import keys, page, smoke
from experiments.settings.errors import ConfigError, Refused
from experiments.sweep import trials
from models import objectives
from models.decoding import parts as sockets
from tests.configs_test import house, make
from tests.environment import ROOT
from tests.experiments.cli_test import flags

pytestmark = pytest.mark.usefixtures("one_device")


def other(key: str):
    """A value of a knob that is allowed and not its default."""
    knob = knobs.KNOBS[key]
    if knob.choices or knob.table:
        return next(name for name in preflight.names(knob) if name != knob.default)
    if isinstance(knob.default, bool):
        return not knob.default
    if isinstance(knob.default, int):
        return knob.default + 1
    if isinstance(knob.default, float):
        return knob.default / 2 or 0.5
    groups = {"data.components": ({"source": "stdlib"},), "model.by_position": ({"attention": {"window": 7}},)}
    return {str: "x", tuple: groups.get(key, ("x",))}[type(knob.default)]


@pytest.mark.parametrize(("at", "module", "preset"), [
    pytest.param(at, *case.values, id=case.id) for at, case in enumerate(house())
])  # fmt: skip
def test_every_knob_of_every_part_that_is_not_chosen_is_refused(request, at, module, preset):
    """In one sentence with the key, the part, and the value that works; in the smoke form, too. Without --exhaustive
    every eighth key of a config is told alone: other ones of the next config."""
    every = 1 if request.config.getoption("--exhaustive") else 8
    for config in (make(module, preset), smoke.shrink(make(module, preset))):
        tree = config.to_dict()
        flat = keys.flatten(tree)
        unread = knobs.unread(flat)
        assert len(unread) >= 60 and not list(keys.unread_problems(tree))  # Of about 200: presets name few parts.
        reset = {key: other(key) for key in unread}
        for key in [*unread][at % every :: every]:
            keys.assign(tree, key, other(key))
            told = list(keys.unread_problems(tree, only=[key]))
            keys.assign(tree, key, flat[key])
            if not knobs.without(knobs.KNOBS[key], flat):  # Read by a part that is named where nothing reads it:
                assert not told  # that part is the one to be told.
                continue
            (problem,) = told
            assert problem.startswith(f"{key}=") and " is not used " in problem and len(problem) < 400, problem
            assert problem.endswith(f"; use {key}={keys.short(flat[key], 40)}."), problem
            assert any(f"{way.key}=" in problem for ways in knobs.KNOBS[key].of for way in ways)
        for key, value in reset.items():
            keys.assign(config, key, value)
        named = {p.split("=")[0] for p in keys.unread_problems(config.to_dict())}
        assert named <= reset.keys() and len(named) >= 60
        assert keys.tidy(config) == reset and keys.flatten(config.to_dict()) == flat


def test_the_preflight_refuses_what_nothing_reads():
    for changes, told in (
        ({"objective": "masked_diffusion", "generate.top_k": 5},
         "generate.top_k=5 is not used by objective='masked_diffusion'; it reads generate.diffusion.method, "),
        ({"generate.draft": 9}, "generate.draft=9 is not used by objective='next_token'; it reads generate.top_k, "),
        ({"model.swiglu.hidden": 64},
         "model.swiglu.hidden=64 is not used by model.channel='mlp'; it reads model.mlp.hidden, "),
        ({"masked_diffusion.steps": 7}, "masked_diffusion.steps=7 is not used by objective='next_token'; it reads "),
        ({"optimizer.name": "adafactor", "optimizer.b1": 0.5},
         "optimizer.b1=0.5 is not used by optimizer.name='adafactor'; use optimizer.b1=0.9."),
        ({"model.attention.sinks": 4}, "model.attention.sinks=4 is not used with model.attention.window=0; use "),
        ({"model.pattention.tokens": 4},
         "model.pattention.tokens=4 is not used by model.projection='dense' and model.channel='mlp'; it reads "),
    ):  # fmt: skip
        config = base.get_config()
        for key, value in changes.items():
            keys.assign(config, key, value)
        with pytest.raises(ConfigError) as caught:
            preflight.check(config, num_devices=1)
        (problem,) = caught.value.problems
        assert problem.startswith(told), problem
        config = keys.assign(config, key, knobs.KNOBS[key].default) or config
        preflight.check(config, num_devices=1)


def test_a_trained_model_is_read_with_what_it_reads(tmp_path):
    """On the command line, and by the config of the command that trained it."""
    config = transformer.get_config("tiny")
    config.objective = "masked_diffusion"
    files.write_config(tmp_path, config.to_dict(), "c")
    asked = flags(mode="generate", workdir=str(tmp_path))
    assert opening.trained_config(asked, [("generate.diffusion.steps", "3")]).generate.diffusion.steps == 3
    with pytest.raises(ConfigError, match="generate.top_k=5 is not used by objective='masked_diffusion'; it reads"):
        opening.trained_config(asked, [("generate.top_k", "5")])
    batch = config.eval.batch_size or config.data.batch_size // config.train.accumulation
    assert opening.trained_config(asked, [("eval.batches", "3")]).eval.rows == 3 * batch  # As an older house said it.
    with pytest.raises(Refused, match="--config.eval.batchez is not a key"):
        opening.trained_config(asked, [("eval.batchez", "3")])


def test_a_trained_model_is_read_by_the_command_line_that_trained_it(tmp_path):
    """Settings that the run has are no change, typed or in a file; those that differ are named."""
    typed = [("train.steps", "1e2"), ("model.width", "64"), ("mesh.data", "-1"), ("eval.rows", "5")]
    file = str(ROOT / "configs" / "transformer.py") + ":tiny"
    began = opening.config(flags(config=file, smoke=True), typed)
    files.write_config(tmp_path, began.to_dict(), "c")
    for given in ({}, {"config": file, "smoke": True}):
        asked = flags(mode="evaluate", workdir=str(tmp_path), **given)
        read = opening.trained_config(asked, [*typed, ("eval.rows", "7"), ("data.path", "moved")])
        want = began.copy_and_resolve_references().unlock()
        want.eval.rows, want.data.path = 7, "moved"
        assert read.to_dict() == want.to_dict()
    asked = flags(mode="evaluate", workdir=str(tmp_path))
    with pytest.raises(Refused) as caught:
        opening.trained_config(asked, [*typed, ("model.width", "128"), ("optimizer.name", "muon")])
    assert str(caught.value) == (
        "--config.model.width, --config.optimizer.name cannot change a trained model; change eval or generate, or "
        "train another: this one has model.width=64, optimizer.name='adamw'."
    )
    asked = flags(mode="evaluate", workdir=str(tmp_path), config=file, smoke=True)
    with pytest.raises(ConfigError, match="leave --config away(.|\n)*model.width: 64 there, 128 asked for"):
        opening.trained_config(asked, [*typed, ("model.width", "128")])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("objective", "zz", "objective='zz' is unknown"), ("train.accumulation", 0, "=0 must be at least 1"),
        ("optimizer.b1", 10**400, "optimizer.b1=inf must lie between"),
        ("seed", 10**400, "seed=inf is a float; it must be a whole"),
        ("eval.rows", -1, "=-1 must not be negative"), ("model.mixer", "attention,zz", "mixer='zz' is unknown"),
    ],
)  # fmt: skip
def test_a_saved_config_with_values_that_cannot_be_is_refused_in_a_sentence(tmp_path, key, value, told):
    """Damaged, or written by another house: whoever reads the model is told the key."""
    config = transformer.get_config("tiny")
    files.write_config(tmp_path, knobs.nested({**keys.flatten(config.to_dict()), key: value}), "c")
    asked = flags(mode="generate", workdir=str(tmp_path))
    with pytest.raises(ConfigError, match=told):
        opening.trained(asked, opening.trained_config(asked, []))


def test_a_sweep_over_parts_gives_each_trial_what_it_reads():
    config = base.get_config()
    config.model.lact.rank = 8
    grid = [
        {"model.mixer": mixer, "model.lact.chunk_size": size}
        for mixer in ("attention", "lact", "lact,attention") for size in (16, 32)
    ]  # fmt: skip
    made = trials.resolve(config, grid)
    assert [trial.name for trial in made] == [
        "mixer=attention", "mixer=lact chunk_size=16", "mixer=lact chunk_size=32",
        "mixer=lact,attention chunk_size=16", "mixer=lact,attention chunk_size=32",
    ]  # fmt: skip
    assert [trial.config.model.lact.rank for trial in made] == [32, 8, 8, 8, 8]
    for trial in made:
        preflight.check(trial.config, num_devices=1)
    # What no trial reads is refused, unless the sweep knows others that do.
    (alone,) = trials.resolve(config, grid[:1])
    with pytest.raises(ConfigError, match="model.lact.rank=8 is not used by model.mixer='attention'"):
        preflight.check(alone.config, num_devices=1)
    (one,) = trials.resolve(config, grid[:1], read={"model.lact.rank", "model.lact.chunk_size"})
    assert one.config == made[0].config and one.digest == made[0].digest


class Seen(dict):
    """Options that note which of them are read."""

    def __init__(self, options):
        super().__init__(options)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    __getattr__ = __getitem__


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_an_optimizer_reads_the_knobs_that_name_it(name):
    """So muon does read b1, b2 and eps: for what it leaves to AdamW."""
    roles = {"w": "kernel", "b": "bias"}
    for schedule in optimizers.SCHEDULES if name == "adamw" else ["constant"]:
        options = Seen(keys.base()["optimizer"] | {"name": name, "schedule": schedule})
        rule = optimizers.make(options, 10, roles)
        rule.init({"w": jax.numpy.zeros((1, 2, 2)), "b": jax.numpy.zeros((1, 2))})
        flat = keys.flatten(keys.base()) | {"optimizer.name": name, "optimizer.schedule": schedule}
        unread = {key.removeprefix("optimizer.") for key in knobs.unread(flat) if key.startswith("optimizer.")}
        # `final` is looked at for every schedule, and does nothing in a constant one; the program reads the other two.
        assert options.read - {"final"} == {*options} - unread - {"ema", "freeze", "final"}, schedule


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_what_a_generator_looks_at_may_be_set(name):
    """Whatever it takes from `config.generate`, under any method and cache, is not refused."""
    generator = objectives.OBJECTIVES[name].generator
    chosen = [{}]
    if generator == "canvas":
        methods, caches = (knobs.KNOBS[f"generate.diffusion.{key}"].choices for key in ("method", "cache"))
        chosen = [{"method": method, "cache": cache} for method, cache in itertools.product(methods, caches)]
    for changes in chosen:
        options = Seen(keys.base()["generate"])
        groups = {"diffusion": Seen(options["diffusion"] | changes), "insertion": Seen(options["insertion"])}
        options.update(groups)
        options.read.clear()
        if generator == "autoregressive":
            parts = sockets.make([options], keys.base()["generate"])
            sockets.dials([options], parts)
        elif generator == "canvas":
            canvas.settings(options, name)
        else:
            generation.GENERATORS[generator].settings(None, options)
        read = {f"generate.{group}.{key}" for group, seen in groups.items() for key in seen.read}
        read |= {f"generate.{key}" for key in options.read if key not in groups}
        flat = keys.flatten(keys.base()) | {"objective": name}
        flat |= {f"generate.diffusion.{key}": value for key, value in changes.items()}
        # Handed on in every case: a cache, or a way to stop, uses its own.
        handed = {f"generate.{key}" for key in ("diffusion.commit", "diffusion.refresh", "insertion.threshold")}
        assert read and not (read - handed) & knobs.unread(flat).keys(), changes


def test_the_group_of_a_part_is_read_by_the_part_of_its_name():
    """Of every socket: the table's name, the group's name and the reader say the same."""
    from models.channels import CHANNELS
    from models.decoding.control import CONTROLS
    from models.mixers import MIXERS

    for socket, table, prefix in (
        ("model.mixer", MIXERS, "model."),
        ("model.channel", CHANNELS, "model."),
        ("objective", objectives.OBJECTIVES, ""),
    ):
        for name in table:
            own = [key for key in knobs.KNOBS if key.startswith(f"{prefix}{name}.")]
            for key in own:
                flat = keys.flatten(keys.base()) | {socket: name}
                also = {"model.projection": name} if name == "pattention" else {}  # With one group of options.
                for way in (way for ways in knobs.KNOBS[key].of for way in ways if way.key in own):  # Of its own group.
                    other = [n for n in preflight.names(knobs.KNOBS[way.key]) if n not in way.names] if way.but else []
                    also[way.key] = 1 if way.names == ("*",) else [*other, *way.names][0]
                assert not knobs.without(knobs.KNOBS[key], flat | also), key
                others = [n for n in table if n != name]
                assert knobs.without(knobs.KNOBS[key], flat | {socket: others[0]}), key
    for knob in knobs.KNOBS.values():  # What a reader names exists.
        for way in (way for ways in knob.of for way in ways):
            assert way.key in knobs.KNOBS
            known = {*preflight.names(knobs.KNOBS[way.key]), "task", *MIXERS, *data.TOKENIZERS, "float32", "float64"}
            known |= {*CONTROLS} if way.key == "generate.control" else set()
            assert way.names == ("*",) or set(way.names) <= known, way


def test_a_group_of_knobs_is_a_group_of_the_config(monkeypatch):
    lines = group("Sentence.", of="model.mixer=mine or model.channel=mine")
    lines.size = whole(8, "Size.", least=2, small=4, before=6)
    lines.share = number(0.5, "Share.", least=0, most=1)
    lines.kind = one_of("a", ("a", "b"), "Kind.")
    lines.gate = switch(False, "Gate.", of="model.mine.kind=b")
    with pytest.raises(ValueError, match="'size' stands twice"):
        lines.size = whole(1, "Size.")
    made = dict(lines.knobs("model.mine."))
    assert list(made) == ["model.mine.size", "model.mine.share", "model.mine.kind", "model.mine.gate"]
    monkeypatch.setattr(knobs, "KNOBS", knobs.KNOBS | made)
    config = base.get_config()
    assert config.model.mine == ConfigDict({"size": 8, "share": 0.5, "kind": "a", "gate": False})
    assert smoke.shrink(config).model.mine.size == 8  # Nothing reads it.
    config.model.mixer = "attention, mine"
    assert smoke.shrink(config).model.mine.size == 4
    config.model.mine.update({"size": 1, "share": 1.5, "gate": True})
    assert [*keys.range_problems(config.to_dict())] == [
        "model.mine.share=1.5 must lie between 0 and 1, e.g. 0.5.", "model.mine.size=1 must be at least 2, e.g. 8.",
    ]  # fmt: skip
    (gate,) = keys.unread_problems(config.to_dict())
    assert gate.startswith("model.mine.gate=True is not used by model.mine.kind='a'")
    config.model.mixer = "attention"
    told = [problem.split("=")[0] for problem in keys.unread_problems(config.to_dict())]
    assert told == ["model.mine.size", "model.mine.share", "model.mine.gate"]
    assert "Before: `6`." in page.page()


def test_readers_match_names_between_commas_and_before_a_colon():
    (ways,) = readers("model.mixer=lact|ttt or data.source=task or train.wandb=*")
    assert [way.names for way in ways] == [("lact", "ttt"), ("task",), ("*",)]
    mixer, source, any_ = ways
    assert mixer.matches("attention, lact") and not mixer.matches("lact2") and not mixer.matches("")
    assert source.matches("task:recall") and not source.matches("tasks:recall")
    assert any_.matches("x") and any_.matches(1) and not any_.matches("") and not any_.matches(0)
    (empty,) = readers("generate.diffusion.method=|ancestral")[0]
    assert empty.matches("") and empty.matches("ancestral") and not empty.matches("euler")
    # A part that is named where nothing reads it reads nothing itself.
    flat = keys.flatten(keys.base()) | {"objective": "any_subset", "generate.diffusion.cache": "free"}
    assert "generate.diffusion.commit" in knobs.unread(flat)


def test_the_page_of_knobs_is_up_to_date():
    assert page.PLACE.read_text() == page.page(), "run `python -m experiments.settings.page`"
    for key, knob in knobs.KNOBS.items():
        assert len(knob.says) > 4 and f"| `{key.rpartition('.')[2]}` |" in page.PLACE.read_text()
        if knob.table:
            assert preflight.names(knob)


def test_smoke_sizes_are_within_their_ranges():
    for key, knob in knobs.KNOBS.items():
        for size in (knob.small, knob.smoke, knob.default):
            if isinstance(size, int | float) and not isinstance(size, bool):
                assert knob.least is None or size >= knob.least, key
                assert knob.most is None or size <= knob.most, key
