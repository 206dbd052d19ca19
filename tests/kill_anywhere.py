"""Kills a run with SIGKILL at random moments, restarts it, and compares every bit with the run left alone.

    python -m tests.kill_anywhere --kills=20

Saves happen after every step, so that many kills fall inside one. Compared: parameters, optimizer, rng, step, and the
bytes of metrics.jsonl (which hold the loss of every step, and so the order of the data).
"""

import argparse
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

from tests import environment


def command(workdir: pathlib.Path, texts: pathlib.Path, cache: pathlib.Path, steps: int) -> list[str]:
    """The run: a tiny model that other libraries have a form of, a save and a line of metrics after every step."""
    settings = {
        "data.source": "text", "data.path": texts, "data.cache_dir": cache, "train.steps": steps, "train.log_every": 1,
        "checkpoint.every": 1, "eval.every": 7, "eval.sample_tokens": 8, "model.channel": "swiglu",
    }  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    config = environment.ROOT / "tests" / "kill_config.py"
    return [sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}", *flags]


def start(*args) -> subprocess.Popen:
    """Starts the run in a process of its own."""
    return subprocess.Popen(command(*args), cwd=environment.ROOT, env=environment.child(), stdout=subprocess.DEVNULL)


def saves(workdir: pathlib.Path) -> list[str]:
    """Names of the saves in `workdir`, begun and finished ones, oldest first."""
    return sorted(
        (p.name for p in (workdir / "checkpoints").glob("*") if p.is_dir()), key=lambda n: int(n.split(".")[0])
    )


def wait_for_save(process: subprocess.Popen, workdir: pathlib.Path, before: list[str]) -> bool:
    """Waits until the process has begun a save after those `before`; False when it has ended."""
    while process.poll() is None:
        if set(saves(workdir)) - set(before):
            return True
        time.sleep(0.005)
    return False


def run_alone(folder: pathlib.Path, texts: pathlib.Path, steps: int) -> tuple[float, float]:
    """The run left alone; returns its seconds before the first save and after it."""
    begin, workdir = time.monotonic(), folder / "alone"
    process = start(workdir, texts, folder / "cache", steps)
    wait_for_save(process, workdir, [])
    first = time.monotonic()
    assert process.wait() == 0
    return first - begin, time.monotonic() - first


def run_killed(folder: pathlib.Path, texts: pathlib.Path, steps: int, kills: int, seconds: tuple, seed: int) -> list:
    """The same run, killed up to `kills` times; returns what each kill found on disk.

    One kill of five falls before the first save of its process, the others so long after it that they share the run.
    """
    rng, found, workdir = random.Random(seed), [], folder / "killed"
    starting, saving = seconds
    while True:
        before = saves(workdir)
        process = start(workdir, texts, folder / "cache", steps)
        try:
            if len(found) == kills:
                delay = None
            elif rng.random() < 0.2:
                delay = rng.uniform(0, starting)
            else:
                wait_for_save(process, workdir, before)
                delay = rng.uniform(0, 2 * saving / kills)
            code = process.wait(delay)
            assert code == 0, code
            return found
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            found.append((saves(workdir) or ["nothing"])[-1])


def differences(folder: pathlib.Path) -> list[str]:
    """What differs between the two workdirs; empty when nothing does."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    alone, killed = folder / "alone", folder / "killed"
    wrong = []
    if (alone / "metrics.jsonl").read_bytes() != (killed / "metrics.jsonl").read_bytes():
        wrong.append("metrics.jsonl")
    states = []
    for workdir in (alone, killed):
        newest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        with ocp.PyTreeCheckpointer() as reader:
            states.append((newest.name, reader.restore((newest / "state").absolute())))
    (name_a, a), (name_b, b) = states
    if name_a != name_b:
        return [*wrong, f"last step {name_a} and {name_b}"]
    leaves = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    compared = 0
    for (path, x), y in leaves:
        compared += 1
        if np.asarray(x).tobytes() != np.asarray(y).tobytes():
            wrong.append(jax.tree_util.keystr(path))
    assert compared > 20, compared
    return wrong


def trial(kills: int, steps: int, seed: int) -> tuple[list, list[str]]:
    """One run alone, one killed; `(what kills found, what differs)`."""
    from tests.experiments import tiny

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        texts = tiny.corpus(folder)
        seconds = run_alone(folder, texts, steps)
        while True:
            found = run_killed(folder, texts, steps, kills, seconds, seed)
            if found or not kills:
                return found, differences(folder)
            shutil.rmtree(folder / "killed")  # It ended before the first kill.
            seconds = tuple(0.6 * s for s in seconds)


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    done = 0
    while done < options.kills:
        found, wrong = trial(options.kills - done, options.steps, options.seed + done)
        done += len(found)
        print(
            f"{len(found)} kills, finding {', '.join(found)}: {'differs in ' + ', '.join(wrong) if wrong else 'equal'}"
        )
        if wrong:
            sys.exit(1)
        if not found:
            options.steps *= 2
    print(f"{done} kills, every bit equal")


if __name__ == "__main__":
    main()
