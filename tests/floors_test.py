"""A room imports only from lower floors (docs/house.md), and `kernels` knows neither flax nor configs."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLOORS = {  # room -> what it may import, of our rooms and of the libraries that decide its independence
    "kernels": {"rooms": {"kernels"}, "not": {"flax", "ml_collections", "optax", "orbax", "absl"}},
    "data": {"rooms": {"data"}, "not": {"flax", "ml_collections", "optax", "orbax", "tensorflow"}},
    "configs": {"rooms": {"configs"}, "not": {"jax", "flax", "optax", "numpy"}},
    "models": {"rooms": {"models", "kernels"}, "not": {"ml_collections", "optax", "orbax", "absl", "tensorflow"}},
    "experiments": {"rooms": {"experiments", "models", "kernels", "data", "configs"}, "not": {"tensorflow"}},
}


def imports(path: pathlib.Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_from_lower_floors(room):
    rules = FLOORS[room]
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            assert name not in FLOORS or name in rules["rooms"], f"{path.relative_to(ROOT)} imports {name}"
            assert name not in rules["not"], f"{path.relative_to(ROOT)} imports {name}"


def targets(path: pathlib.Path):
    """The files of the house that `path` imports by name, imports inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _file(name) else node.module for name in whole]
        else:
            continue
        yield from filter(None, map(_file, names))


def _file(name: str) -> pathlib.Path | None:
    place = ROOT.joinpath(*name.split("."))
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)


@pytest.mark.parametrize("room", FLOORS)
def test_no_file_reaches_itself_by_imports(room):
    graph = {path: set(targets(path)) - {path} for path in (ROOT / room).rglob("*.py")}
    while graph:
        leaves = [path for path, after in graph.items() if not after & graph.keys()]
        circle = sorted(str(path.relative_to(ROOT)) for path in graph)
        assert leaves, f"these import each other in a circle, or lead into one: {circle}"
        for path in leaves:
            del graph[path]


def test_tests_mirror_the_rooms():
    """Tests of a room of experiments/ lie in the folder of its name."""
    rooms = {path.parent.name for path in (ROOT / "experiments").glob("*/*.py")}
    folders = {path.parent.name for path in (ROOT / "tests" / "experiments").glob("*/*_test.py")}
    assert folders == rooms


def test_no_file_is_too_long_to_read():
    """The house measure is about 400 lines; a file beyond it is split, not excused."""
    for path in ROOT.rglob("*.py"):
        if {".venv", ".cache"} & set(path.relative_to(ROOT).parts):
            continue
        assert len(path.read_text().splitlines()) <= 420, path.relative_to(ROOT)
