"""The command `tessera` is main.py from any folder, and its installation adds that one name and no other."""

import os
import shlex
import subprocess
import sys
import tomllib

import pytest

from experiments.settings import overrides
from tests import environment

ROOT = environment.ROOT
LAUNCHED = "import tessera; tessera.main()"


def run(folder, *words, path=ROOT / "launcher"):
    env = environment.child() | {"PYTHONPATH": str(path)}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def test_it_is_main_py_from_any_folder(tmp_path):
    """One of our configs is found there, too; a file of that name where one stands goes first."""
    flags = ("--mode=list", "--filter=quickstart")
    ours = run(ROOT, sys.executable, "main.py", *flags)
    theirs = run(tmp_path, sys.executable, "-c", LAUNCHED, *flags)
    assert theirs.stdout == ours.stdout and "configs/quickstart.py" in ours.stdout
    assert theirs.returncode == ours.returncode == 0
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").write_text("raise ValueError('mine')\n")
    for preset, told in (("configs/quickstart.py", "ValueError: mine"), ("configs/transformer.py:huge", "preset")):
        refused = run(tmp_path, sys.executable, "-c", LAUNCHED, f"--config={preset}", "--mode=plan")
        assert refused.returncode == 2 and refused.stderr.startswith("error: ") and told in refused.stderr


def test_without_its_clone_it_says_where_to_install(tmp_path):
    (tmp_path / "a" / "b" / "tessera").mkdir(parents=True)
    (tmp_path / "a" / "b" / "tessera" / "__init__.py").write_bytes((ROOT / "launcher/tessera/__init__.py").read_bytes())
    ended = run(tmp_path, sys.executable, "-c", LAUNCHED, path=tmp_path / "a" / "b")
    assert ended.returncode == 1 and "run `pip install -e .` there" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("argv", [["tessera", "--mode=plan"], ["main.py", "--prompt=a b"]])
def test_a_run_keeps_the_command_that_began_it(monkeypatch, argv):
    monkeypatch.setattr(sys, "argv", argv)
    told = overrides.command()
    assert shlex.split(told) == (argv if argv[0] == "tessera" else ["python", *argv])


def test_one_name_is_installed_and_only_from_a_clone(monkeypatch):
    made = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert made["tool"]["setuptools"]["packages"] == ["tessera"] and made["project"]["scripts"].keys() == {"tessera"}
    assert set(os.listdir(ROOT / "launcher")) <= {
        "tessera", "tessera.egg-info", "__pycache__"
    }  # fmt: skip
    pytest.importorskip("setuptools")
    monkeypatch.syspath_prepend(str(ROOT / "launcher"))
    from tessera import build

    for name in ("build_wheel", "build_sdist", "prepare_metadata_for_build_wheel"):
        with pytest.raises(SystemExit, match="run `pip install -e .` in the clone"):
            getattr(build, name)("somewhere")
    assert build.build_editable.__module__.startswith("setuptools")
