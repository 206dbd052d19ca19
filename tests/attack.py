"""Attacks a run in every way that we know of: says what was lost, what was touched outside, what was no sentence.

    python -m tests.attack                     # all of it: about half an hour on two cores
    python -m tests.attack --only=flips,links  # some of it
    python -m tests.attack --share=0.1         # a tenth of each

Each attack works on copies of one small finished run, or on runs of its own, with the command that a person types. An
attack that needs a right which is missing here says so and is skipped. Nothing may be lost, nothing outside the workdir
may change, and whatever ends a command is one sentence.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from tests import environment, kill_anywhere
from tests.experiments import tiny

STEPS = 12
# Commands that leave something in a workdir after training, by what they leave.
AFTER = {
    "drafts.jsonl": ("--mode=evaluate", "--config.generate.drafter=lookup", "--config.generate.max_tokens=8"),
    "memories": ("--mode=evaluate", "--config.generate.memory=streaming"),
    "texts.json": ("--mode=evaluate", "--config.eval.texts=('own={folder}/texts/0.txt',)"),
    "model.safetensors": ("--mode=export",),
    "hf": ("--mode=export", "--format=hf"),
    "out.jsonl": ("--mode=generate", "--prompts={folder}/prompts.txt", "--output={workdir}/out.jsonl",
                  "--config.generate.max_tokens=4"),
}  # fmt: skip


class Skipped(Exception):
    """An attack that cannot be made here."""


@dataclasses.dataclass(frozen=True)
class World:
    """Where attacks take place: a run left alone, in `folder / "alone"`, to copy and to compare with."""

    folder: pathlib.Path
    rng: random.Random

    @property
    def alone(self) -> pathlib.Path:
        return self.folder / "alone"

    def command(self, workdir: pathlib.Path, *more: str, steps: int = STEPS) -> list[str]:
        return [*kill_anywhere.command(workdir, self.folder / "texts", self.folder / "cache", steps), *more]

    def run(self, workdir: pathlib.Path, *more: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        """The training command to its end."""
        return subprocess.run(
            [*before, *self.command(workdir, *more)], cwd=environment.ROOT, env=environment.child(),
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def start(self, workdir: pathlib.Path, *more: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(workdir, *more), cwd=environment.ROOT, env=environment.child(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @contextlib.contextmanager
    def copy(self, *, evaluated: bool = False) -> Iterator[pathlib.Path]:
        """A copy of the finished run, and a folder beside it that stands for everything outside.

        `evaluated`: with what evaluations, exports and a file of prompts leave.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            workdir = pathlib.Path(temporary) / "run"
            shutil.copytree(self.evaluated if evaluated else self.alone, workdir)
            yield workdir

    @functools.cached_property
    def evaluated(self) -> pathlib.Path:
        """The run, with a file or folder of every kind that is written after training."""
        made = self.folder / "evaluated"
        shutil.copytree(self.alone, made)
        for mode in AFTER:
            done = self.after(mode, made)
            assert done.returncode == 0, done.stderr
        return made

    def after(self, name: str, workdir: pathlib.Path) -> subprocess.CompletedProcess:
        """The command `AFTER[name]`, or the mode of that name, on a trained run."""
        (self.folder / "prompts.txt").write_text("abc\nde\n")
        given = [word.format(workdir=workdir, folder=self.folder) for word in AFTER.get(name, (f"--mode={name}",))]
        return subprocess.run(
            [sys.executable, "main.py", *given, f"--workdir={workdir}"], cwd=environment.ROOT,
            env=environment.child(), capture_output=True, text=True, timeout=600,
        )  # fmt: skip


def world(folder: pathlib.Path, seed: int = 0) -> World:
    """The run that is attacked."""
    tiny.corpus(folder)
    made = World(folder, random.Random(seed))
    done = made.run(made.alone, "--config.checkpoint.keep_last=3")
    assert done.returncode == 0, done.stderr
    return made


def snapshot(folder: pathlib.Path) -> dict[str, bytes | str | None]:
    """Every file and link below a folder, with what it holds."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def told(code: int, stderr: str) -> list[str]:
    """What is wrong with how a command ended: 0, or 2 with one sentence (and lines that belong to it)."""
    if "Traceback" in stderr:
        return [f"a traceback: {stderr.strip().splitlines()[-1][:200]}"]
    if code == 0:
        return []
    sentences = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return (
        [] if code == 2 and len(sentences) == 1 else [f"exit {code} with {len(sentences)} sentences: {stderr[-200:]!r}"]
    )


def lost(before: dict, workdir: pathlib.Path) -> list[str]:
    """Files of checkpoints that are nowhere below the workdir any more."""
    there = {data for data in snapshot(workdir).values() if isinstance(data, bytes)}
    gone = [name for name, data in before.items() if name.startswith("checkpoints/") and isinstance(data, bytes)]
    return [f"lost {name}" for name in gone if before[name] not in there]


def newest(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Folders of steps, newest first."""
    steps = (p for p in (workdir / "checkpoints").iterdir() if p.is_dir() and p.name.isdigit())
    return sorted(steps, key=lambda p: -int(p.name))


# ==================== Damage ====================


def _restored(workdir: pathlib.Path) -> int:
    """The step that a start would go on from."""
    from experiments.workdir import saved, trained

    return trained.load(workdir, saved.saved_config(workdir)).step


def _flip(path: pathlib.Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flips(made: World, share: float) -> Iterator[str]:
    """64 flipped bits in data and 64 in checksums: each found, and the step before it used."""
    for i in range(max(1, round(64 * share))):
        for kind in ("data", "checksums"):
            with made.copy() as workdir:
                last, before, *_ = newest(workdir)
                files = [p for p in last.rglob("*") if p.is_file() and p.stat().st_size]
                sizes = [p.stat().st_size for p in files]
                (victim,) = (
                    made.rng.choices(files, sizes) if kind == "data" else [last.with_name(f"{last.name}.sha256.json")]
                )
                _flip(victim, made.rng)
                was = snapshot(workdir)
                step = _restored(workdir)
                if step != int(before.name):
                    yield f"flip {i} in {victim.name} of {kind}: step {step} was used, not {before.name}"
                if snapshot(workdir) != was:
                    yield f"flip {i} in {victim.name} of {kind}: reading changed the workdir"


def damaged(made: World, share: float) -> Iterator[str]:
    """Twelve kinds of damaged files, each in every file of a run: a sentence or the step before, and nothing lost."""
    kinds = {
        "empty": b"", "null": b"null", "list": b"[]", "object": b"{}", "number": b"7", "text": b'"x"',
        "deep": b"[" * 50_000, "rubbish": bytes(range(256)), "not text": b"\xff\xfe\x00", "torn": None,
        "a folder": "folder", "a pipe": "pipe",
    }  # fmt: skip
    names = ["config.json", "run.json", "result.json", "tokenizer.json", "metrics.jsonl", "timing.jsonl",
             "samples.jsonl", "drafts.jsonl", "texts.json", "out.jsonl",
             *(f"memories/{path.name}" for path in sorted((made.evaluated / "memories").iterdir()))]  # fmt: skip
    cases = [(name, kind) for name in names for kind in kinds]
    for name, kind in made.rng.sample(cases, max(1, round(len(cases) * share))):
        with made.copy(evaluated=True) as workdir:
            path, data = workdir / name, kinds[kind]
            whole = path.read_bytes() if path.exists() else b'{"step": 1}\n'
            before = snapshot(workdir)
            path.unlink(missing_ok=True)
            if data == "folder":
                path.mkdir()
            elif data == "pipe":
                os.mkfifo(path)
            else:
                path.write_bytes(whole[: len(whole) // 2] if data is None else data)
            own = name.split("/")[0]
            for mode in (own, "report") if own in AFTER else ("train", "evaluate", "report"):
                more = ("--config.checkpoint.keep_last=3",)
                done = made.run(workdir, *more) if mode == "train" else made.after(mode, workdir)
                for problem in (*told(done.returncode, done.stderr), *lost(before, workdir)):
                    yield f"{name} as {kind}, {mode}: {problem}"


# ==================== No room, no rights ====================


@contextlib.contextmanager
def _small_disk(folder: pathlib.Path, options: str) -> Iterator[pathlib.Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"a small disk needs the right to mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(made: World, share: float) -> Iterator[str]:
    """Disks without room, or without inodes, of many sizes: a sentence, and once there is room the same bits."""
    size = sum(p.stat().st_size for p in made.alone.rglob("*") if p.is_file())
    count = sum(1 for _ in made.alone.rglob("*"))
    options = [f"size={int(size * part)}" for part in (0.02, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)]
    options += [f"nr_inodes={max(3, int(count * part))}" for part in (0.05, 0.2, 0.4, 0.6, 0.9)]
    for option in made.rng.sample(options, max(1, round(len(options) * share))):
        place = made.folder / "small"
        with _small_disk(place, option):
            done = made.run(place / "killed", "--config.checkpoint.keep_last=3")
            for problem in told(done.returncode, done.stderr):
                yield f"{option}: {problem}"
            room = "size=1g,nr_inodes=100000"
            subprocess.run(["mount", "-o", f"remount,{room}", str(place)], check=True)
            done = made.run(place / "killed", "--config.checkpoint.keep_last=3")
            for problem in (*told(done.returncode, done.stderr), *_differs(made, place / "killed")):
                yield f"{option}, after room was made: {problem}"
        place.rmdir()


def _differs(made: World, workdir: pathlib.Path) -> list[str]:
    """What differs from the run left alone."""
    if not (workdir / "metrics.jsonl").exists():
        return ["nothing was written"]
    with tempfile.TemporaryDirectory(dir=made.folder) as temporary:
        folder = pathlib.Path(temporary)
        (folder / "alone").symlink_to(made.alone)
        (folder / "killed").symlink_to(workdir)
        return [f"differs in {name}" for name in kill_anywhere.differences(folder)]


def rights(made: World, share: float) -> Iterator[str]:
    """Files and folders of a run that may no longer be read or written."""
    drop: tuple[str, ...] = ()
    if os.geteuid() == 0:
        drop = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
        if shutil.which("setpriv") is None or subprocess.run([*drop, "true"], capture_output=True).returncode:
            raise Skipped("root has every right, and setpriv is not here to take one away")
    names = [
        "",
        "checkpoints",
        "metrics.jsonl",
        "config.json",
        "run.json",
        "tokenizer.json",
        ".lock",
        "tensorboard",
        "newest",
    ]
    for name in made.rng.sample(names, max(1, round(len(names) * share))):
        with made.copy() as workdir:
            before = snapshot(workdir)
            path = newest(workdir)[0] if name == "newest" else workdir / name
            mode = path.stat().st_mode
            path.chmod(0o555 if path.is_dir() and name != "newest" else 0)
            try:
                done = made.run(workdir, "--config.checkpoint.keep_last=3", "--config.train.steps=14", before=drop)
            finally:
                if path.exists():
                    path.chmod(mode)
                for moved in (workdir / "checkpoints").glob("damaged-*"):
                    if moved.is_dir():
                        moved.chmod(0o755)
            # A run that went on keeps its last three of more steps: of the old ones the newest alone, wherever it is.
            stay = "checkpoints/" if done.returncode else f"checkpoints/{STEPS}"
            kept = {k: v for k, v in before.items() if k.startswith(stay)}
            for problem in (*told(done.returncode, done.stderr), *lost(kept, workdir)):
                yield f"no right to {name or 'the workdir'}: {problem}"


# ==================== Other processes ====================

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGABRT", "SIGUSR1", "SIGALRM", "SIGSEGV")


def signals(made: World, share: float) -> Iterator[str]:
    """Nine signals in the middle of a save; then the same command ends with the bits of the run left alone."""
    workdir = made.folder / "signals"
    for name in made.rng.sample(SIGNALS, max(1, round(len(SIGNALS) * share))):
        shutil.rmtree(workdir, ignore_errors=True)
        process = made.start(workdir, "--config.checkpoint.keep_last=3")
        deadline = time.monotonic() + 300
        while not list((workdir / "checkpoints").glob("*.saving*")) and process.poll() is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.001)
        process.send_signal(getattr(signal, name))
        _, stderr = process.communicate(timeout=300)
        if name in ("SIGTERM", "SIGINT", "SIGHUP") and process.returncode:
            yield f"{name}: exit {process.returncode}, {stderr[-200:]!r}"
        done = made.run(workdir, "--config.checkpoint.keep_last=3")
        for problem in (*told(done.returncode, done.stderr), *_differs(made, workdir)):
            yield f"{name}, then the same command: {problem}"


def two_starts(made: World, share: float) -> Iterator[str]:
    """Two starts at once in one workdir: one trains, the other says why it does not, and the bits are right."""
    for i in range(max(1, round(20 * share))):
        workdir = made.folder / f"two-{i}"
        both = [made.start(workdir, "--config.checkpoint.keep_last=3") for _ in range(2)]
        ends = [(process.communicate(timeout=600)[1], process.returncode) for process in both]
        for problem in (p for stderr, code in ends for p in told(code, stderr)):
            yield f"start {i}: {problem}"
        if all(code for _, code in ends):
            yield f"start {i}: neither trained"
        else:
            for problem in _differs(made, workdir):
                yield f"start {i}: {problem}"


def kills(made: World, share: float) -> Iterator[str]:
    """Ten kills anywhere; see `tests.kill_anywhere`."""
    found, wrong = kill_anywhere.trial(max(1, round(10 * share)), 25, made.rng.randrange(1 << 20))
    for name in wrong:
        yield f"after {len(found)} kills: {name} differs"


def links(made: World, share: float) -> Iterator[str]:
    """Every name of a run as a link to somebody's file or folder: neither is read as ours, written, cut or removed."""
    begun = sorted(f"memories/{path.name}" for path in (made.evaluated / "memories").iterdir())
    files = ["config.json", "run.json", "code.diff", "metrics.jsonl", "timing.jsonl", "samples.jsonl", "result.json",
             "report.html", "tokenizer.json", ".lock", "routing.npz", "drafts.jsonl", "texts.json", "out.jsonl",
             "model.safetensors", *begun]  # fmt: skip
    folders = ["checkpoints", "tensorboard", "checkpoints/99", "checkpoints/99.saving", "checkpoints/99.deleted",
               "memories", "hf"]  # fmt: skip
    for name in made.rng.sample([*files, *folders], max(1, round(len([*files, *folders]) * share))):
        with made.copy(evaluated=True) as workdir:
            outside, path = workdir.parent / "outside", workdir / name
            outside.mkdir()
            victim = outside / ("folder" if name in folders else "file")
            if name in folders:
                (victim / "7").mkdir(parents=True)
                (victim / "7" / "precious").write_text("x")
            elif path.exists():
                shutil.copyfile(path, victim)
            else:
                victim.write_text("x")
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            path.symlink_to(victim)
            was = snapshot(outside)
            own = name.split("/")[0]
            for mode in ("train", "evaluate", "export", *([own] if own in AFTER else []), "report"):
                done = made.after(mode, workdir)
                for problem in told(done.returncode, done.stderr):
                    yield f"{name} is a link, {mode}: {problem}"
                if snapshot(outside) != was:
                    yield f"{name} is a link, {mode}: what it points to changed"


ATTACKS = {attack.__name__: attack for attack in (flips, damaged, full_disk, rights, signals, two_starts, kills, links)}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ATTACKS), help="names between commas")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases of each attack")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        made = world(pathlib.Path(temporary), options.seed)
        for name in options.only.split(","):
            start, found = time.monotonic(), 0
            try:
                for problem in ATTACKS[name](made, options.share):
                    print(f"  {problem}", flush=True)
                    found += 1
            except Skipped as error:
                print(f"{name}: skipped: {error}", flush=True)
                continue
            said = f"{found} problems" if found else "held"
            print(f"{name}: {said} ({time.monotonic() - start:.0f} s)", flush=True)
            wrong += found
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
