"""A trained pair with drafts beside plain decoding: how much faster, what rounds cost, what the clocks say.

    python -m experiments.bench.speculation --workdir=runs/big --draft=runs/small

Greedy texts behind held-out prompts, one row at a time, the ways of writing in turn; the prompt is read before the time
begins. `overhead` is what a round takes beyond its passes of the models, in steps of the target (`rounds.costs`). Where
transformers and torch are installed its assisted generation writes the same texts from the exported pair.

Costs of passes are fitted as the simulator of serving fits its steps (`costs.fit`); each schedule's clock then says
from them, and from which drafts stayed, what its speed-up should be: `model_draft` is the serial one, `model_tree` that
of Dovetail (the target's pass grows with the nodes), `pearl` and `llmcad` are `generation.overlapped` with the draft in
a process of its own: by CPU the longer half of each step counts, as on two devices. `chosen` is the serial draft with
the length that `generation.draft_length` finds behind the first prompt.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.bench import rounds
from experiments.generation import draft_length, drafted, held_out, overlapped, requests
from experiments.generation.decoder import Decoder, key_data
from experiments.generation.serving import clock, costs
from experiments.generation.serving.clock import StepCosts
from experiments.program import inputs
from experiments.workdir import disk, trained
from models.decoding import stream

# transformers by itself and with the draft, where it is installed, and what of ours does the same.
PEERS = {"transformers": "plain", "assisted": "model_draft"}
NODES = (1, 2, 3, 5, 9, 17)  # tokens of the passes that costs are fitted to
LENGTH = 4  # drafts of a round of the schedules that are compared
DRAFTERS: Mapping[str, Mapping[str, Any]] = {
    "model_draft": {"length": LENGTH},
    "model_tree": {"builder": "dyspec", "size": 8, "levels": 4, "width": 2, "beam": 2},
    "lookup": {"length": 4},
    "recycling": {"template": "2x1x1x1"},
    "trie": {"size": 6, "branch": 4, "shared": False},  # Else it would have the text of the round before.
    "exit": {"layers": 1, "length": 3},
    "random": {"length": LENGTH},
}


class Writer:
    """Greedy texts of one way of writing, behind prompts that are read before."""

    def __init__(self, model: Any, prompts: Sequence[str], tokens: int, **changes: Any):
        options = model.config.generate.to_dict() | {"temperature": 0.0} | changes
        self.decoder, self.tokens = Decoder(model.program, model.tokenizer), tokens
        self.prompts = [requests.encode(model.tokenizer, prompt) for prompt in prompts]
        options = draft_length.settled(self.decoder, model.params, options, self.prompts[:1])
        self.parts = dataclasses.replace(self.decoder.parts([options]), eos=-1)  # All texts are as long.
        self.weights = self.decoder.weights(model.params, self.parts)
        self.keys = [key_data([prompt], 0) for prompt in prompts]
        self.width = -(-(max(map(len, self.prompts)) + tokens + max(NODES)) // 64) * 64
        self.texts: list[list[int]] = []
        self.calls = 0
        self.wrote: list[np.ndarray] = []  # of each text, as of `Progress`

    def begun(self, i: int) -> stream.Progress:
        """The row of prompt i, read."""
        ids = self.prompts[i]
        text, length = requests.padded([ids], self.width - len(ids), 0)
        size = requests.first_pass(np.array([len(ids) for ids in self.prompts]))
        given = (self.weights, text, length, length + self.tokens, self.keys[i], {})
        return jax.block_until_ready(self.decoder.start(*given, parts=self.parts, size=size, capacity=self.width))

    def __call__(self) -> tuple[float, float]:
        """(CPU, wall) seconds of all texts."""
        self.texts, self.wrote, self.calls, cpu, wall = [], [], 0, 0.0, 0.0
        for i, ids in enumerate(self.prompts):
            p = self.begun(i)
            begun = time.process_time(), time.perf_counter()
            ends = np.int32(2)
            p = jax.block_until_ready(
                self.decoder.extend(self.weights, p, np.int32(self.tokens), ends, parts=self.parts)
            )
            cpu, wall = cpu + time.process_time() - begun[0], wall + time.perf_counter() - begun[1]
            self.texts.append(np.asarray(p.text)[0, len(ids) : int(p.length[0])].tolist())
            self.calls += int(p.calls[0])
            self.wrote.append(np.asarray(p.wrote)[0])
        return cpu, wall


class Overlapping:
    """Greedy texts of a schedule of `overlapped`: the draft writes in a process of its own."""

    def __init__(self, bench: "Bench", schedule: str, stack: contextlib.ExitStack):
        self.prompts, self.tokens, self.schedule = bench.prompts, bench.tokens, schedule
        settings, self.written = {"temperature": 0.0}, []
        handed = overlapped.pending_most(schedule, LENGTH)
        self.target = overlapped.Row(bench.model, settings, 0, handed=handed, ends=False)
        runs = bench.rounds + 2  # One before, which compiles, and one behind, for what a step costs.
        asked = [(prompt, bench.tokens, LENGTH) for _ in range(runs) for prompt in bench.prompts]
        self.channel = stack.enter_context(overlapped.far(str(bench.draft.workdir), settings, 0, asked))

    def __call__(self) -> tuple[float, float]:
        """(CPU seconds on two devices, wall seconds on this machine)."""
        self.written = [
            overlapped.write(self.target, self.channel, prompt, self.tokens, self.schedule) for prompt in self.prompts
        ]
        return sum(made.seconds for made in self.written), sum(made.wall for made in self.written)

    @property
    def texts(self) -> list[list[int]]:
        """Ids of each."""
        return [list(made.tokens) for made in self.written]

    @property
    def calls(self) -> int:
        """Passes of the target."""
        return sum(len(made.steps) for made in self.written)


def in_turn(ways: Mapping[str, Callable[[], tuple[float, float]]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(CPU, wall) seconds of each way in each round; one round before, which compiles."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in list(ways) if turn % 2 else list(ways)[::-1]:
            made = ways[name]()
            if turn:
                found[name].append(made)
    return found


def speed(plain: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]], of: int = 0) -> float:
    """How many times as fast as `plain`: the median over rounds; of: 0: CPU, 1: wall."""
    return statistics.median(a[of] / b[of] if b[of] else 0.0 for a, b in zip(plain, other, strict=True))


def pass_costs(writer: Writer, turns: int, passes_each: int = 24) -> tuple[costs.Fitted, dict[int, float]]:
    """(target, node, more) of passes over `NODES` tokens with the error on held-out ones, and the median of each
    size."""
    run = rounds.passes(writer.decoder)
    measured: dict[int, list[float]] = {n: [] for n in NODES}
    for turn in range(turns + 1):
        for n in NODES if turn % 2 else NODES[::-1]:
            seconds = rounds.alone(run, writer, 0, (), passes_each, nodes=n)
            if turn:
                measured[n].append(seconds / passes_each)
    sizes = [n for turn in range(turns) for n in NODES]
    seconds = [measured[n][turn] for turn in range(turns) for n in NODES]
    fitted = costs.fit(sizes, seconds, lambda n: np.array([1.0, n - 1.0, n > 1]))
    return fitted, {n: statistics.median(each) for n, each in measured.items()}


def compared(way: Any) -> bool:
    """Whether a round's passes are told apart from the rest of it: drafts of `exit` are passes of a part of a model."""
    return isinstance(way, Writer) and way.parts.drafter[0] != "exit"


def at(medians: Mapping[int, float], n: float) -> float:
    """Seconds of a pass over n tokens, between measured sizes linear."""
    return float(np.interp(n, list(medians), list(medians.values())))


@dataclasses.dataclass(frozen=True)
class Bench:
    """A pair that was trained on the same text, prompts that neither has seen, and how much of them is written."""

    model: Any
    draft: Any
    prompts: Sequence[str]
    tokens: int
    rounds: int

    @classmethod
    def load(cls, workdir: str, draft: str, prompts: int, tokens: int, rounds: int) -> "Bench":
        """Prompts are the first halves of held-out rows."""
        model = trained.load(pathlib.Path(workdir))
        overlapped.check_pair(model, draft)
        texts = held_out.prompts(model, inputs.eval_batches(model.config, model.corpus, (0, 1)))
        return cls(model, trained.load(pathlib.Path(draft)), texts[:prompts], tokens, rounds)

    def writer(self, name: str, options: Mapping[str, Any]) -> Writer:
        """One drafter."""
        runs = {"workdir": str(self.draft.workdir)} if name in ("model_draft", "model_tree") else {}
        defaults = self.model.config.generate.to_dict().get(name) or {}
        changes = {name: defaults | dict(options) | runs} if name != "none" else {}
        return Writer(self.model, self.prompts, self.tokens, drafter=name, **changes)

    def ways(self, stack: contextlib.ExitStack, names: Sequence[str] = ()) -> dict[str, Any]:
        """The ways of writing of these names, plain decoding among them; () = all. Processes end with `stack`.

        Errors: ValueError for a name of none.
        """
        known = {name: functools.partial(self.writer, name, options) for name, options in DRAFTERS.items()}
        known["chosen"] = functools.partial(self.writer, "model_draft", {"length": 0})
        known |= {name: functools.partial(Overlapping, self, name, stack) for name in overlapped.SCHEDULES}
        if wrong := [name for name in names if name not in (*known, "plain", *PEERS)]:
            raise ValueError(f"{wrong[0]!r} is no way of writing; use of {', '.join((*known, *PEERS))}.")
        made: dict[str, Any] = {"plain": self.writer("none", {})}
        made |= {name: make() for name, make in known.items() if not names or name in names}
        return made | (self.peers(made["plain"].prompts) if not names or set(names) & set(PEERS) else {})

    def peers(self, ids: Sequence[np.ndarray]) -> dict[str, Any]:
        """transformers, where it is installed."""
        try:
            from experiments.bench import assisted
        except ImportError as missing:
            print(f"note: {missing.name} is not installed, so that transformers' assisted generation is not compared.")
            return {}
        plain, target, draft = (assisted.theirs(each) for each in (self.model, self.model, self.draft))
        return {
            "transformers": assisted.Assisted(plain, None, ids, self.tokens, LENGTH),
            "assisted": assisted.Assisted(target, draft, ids, self.tokens, LENGTH),
        }


def clocks(
    ways: Mapping[str, Any], target: Sequence[float], medians: Mapping, pairs: Mapping[str, float]
) -> dict[str, float]:
    """Seconds that each schedule's clock gives for the rounds that there were, from costs that were measured apart.

    target: fitted (a pass, each further token of it, more than one of them); medians: of its passes, by tokens; pairs:
    of ways with a draft model the passes of a round, which say what the draft's part takes between those of the target.
    """
    drafters = {name: ways[name].parts.drafter[1] for name in pairs}
    drafts = {name: pairs[name] - at(medians, each.nodes) for name, each in drafters.items()}
    made = {}
    for name, each in drafters.items():
        steps = each.levels if name == "model_tree" else each.length
        own = StepCosts(drafts[name] / steps, *target)
        made[name] = ways[name].calls * (drafts[name] + own.verify(each.nodes))
        if name != "model_tree":
            made[name] = clock.serial_time([steps] * ways[name].calls, own)
    timed = {
        "pearl": lambda steps, own: clock.pearl_time([step.clock for step in steps], LENGTH, own),
        "llmcad": lambda steps, own: clock.llmcad_time([LENGTH] * len(steps), [not s.rejected for s in steps], own),
    }
    for name, seconds in timed.items():
        if name in ways:
            texts = [text.steps for text in ways[name].written]
            own = halves(ways[name])
            made[name] = sum(seconds(steps, own) for steps in texts)
    return made


def halves(way: Overlapping) -> StepCosts:
    """Costs of a step of `overlapped` in one more run: medians of its halves; all its passes read as many tokens."""
    way()
    steps = [step for made in way.written for step in made.steps]
    draft = statistics.median(step.draft for step in steps) / LENGTH
    return StepCosts(draft, statistics.median(step.target for step in steps))


def run(bench: Bench, ways: Mapping[str, Any]) -> dict:
    """Measures and prints; see the module. ways: of `bench`."""
    found = in_turn(ways, bench.rounds)
    fitted, target = pass_costs(ways["plain"], bench.rounds)
    small = Writer(bench.draft, bench.prompts, bench.tokens)
    _, draft = pass_costs(small, bench.rounds)
    beyond = rounds.costs({name: way for name, way in ways.items() if compared(way)}, small, bench.rounds)
    pairs = {name: cost.passes for name, cost in beyond.items() if rounds.reads(*ways[name].parts.drafter)}
    says = ", ".join(f"{n}: {1e3 * seconds:.2f}" for n, seconds in target.items())
    print(f"CPU ms of a pass of the target by tokens {says}; error on held-out passes {fitted.error:.1%}")
    print(f"of the draft {', '.join(f'{n}: {1e3 * seconds:.2f}' for n, seconds in draft.items())}")
    print(f"of a round's passes of both {', '.join(f'{n}: {1e3 * seconds:.2f}' for n, seconds in pairs.items())}")
    table: dict[str, dict] = {}
    for name, way in ways.items():
        plain = "transformers" if name == "assisted" else "plain"
        same = sum(a == b for a, b in zip(way.texts, ways["plain"].texts, strict=True))
        row = {"cpu": speed(found[plain], found[name]), "wall": speed(found[plain], found[name], 1)}
        row |= {"per_call": bench.tokens * len(bench.prompts) / way.calls, "same": same}
        row |= {"overhead": beyond[name].beyond} if name in beyond else {}
        if isinstance(way, Writer):
            row["stays"] = drafted.acceptance(np.stack(way.wrote)).tolist()
        table[name] = row
        more = f"; overhead {row['overhead']:+.1%} of a step" if "overhead" in row else ""
        if (ours := PEERS.get(name)) in found:
            row["ours"] = speed(found[name], found[ours]), speed(found[name], found[ours], 1)
            more = f"; {ours} is {row['ours'][0]:.2f} times as fast by CPU, {row['ours'][1]:.2f} by wall"
        print(
            f"{name:12} {row['cpu']:.2f} times by CPU, {row['wall']:.2f} by wall; {row['per_call']:.2f} tokens a call; "
            f"{same} of {len(bench.prompts)} texts those of plain decoding{more}"
        )
        if row.get("stays"):
            print(f"{'':12} drafts that stay by depth {' '.join(f'{share:.2f}' for share in row['stays'])}")
    alone = statistics.median(cpu for cpu, _ in found["plain"])
    for name, seconds in clocks(ways, fitted.cost.costs, target, pairs).items():
        says, was = alone / seconds, table[name]["cpu"]
        table[name]["clock"] = says
        print(f"clock of {name:12} {says:.2f} times, measured {was:.2f}: {says / was - 1:+.1%}")
    return {"ways": table, "target": target, "draft": draft, "error": fitted.error}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", default="", help="names of ways of writing beside plain decoding; all by default")
    parser.add_argument("--json", default="", help="a file for the figures")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        bench = Bench.load(given.workdir, given.draft, given.prompts, given.tokens, given.rounds)
        found = run(bench, bench.ways(stack, [name for name in given.ways.split(",") if name]))
    if given.json:
        disk.write_file(given.json, json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    main()
