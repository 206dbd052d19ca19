"""Whatever is written, is written through one module: no link is followed, and no half of a file is left."""

import ast
import pathlib

import pytest

from data import cache
from data import disk as data_disk
from experiments import workdir as files
from experiments.workdir import saved
from tests.environment import ROOT

DOORS = {"experiments/workdir/disk.py": "workdirs", "data/disk.py": "caches, on the ground floor"}
APART = {
    "experiments/settings/page.py": "writes a page of this repository, and stands below the workdir",
    "data/places.py": "opens files of a store, to read",
    "experiments/bench/storage.py": "times numpy's own way to write, in a temporary folder",
    "experiments/settings/agreement.py": "makes a file with a random name of its own, and removes it",
}
# Methods and functions that write, make, move or remove, whatever they belong to.
WRITE = {
    "write_text", "write_bytes", "savefig", "to_csv", "tofile", "mkdir", "makedirs", "mkfifo", "rmdir", "removedirs",
    "rmtree", "unlink", "symlink_to", "hardlink_to", "symlink", "link_to", "rename", "renames", "touch", "truncate",
    "chmod", "chown", "utime", "copyfile", "copy2", "copytree", "mkdtemp", "mkstemp", "TemporaryDirectory",
    "NamedTemporaryFile", "TemporaryFile", "savez", "savez_compressed", "savetxt", "save_file", "memmap_write",
}  # fmt: skip
OF_MODULES = {  # Words that mean something else elsewhere.
    "os": {"replace", "remove", "link"}, "shutil": {"move", "copy"}, "np": {"save"}, "path": {"replace", "rename"},
}  # fmt: skip
BUFFERS = {"buffer", "file"}  # Names of what these write into where nothing lies on a disk: np.save(file, ..).


def writes(tree: ast.AST):
    """(line, what) of every call that writes to a place of its own choice."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of = getattr(node.func, "value", None)
        owner = of.id if isinstance(of, ast.Name) else ""
        first = node.args[0].id if node.args and isinstance(node.args[0], ast.Name) else ""
        if owner in ("disk", "files", "writers"):
            continue
        if name == "open" and opens_to_write(node, owner):
            yield node.lineno, "open to write"
        elif (name in WRITE or name in OF_MODULES.get(owner, ())) and first not in BUFFERS:
            yield node.lineno, name


def opens_to_write(node: ast.Call, owner: str) -> bool:
    """Whether an `open` is not plainly one to read: a mode that is no constant counts as one to write."""
    if owner == "os":
        return any(isinstance(x, ast.Attribute) and x.attr in ("O_WRONLY", "O_RDWR", "O_CREAT") for x in ast.walk(node))
    method = isinstance(node.func, ast.Attribute) and owner not in ("io", "gzip", "bz2", "lzma")
    given = node.args[0 if method else 1 :]
    modes = [*given[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
    return any(not isinstance(m, ast.Constant) or set(str(m.value)) & set("wax+") for m in modes)


def sources():
    return [ROOT / "main.py", *sorted(p for room in ("experiments", "data", "models", "kernels", "configs")
                                      for p in (ROOT / room).rglob("*.py"))]  # fmt: skip


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_writes(path):
    name, found = str(path.relative_to(ROOT)), list(writes(ast.parse(path.read_text())))
    if name in DOORS or name in APART:
        assert found, f"{name} writes nothing; leave it away here"
    else:
        assert not found, f"{name} writes by itself: {found}; use experiments.workdir.disk"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("open(p, 'w')", 1), ("p.open('ab')", 1), ("open(p, mode=m)", 1), ("os.open(p, os.O_CREAT | x)", 1),
        ("p.write_text(t)", 1), ("f.savefig(p)", 1), ("os.replace(a, b)", 1), ("np.save(p, x)", 1),
        ("shutil.move(a, b)", 1), ("p.rename(q)", 1), ("tempfile.TemporaryDirectory()", 1), ("gzip.open(p, 'wb')", 1),
        ("open(p)", 0), ("p.open('rb')", 0), ("text.replace('a', 'b')", 0), ("f.savefig(buffer)", 0),
        ("np.save(file, x)", 0), ("disk.rename(a, b)", 0), ("os.open(p, os.O_RDONLY)", 0), ("gzip.open(p)", 0),
    ],
)  # fmt: skip
def test_what_writes_is_seen(text, seen):
    assert len(list(writes(ast.parse(text)))) == seen


def test_a_picture_follows_no_link(tmp_path):
    """A chart of a bench, a page of a plan, a CSV: what a link of their name points to stays as it was."""
    from matplotlib.figure import Figure

    outside, link = tmp_path / "outside", tmp_path / "run" / "bench.png"
    outside.write_text("precious")
    link.parent.mkdir()
    link.symlink_to(outside)
    files.write_figure(link, Figure(figsize=(1, 1)), format="png")
    assert outside.read_text() == "precious" and link.read_bytes()[:4] == b"\x89PNG" and not link.is_symlink()


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "x" * 300])
def test_a_name_that_no_file_can_have_is_no_file(name, tmp_path):
    assert not files.disk.is_file(tmp_path / name) and not files.disk.is_folder(tmp_path / name)
    assert saved.found(str(tmp_path / name), lambda path: path.lstat() is not None) is False


def test_a_cache_is_written_whole_and_through_no_link(tmp_path):
    outside, link = tmp_path / "outside", tmp_path / "kept.npz"
    outside.write_text("precious")
    link.symlink_to(outside)
    with pytest.raises(OSError):
        data_disk.create(link)
    with pytest.raises(RuntimeError), data_disk.whole(link) as file:
        file.write(b"half")
        raise RuntimeError
    assert outside.read_text() == "precious" and link.is_symlink() and len(list(tmp_path.iterdir())) == 2
    with data_disk.whole(link) as file:
        file.write(b"whole")
    assert outside.read_text() == "precious" and not link.is_symlink() and link.read_bytes() == b"whole"
    assert isinstance(pathlib.Path(link), pathlib.Path) and len(list(tmp_path.iterdir())) == 2


def test_what_is_gone_on_with_in_a_cache_is_no_link(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "cache" / "corpora" / "abc"
    outside.mkdir()
    (outside / "precious").write_text("x")
    with cache.begun(folder) as made:
        assert made.is_dir()
    made.symlink_to(outside)
    with pytest.raises(OSError, match="cannot be written"), cache.begun(folder):
        raise AssertionError("it is given away")
    assert (outside / "precious").read_text() == "x" and made.is_symlink()
