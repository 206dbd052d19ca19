"""Plants the bugs of tests/planted one at a time in a copy of the tree and runs the tests that should see each.

    python -m tests.planted_bugs                     # all; exits 1 if more than one in twenty survive
    python -m tests.planted_bugs --only=gated,muon   # those whose name or file holds one of the words
    python -m tests.planted_bugs --jobs=4

Before that the tests are run without any bug, so that a test that always fails counts for nothing.
"""

import argparse
import concurrent.futures
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests import environment, planted

SKIPPED = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "*.egg-info", "node_modules", "build")
SHARE = 20  # At most one in so many may survive.
SECONDS = 900  # that the tests of one bug may take
SEEN, SURVIVED = "seen", "survived"


def run(tree: pathlib.Path, tests: tuple[str, ...]) -> tuple[int | None, str]:
    """(exit code of pytest, its output) of `tests` in `tree`; None where they did not end in time."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    variables = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=tree, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=SECONDS)
        return process.returncode, out
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def verdict(code: int | None, out: str) -> str:
    """What the end of pytest says of a bug: only tests that ran and failed have seen it."""
    if code == 0:
        return SURVIVED
    if code is None:
        return f"no verdict: the tests did not end in {SECONDS} seconds"
    if code == 1 and re.search(r"^(FAILED|ERROR) ", out, re.MULTILINE):
        return SEEN
    return f"no verdict: pytest ended with {code}: {out.strip().splitlines()[-1] if out.strip() else ''}"


def chosen(words: str) -> tuple[planted.Bug, ...]:
    """Bugs whose name or file holds one of the words, separated by commas; all of them for an empty string."""
    wanted = [word for word in words.split(",") if word]
    return tuple(b for b in planted.bugs() if not wanted or any(w in b.name or w in b.file for w in wanted))


def copy(folder: str) -> pathlib.Path:
    """A copy of the tree in a new folder of `folder`."""
    to = pathlib.Path(tempfile.mkdtemp(dir=folder)) / "tree"
    shutil.copytree(environment.ROOT, to, ignore=SKIPPED, symlinks=True)
    return to


def plant(bug: planted.Bug, tree: pathlib.Path) -> tuple[str, str]:
    """(verdict, the last line of the output) of one bug in a copy of the tree, which is mended afterwards."""
    path = tree / bug.file
    whole = path.read_text()
    try:
        path.write_text(bug.applied(whole))
    except ValueError as error:
        return f"no verdict: {error}", ""
    try:
        code, out = run(tree, bug.tests)
    finally:
        path.write_text(whole)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", out, re.MULTILINE)
    return verdict(code, out), failed[0] if failed else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.planted_bugs", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="words, separated by commas, of names or files")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests without a bug first")
    args = parser.parse_args()
    bugs = chosen(args.only)
    if not bugs:
        print(f"error: --only={args.only!r} is in no name and no file; use e.g. --only=muon.")
        return 2
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        trees: queue.Queue[pathlib.Path] = queue.Queue()
        for _ in range(max(1, args.jobs)):
            trees.put(copy(folder))
        if not args.no_baseline:
            tests = tuple(sorted({test for bug in bugs for test in bug.tests}))
            tree = trees.get()
            code, out = run(tree, tests)
            trees.put(tree)
            if code != 0:
                print(out, f"error: these tests fail without any bug; mend them first ({code}).", sep="\n")
                return 1

        def one(bug: planted.Bug) -> tuple[planted.Bug, str]:
            tree, start = trees.get(), time.monotonic()
            try:
                found, by = plant(bug, tree)
            finally:
                trees.put(tree)
            print(f"{found:8}  {bug.file}: {bug.name}  {by} ({time.monotonic() - start:.0f} s)", flush=True)
            return bug, found

        with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
            results = list(pool.map(one, bugs))
    survived = [bug for bug, found in results if found == SURVIVED]
    broken = [bug for bug, found in results if found not in (SEEN, SURVIVED)]
    print(f"{len(bugs)} bugs: {len(bugs) - len(survived) - len(broken)} seen, {len(survived)} survived", end="")
    print(f", {len(broken)} without a verdict" if broken else "")
    return int(len(survived) * SHARE > len(bugs) or bool(broken))


if __name__ == "__main__":
    sys.exit(main())
