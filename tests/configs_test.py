"""Every config in the house can be made, passes the preflight, and trains when shrunk."""

import functools
import importlib
import pathlib

import jax
import pytest

from configs import base
from experiments import preflight
from experiments.planning import compiled
from experiments.program import build, sharding
from experiments.settings import keys, smoke
from experiments.training import train
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def house():
    """`(module, preset)` of every config file and each of its presets."""
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem in ("__init__", "base", "presets"):
            continue
        module = importlib.import_module(f"configs.{path.stem}")
        for preset in getattr(module, "PRESETS", {None: None}):
            yield pytest.param(module, preset, id=f"{path.stem}{':' + preset if preset else ''}")


def make(module, preset):
    return module.get_config(preset) if preset else module.get_config()


@pytest.mark.parametrize(("module", "preset"), house())
def test_it_passes_the_preflight_and_says_what_to_expect(module, preset):
    config = make(module, preset)
    preflight.check(config, num_devices=1)
    preflight.check(smoke.shrink(config), num_devices=1)
    assert "python main.py" in module.__doc__ and "xpect" in module.__doc__


@functools.cache
def different():
    """Of `house()`, one of those that shrink to the same config; how text is drawn does not count, as none is."""
    shrunk = lambda case: smoke.shrink(make(*case.values)).to_dict() | {"generate": None}  # noqa: E731
    return tuple({repr(shrunk(case)): case for case in house()}.values())


# What a preset may be the first to choose. Routers, segmenters and sizes have trainings of their own elsewhere.
NEW = ("objective", "model.kind", "model.mixer", "model.channel", "model.projection", "model.dtype")


def first():
    """Of `different()`, those that are the first to choose something."""
    seen = set()
    for case in different():
        flat = keys.flatten(smoke.shrink(make(*case.values)).to_dict())
        chosen = {(key, flat[key]) for key in NEW}
        if not chosen <= seen:
            seen |= chosen
            yield case.id


FIRST = set(first())


def trained():
    for case in different():
        marks = () if case.id in FIRST else pytest.mark.exhaustive
        yield pytest.param(*case.values, id=case.id, marks=marks)


@pytest.mark.parametrize(("module", "preset"), [case for case in different() if case.id not in FIRST])
def test_its_smoke_form_is_traced(module, preset):
    """A step and a row's likelihood, without their compiles: what trains is another preset of the same parts."""
    config = smoke.shrink(make(module, preset)).lock()
    program = build(config, vocab_size=300, mesh=sharding.make_mesh(config, jax.devices()))
    rows = compiled.batch_shapes(program)
    metrics = program.train_step().trace(compiled.state_shapes(program), rows).out_info[1]
    assert metrics["train/loss"].shape == ()
    nats = jax.eval_shape(
        lambda params, rows: program.objective.row_nll(program.merge(params), rows, jax.random.key(0)),
        program.abstract["params"], rows,
    )  # fmt: skip
    assert nats.shape == (config.data.batch_size,)


@pytest.mark.parametrize(("module", "preset"), trained())
def test_its_smoke_form_trains_and_evaluates(module, preset, tmp_path):
    config = smoke.shrink(make(module, preset))
    config.data.source, config.data.path, config.data.cache_dir = (
        "text",
        str(tiny.corpus(tmp_path)),
        str(tmp_path / "cache"),
    )
    config.eval.sample_prompt = ""
    for name, companion in config.companions.items():
        if companion.workdir:  # A run that its page trains first: here, too.
            first = tiny.config(tmp_path)
            train(first, tmp_path / name, quiet=True)
            companion.workdir = str(tmp_path / name)
    result = train(config.lock(), tmp_path / "run", quiet=True)
    assert result["step"] == config.train.steps and 0 < result["eval/bits_per_byte"] < 20


def test_choose_names_the_nearest_preset():
    with pytest.raises(ValueError, match="did you mean '124m'"):
        base.choose("preset", "125m", {"tiny": 0, "124m": 0})
