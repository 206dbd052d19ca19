"""Mutates every config of the house at random: each is refused readably within a second, or builds and takes steps.

    python -m tests.fuzz_configs --count=10000 --steps=60
    python -m tests.fuzz_configs --count=10000 --part=0/2 &  # every second of them, from the first on

Configs are the smoke forms of every preset, so that a step is cheap. A mutation drops, misspells or retypes one to
three keys, or puts them out of range; mostly keys that the config reads, since another is refused whatever it holds.
Which keys and how follows from their names by a hash: a key that the house gets later changes few of the mutations, and
those not all at once. What the preflight accepts is built (every shape is inferred); the first `steps`
of those also train one step on real batches of their corpus. What is refused after the preflight (a row too short for
its task, say) has to be refused in a sentence too.
"""

import argparse
import collections
import dataclasses
import os
import random
import sys
import time
import traceback

from ml_collections import ConfigDict

from configs import knobs
from experiments import preflight
from experiments.settings import keys, smoke
from experiments.settings.errors import ConfigError, sentence

DEFAULTS = keys.flatten(keys.base())
ODD = [
    None, True, False, 0, 1, -1, 2, 3, 7, 10**30, 0.5, -0.5, float("nan"), float("inf"), -float("inf"), "", "x", "none",
    "\0", "~nobody/x", "a/b.json", "é" * 500, "a,b", (), ("x",), (1, 2), ({"source": "stdlib"},), [], ["data"], {},
    {"x": 1}, ConfigDict({"y": 2}), b"bytes", 1 + 2j, object, print,
]  # fmt: skip
SECONDS = 1.0  # for a refusal
LARGEST = 1 << 22  # Parameters, or tokens a step, above which an accepted config is built and not trained.


def set_key(tree: dict, key: str, value) -> None:
    *groups, leaf = key.split(".")
    for group in groups:
        tree = tree[group]
    tree[leaf] = value


def drop_key(tree: dict, key: str) -> None:
    *groups, leaf = key.split(".")
    for group in groups:
        tree = tree[group]
    tree.pop(leaf)


def mutated(seed: int | str, start: dict) -> tuple[ConfigDict, list[str]]:
    """A config that differs from `start`, which is changed, in one to three places, and the keys that say where."""
    held, touched, tree = keys.flatten(start), [], start
    read = [key.split(".") for key in held.keys() - knobs.unread(held)]
    read = {".".join(key[:end]) for key in read for end in range(1, len(key) + 1)}  # with the groups that hold them

    def draw(key: str) -> float:
        """In [0, 1), by the name of the key alone; only one in ten of the keys that nothing reads lies below 1."""
        chance = random.Random(f"{seed} {key}").random()
        return chance if key in read else 10 * chance

    groups = {key.rsplit(".", 1)[0] for key in held if "." in key}
    for key in sorted({*held, *groups}, key=draw)[: random.Random(f"{seed}").choice((1, 1, 1, 2, 3))]:
        if any(key.startswith(f"{t}.") or t.startswith(f"{key}.") for t in touched):
            continue
        rng = random.Random(f"{seed} {key} how")
        kind = rng.choice(["drop", "misspell", "odd", "odd", "range", "range", *["near"] * 8])
        if kind == "drop":
            drop_key(tree, key)
        elif kind == "misspell":
            drop_key(tree, key)
            at = rng.randrange(len(key.rsplit(".", 1)[-1]))
            leaf = key.rsplit(".", 1)[-1]
            set_key(tree, ".".join([*key.split(".")[:-1], f"{leaf[:at]}q{leaf[at:]}"]), held.get(key, 1))
        elif kind == "range" and isinstance(held.get(key), int | float) and not isinstance(held[key], bool):
            factor = rng.choice([-1, 0, 1e-9, 3, 1000, 1e9, 1e20])
            set_key(tree, key, type(held[key])((held[key] or 1) * factor))
        elif kind == "near" and isinstance(held.get(key), bool | int | float):
            was = held[key]
            set_key(tree, key, not was if isinstance(was, bool) else was * 2 if was > 0 else was)
        else:
            set_key(tree, key, rng.choice(ODD))
        touched.append(key)
    return ConfigDict(tree, convert_dict=True), touched


def assert_readable(problems: list[str], touched: list[str]) -> None:
    """Each of `problems` is one sentence that names a key of the config, and one of them a key that was touched."""
    keys = {*DEFAULTS, *touched} | {key.rsplit(".", 1)[0] for key in DEFAULTS}
    assert problems
    for problem in problems:
        assert "\n" not in problem and "\0" not in problem and 20 < len(problem) < 400, problem
        assert problem.endswith((".", "?")) and any(key in problem for key in keys), problem
    named = [key if not key.startswith("mesh.") else "mesh" for key in touched]
    assert any(key in problem for key in named for problem in problems), (touched, problems)


@dataclasses.dataclass
class Found:
    """What became of the mutations: how many `refused` by the preflight, `late` (after it), `built`, `stepped`; the
    `slowest` refusal in seconds; `faults` as text."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    slowest: float = 0.0
    faults: list[str] = dataclasses.field(default_factory=list)


def fuzz(starts: dict[str, dict], numbers: range, steps: int, *, seed: int = 0) -> Found:
    """The mutations of `starts` (configs as plain dicts, by name, taken in turn) that have these numbers."""
    import copy

    found, names = Found(), sorted(starts)
    for done, k in enumerate(numbers, 1):
        name = names[k % len(names)]
        config, touched = mutated(1_000_003 * seed + k, copy.deepcopy(starts[name]))
        try:
            found.counts[_one(config, touched, found, train=found.counts["stepped"] < steps)] += 1
        except Exception:
            found.faults.append(f"{name}, mutation {k} of {touched}:\n{traceback.format_exc(limit=-6)}")
        if done % 1000 == 0:
            print(f"{done} of {len(numbers)} mutations, {len(found.faults)} faults", file=sys.stderr, flush=True)
    return found


def _one(config: ConfigDict, touched: list[str], found: Found, *, train: bool) -> str:
    """What became of one config; anything that is neither a sentence nor a program raises."""
    import jax

    from experiments.preflight import corpus as preflight_corpus
    from experiments.program import build, counting, global_batch, inputs, sharding

    begun = time.process_time()
    try:
        preflight.check(config, num_devices=1)
        preflight.check_platform(config, "cpu")
    except ConfigError as error:
        found.slowest = max(found.slowest, time.process_time() - begun)
        assert time.process_time() - begun < SECONDS, f"refused after {time.process_time() - begun:.1f} s"
        assert_readable(error.problems, touched)
        return "refused"
    try:
        if config.model.num_layers > 64:  # Only their shapes would take long.
            return "too large"
        config = config.lock()
        program = build(config, vocab_size=259, mesh=sharding.make_mesh(config, jax.devices()[:1]))
        preflight_corpus.check_memory(program)
        tokens = config.data.batch_size * config.data.length
        if not train or max(counting.parameters(program)["total"], tokens) > LARGEST:
            return "built"
        corpus = inputs.load(config)
        preflight_corpus.check_corpus(config, corpus)
        program = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=program.mesh)
        batch = inputs.prepare(config, corpus, inputs.train_loader(config, corpus).batch(0))
        _, metrics = program.train_step()(program.init(), global_batch(batch, program))
        jax.block_until_ready(metrics)
        return "stepped"
    except (ConfigError, ValueError, OSError) as error:
        if not sentence(error):
            raise
        return "refused late"


def main() -> None:
    """Prints what was found; exit code 1 with the faults, if there are any."""
    from tests.configs_test import house, make

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=60, help="how many of those that are accepted train a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="I/N: every Nth mutation, from the Ith on")
    chosen = parser.parse_args()
    first, parts = map(int, chosen.part.split("/"))
    numbers = range(first, chosen.count, parts)
    starts = {case.id: smoke.shrink(make(*case.values)).to_dict() for case in house()}
    begun = time.monotonic()
    found = fuzz(starts, numbers, chosen.steps, seed=chosen.seed)
    counts = ", ".join(f"{number} {what}" for what, number in sorted(found.counts.items()))
    print(f"{len(numbers)} mutations of {len(starts)} configs in {time.monotonic() - begun:.0f} s: {counts}; "
          f"slowest refusal {found.slowest:.3f} s; {len(found.faults)} faults")  # fmt: skip
    print("\n".join(found.faults[:20]))
    sys.exit(bool(found.faults))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
