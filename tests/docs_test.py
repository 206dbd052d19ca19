"""What the pages tell a reader to type and to write: every command is one, and the part that they add works."""

import importlib.util
import itertools
import math
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from absl.testing import flagsaver

import main
from experiments import claims, opening, preflight, sweep
from experiments.settings import overrides
from experiments.settings.errors import Refused
from tests import environment

ROOT = environment.ROOT
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a reader runs that is not ours to check; anything else unknown fails.
FOREIGN = ("git", "cd", "ray", "source")


def blocks(page: pathlib.Path) -> list[tuple[str, str]]:
    """(what stands behind the fence, text) of the page's code blocks."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list:
    """(page, line, the line that is printed below it) of each command: in blocks, and ours within a sentence."""
    found = []
    for page in PAGES:
        for info, text in blocks(page):
            lines = text.replace("\\\n", " ").splitlines()
            for line, after in zip(lines, [*lines[1:], ""], strict=True):
                if not info and line.strip() and not line.strip().startswith(("#", "error:")):
                    found.append((page.name, line, after))
        rest = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        ours = re.findall(r"`(python (?:main\.py|-m)[^`]*|make \w[^`]*|pip install [^`]*)`", rest)
        found += [(page.name, line, "") for line in ours if "..." not in line]
    return [pytest.param(line, after, id=f"{name}: {line[:50]}") for name, line, after in dict.fromkeys(found)]


@pytest.mark.parametrize(("line", "after"), commands())
def test_it_is_a_command(line, after, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in parts(shlex.split(line.removeprefix("$ "), comments=True)):
        check(words, after if line.startswith("$ ") else "")


def parts(words: list[str]) -> list[list[str]]:
    """The commands of a line, those handed to another machine too."""
    inner = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    if words[0] == "gcloud":
        assert len(inner) == 1
        return parts(shlex.split(inner[0]))
    found = [[]]
    for word in words:
        found.append([]) if word in ("&&", "&") else found[-1].append(word)
    return [command for command in found if command]


def check(words: list[str], refused: str) -> None:
    """Fails for a file, target, module, flag, key or config that is not there, or does not pass the preflight."""
    words = [word for word in words if not re.fullmatch(r"srun|[A-Z_]+=\S*:?\S*", word)]
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif words[:2] == ["pip", "install"]:
        known = (ROOT / "requirements-dev.txt").read_text()
        there = words[2] in ("-r", "-e") and (ROOT / words[-1]).exists()
        assert there or re.search(f"^{words[2]}\\b", known, re.MULTILINE)
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) and all((ROOT / w).exists() for w in words if w.startswith("tests/"))
    elif words[:2] == ["python", "main.py"]:
        changes, rest = overrides.split(words[2:])
        with flagsaver.flagsaver():
            assert main.FLAGS([words[1], *rest])[1:] == []
            if refused:
                with pytest.raises(Refused) as caught:
                    opening.config(main.FLAGS, changes)
                assert f"error: {caught.value}".startswith(refused.removesuffix("..."))
            else:
                check_config(changes)
    else:
        assert words[0] in FOREIGN, words


def check_config(changes: list) -> None:
    """What --config names is there and sound, as far as it can be known without the runs that it starts from."""
    flags = main.FLAGS
    if flags.mode == "sweep":
        assert sweep.load(flags.config)
    elif flags.mode == "claim":
        assert claims.load(flags.config) and not changes
    elif flags.config:
        made = opening.config(flags, changes).copy_and_resolve_references().unlock()
        made.init.grow_from = ""  # A run of the line before.
        processes = max(1, flags.num_processes)
        devices = math.prod(size for size in made.mesh.values() if size > 0)
        preflight.check(made.lock(), num_devices=max(devices, processes * max(1, flags.simulate)))
    elif changes:
        assert flags.workdir, "overrides need a config"


def inserted(text: str, diff: str) -> str:
    """`text` with the lines of a diff block: those with + stand behind, or before, the line that is shown with them."""
    old = [line[1:] for line in diff.splitlines() if line.startswith(" ")]
    new = [line[1:] for line in diff.splitlines()]
    assert text.count("\n".join(old) + "\n") == 1, f"{old} is not what stands there"
    return text.replace("\n".join(old) + "\n", "\n".join(new) + "\n")


# Of each section of docs/adding_a_part.md: how many files it touches, and the test files that hold its part to account.
ADDED = {
    "A mixer": (4, "short_conv", (
        "short_conv_test", "lm_test", "mixers_test", "bidirectional_test", "products_test", "counting_test",
        "sharded_test", "configs_test", "knobs_test",
    )),
    "A channel": (3, "bilinear", ("bilinear_test", "lm_test", "counting_test", "sharded_test")),
    "An objective": (3, "smoothed", ("smoothed_test", "report_test", "objectives_test", "sharded_test", "knobs_test")),
    "A rule of sampling": (3, "epsilon", ("sampling_test",)),
    "A control of decoding": (3, "recency", ("recency_test",)),
}  # fmt: skip
# What a part may turn red beside the tests that bear its name: those of whole tables, of pages, of every preset.
BESIDE = (
    "floors_test", "presets_test", "the_page", "entry_says", "group_of_a_part", "smoke_sizes", "generator_looks",
    "named_by_nobody", "the_table_makes",
)  # fmt: skip
HELD = [
    "tests/models", "tests/configs_test.py", "tests/presets_test.py", "tests/floors_test.py",
    *(f"tests/experiments/{name}_test.py" for name in
      ("program/counting", "program/sharded", "program/objectives", "settings/knobs", "gallery/gallery",
       "preflight/preflight")),
]  # fmt: skip


def sections(page: pathlib.Path) -> dict[str, list[tuple[str, str, str]]]:
    """(kind, file, text) of the blocks of each section that name a file."""
    found = {}
    for part in re.split("^## ", page.read_text(), flags=re.MULTILINE)[1:]:
        named = re.findall(r"^```(\w+) (\S+)\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
        found[part.splitlines()[0]] = named
    return {title: named for title, named in found.items() if named}


def test_a_part_takes_as_many_files_as_the_page_says():
    found = sections(ROOT / "docs" / "adding_a_part.md")
    assert {title: len({file for _, file, _ in named}) for title, named in found.items()} == {
        title: files for title, (files, *_) in ADDED.items()
    }
    module, knobs, *_ = (text for *_, text in found["A mixer"])
    assert len(module.splitlines()) + sum(line.startswith("+") for line in knobs.splitlines()) <= 50


def test_the_parts_that_are_added_pass_every_test_of_their_sockets(tmp_path):
    """A copy of the house with the page's files and lines in it: the tests that name a part, and those of all parts."""
    for name in ("configs", "data", "docs", "experiments", "kernels", "models", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    written = set()
    for kind, name, text in itertools.chain(*sections(ROOT / "docs" / "adding_a_part.md").values()):
        path = tmp_path / name
        assert path.exists() == (kind == "diff")
        path.write_text(inserted(path.read_text(), text) if kind == "diff" else text)
        written.add(name)
    environ = environment.child() | {"TESSERA_TEST_CACHE": environment.CACHE}

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done.stdout

    run("-m", "ruff", "check", *sorted(written))
    run("-m", "ruff", "format", "--check", *sorted(written))
    run("-m", "experiments.settings.page")
    run("-m", "experiments.gallery.composition")
    run("-c", "import pathlib; from experiments.gallery import page; page.write(pathlib.Path('docs'))")
    chosen = " or ".join([*(part for _, part, _ in ADDED.values()), *BESIDE])
    told = run("-m", "pytest", "-p", "no:cacheprovider", "-rpf", *HELD, "-k", chosen)
    passed = [line.removeprefix("PASSED ") for line in told.splitlines() if line.startswith("PASSED ")]
    for _, part, files in ADDED.values():
        of_it = [test for test in passed if part in test]
        assert all(any(f"/{file}.py" in test for test in of_it) for file in files), (part, of_it)
    assert [word for word in BESIDE if not any(word in test for test in passed)] == []
