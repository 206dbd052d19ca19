"""A trained pair with drafts beside plain decoding: how much faster, what rounds cost, what the clocks say.

    python -m experiments.bench.speculation --workdir=runs/big --draft=runs/small

Greedy texts behind held-out prompts, one row at a time, the ways of writing in turn; the prompt is read before the time
begins. `overhead` is what a round takes beyond passes of the models over as many tokens (of both models in turn, where
there are two), in steps of the target. Where
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
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.bench.drafts import pair_passes, passes
from experiments.generation import draft_length, drafted, held_out, overlapped, requests
from experiments.generation.decoder import Decoder, key_data
from experiments.generation.serving import clock, costs
from experiments.generation.serving.clock import StepCosts
from experiments.program import inputs
from experiments.workdir import disk, trained
from models.decoding import stream

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
        text = np.zeros((1, self.width), np.int32)
        text[0, : len(ids)] = ids
        length = np.asarray([len(ids)], np.int32)
        size = -(-(max(map(len, self.prompts)) - 1) // 16) * 16
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


def pass_costs(writer: Writer, rounds: int, passes_each: int = 24) -> tuple[costs.Fitted, dict[int, float]]:
    """(target, node, more) of passes over `NODES` tokens with the error on held-out ones, and the median of each
    size."""
    run, p = passes(writer.decoder), writer.begun(0)
    measured: dict[int, list[float]] = {n: [] for n in NODES}
    for turn in range(rounds + 1):
        for n in NODES if turn % 2 else NODES[::-1]:
            begun = time.process_time()
            jax.block_until_ready(run(writer.weights, p, passes_each, nodes=n))
            if turn:
                measured[n].append((time.process_time() - begun) / passes_each)
    sizes = [n for turn in range(rounds) for n in NODES]
    seconds = [measured[n][turn] for turn in range(rounds) for n in NODES]
    fitted = costs.fit(sizes, seconds, lambda n: np.array([1.0, n - 1.0, n > 1]))
    return fitted, {n: statistics.median(each) for n, each in measured.items()}


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

    def ways(self, stack: contextlib.ExitStack) -> dict[str, Any]:
        """Every way of writing; processes end with `stack`."""
        made: dict[str, Any] = {"plain": self.writer("none", {})}
        made |= {name: self.writer(name, options) for name, options in DRAFTERS.items()}
        made["chosen"] = self.writer("model_draft", {"length": 0})
        for schedule in overlapped.SCHEDULES:
            made[schedule] = Overlapping(self, schedule, stack)
        return made | self.peers(made["plain"].prompts)

    def peers(self, ids: Sequence[np.ndarray]) -> dict[str, Any]:
        """transformers, where it is installed."""
        try:
            from experiments.bench import assisted
        except ImportError:
            return {}
        plain, target, draft = (assisted.theirs(each) for each in (self.model, self.model, self.draft))
        return {
            "transformers": assisted.Assisted(plain, None, ids, self.tokens, LENGTH),
            "assisted": assisted.Assisted(target, draft, ids, self.tokens, LENGTH),
        }


def reads(name: str, drafter: Any) -> tuple[int, ...]:
    """Tokens of each pass of the draft model in a round; () of a drafter without one.

    A draft model reads what it lacks of the text in one pass over two tokens, then one token a pass; a tree of it
    begins with what the last round wrote, `depth` tokens, then all nodes so far a pass.
    """
    if name == "model_tree":
        return (drafter.depth, *(drafter.beam * i for i in range(1, drafter.levels)))
    if name == "model_draft" or (name == "chosen" and drafter.nodes > 1):
        return (2, *[1] * (drafter.length - 1))
    return ()


def round_costs(ways: Mapping[str, Any], draft: Writer, rounds: int, passes_each: int = 24) -> dict[str, float]:
    """Of each way with a draft model: median seconds of a round's passes of both models, in turn."""
    own = {name: way for name, way in ways.items() if isinstance(way, Writer) and reads(name, way.parts.drafter[1])}
    found: dict[str, list[float]] = {name: [] for name in own}
    run, state = {name: pair_passes(way.decoder, draft.decoder) for name, way in own.items()}, draft.begun(0)
    begun = {name: way.begun(0) for name, way in own.items()}
    for turn in range(rounds + 1):
        for name in list(own) if turn % 2 else list(own)[::-1]:
            way, drafter = own[name], own[name].parts.drafter[1]
            given = (way.weights, begun[name], draft.weights, state, passes_each)
            began = time.process_time()
            jax.block_until_ready(run[name](*given, nodes=drafter.nodes, reads=reads(name, drafter)))
            if turn:
                found[name].append((time.process_time() - began) / passes_each)
    return {name: statistics.median(each) for name, each in found.items()}


def overheads(
    ways: Mapping[str, Any], found: Mapping[str, Sequence], target: Mapping, pairs: Mapping[str, float]
) -> dict[str, float]:
    """Of each drafter: what a round takes beyond passes of the models, over a step of the target.

    target: medians of `pass_costs`; pairs: `round_costs` of those that read a draft model.
    """
    made = {}
    for name, way in ways.items():
        if not isinstance(way, Writer) or name == "exit":  # Its drafts are passes of a part of the model.
            continue
        spent = statistics.median(cpu for cpu, _ in found[name]) / way.calls
        forward = pairs[name] if name in pairs else at(target, way.parts.drafter[1].nodes)
        made[name] = (spent - forward) / at(target, 1)
    return made


def clocks(
    ways: Mapping[str, Any], target: Sequence[float], medians: Mapping, pairs: Mapping[str, float]
) -> dict[str, float]:
    """Seconds that each schedule's clock gives for the rounds that there were, from costs that were measured apart.

    target: fitted (a pass, each further token of it, more than one of them); medians: of its passes, by tokens; pairs:
    `round_costs`, which say what the draft's part of a round takes between passes of the target.
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
    pearl, llmcad = ways["pearl"].written, ways["llmcad"].written
    of_pearl, of_llmcad = halves(ways["pearl"]), halves(ways["llmcad"])
    return made | {
        "pearl": sum(clock.pearl_time([step.clock for step in made.steps], LENGTH, of_pearl) for made in pearl),
        "llmcad": sum(
            clock.llmcad_time([LENGTH] * len(made.steps), [not step.rejected for step in made.steps], of_llmcad)
            for made in llmcad
        ),
    }


def halves(way: Overlapping) -> StepCosts:
    """Costs of a step of `overlapped` in one more run: medians of its halves; all its passes read as many tokens."""
    way()
    steps = [step for made in way.written for step in made.steps]
    draft = statistics.median(step.draft for step in steps) / LENGTH
    return StepCosts(draft, statistics.median(step.target for step in steps))


def run(bench: Bench, stack: contextlib.ExitStack) -> dict:
    """Measures and prints; see the module."""
    ways = bench.ways(stack)
    found = in_turn(ways, bench.rounds)
    fitted, target = pass_costs(ways["random"], bench.rounds)
    small = Writer(bench.draft, bench.prompts, bench.tokens)
    _, draft = pass_costs(small, bench.rounds)
    pairs = round_costs(ways, small, bench.rounds)
    says = ", ".join(f"{n}: {1e3 * seconds:.2f}" for n, seconds in target.items())
    print(f"CPU ms of a pass of the target by tokens {says}; error on held-out passes {fitted.error:.1%}")
    print(f"of the draft {', '.join(f'{n}: {1e3 * seconds:.2f}' for n, seconds in draft.items())}")
    print(f"of a round's passes of both {', '.join(f'{n}: {1e3 * seconds:.2f}' for n, seconds in pairs.items())}")
    beyond = overheads(ways, found, target, pairs)
    table: dict[str, dict] = {}
    for name, way in ways.items():
        plain = "transformers" if name == "assisted" else "plain"
        same = sum(a == b for a, b in zip(way.texts, ways["plain"].texts, strict=True))
        row = {"cpu": speed(found[plain], found[name]), "wall": speed(found[plain], found[name], 1)}
        row |= {"per_call": bench.tokens * len(bench.prompts) / way.calls, "same": same}
        row |= {"overhead": beyond[name]} if name in beyond else {}
        if isinstance(way, Writer):
            row["stays"] = drafted.acceptance(np.stack(way.wrote)).tolist()
        table[name] = row
        more = f"; overhead {row['overhead']:+.1%} of a step" if "overhead" in row else ""
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
    parser.add_argument("--json", default="", help="a file for the figures")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        found = run(Bench.load(given.workdir, given.draft, given.prompts, given.tokens, given.rounds), stack)
    if given.json:
        disk.write_file(given.json, json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    main()
