"""Every config in the house can be made, passes the preflight, and trains when shrunk."""

import importlib
import pathlib

import pytest

from configs import base
from experiments import preflight
from experiments.settings import smoke
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


def different():
    """Of `house()`, one of those that shrink to the same config; how text is drawn does not count, as none is."""
    shrunk = lambda case: smoke.shrink(make(*case.values)).to_dict() | {"generate": None}  # noqa: E731
    return {repr(shrunk(case)): case for case in house()}.values()


@pytest.mark.parametrize(("module", "preset"), different())
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
