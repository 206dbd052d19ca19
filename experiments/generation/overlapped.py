"""A draft that writes on while the target reads: two processes, or two halves of one, and the text of the target alone.

    python -m experiments.generation.overlapped --workdir=runs/big --draft=runs/small --prompt="def main(" --tokens=64

Schedules (`SCHEDULES`): `pearl` reads at once behind a rejection, beside the first drafts, of which the first is then
checked (Liu et al. 2024, arXiv:2408.11850); `llmcad` waits for the drafts there, and writes the next ones while the
target reads (Xu et al. 2023, arXiv:2309.04255). In both, drafts that were written meanwhile are kept where all before
them stay and the first of them is what the target writes next. What stays is the verifier's business: with `same_draw`,
and at temperature 0, the text is that of `--mode=generate`.

Each end says what its part of a step took in CPU seconds of its process: on devices of their own a step takes the
longer of the two (`seconds`), however busy this machine is.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from experiments.generation import beside, drafting, requests
from experiments.generation.between import given, started
from experiments.generation.decoder import Decoder, key_data
from experiments.generation.serving.clock import PearlStep
from experiments.preflight import segments
from experiments.settings.errors import ConfigError
from experiments.workdir import trained
from models.decoding import parts as sockets
from models.decoding.drafts import Drafter, Tree
from models.decoding.drafts.none import last_token
from models.decoding.stream import Progress

SCHEDULES = ("pearl", "llmcad")
GO, END = "go", "end"  # What the target tells the draft; or, behind a rejection, the text's ids.


@dataclasses.dataclass(frozen=True)
class Handed(Drafter):
    """Drafts that come from outside: its side holds up to `length` ids of each row and how many they are."""

    length: int

    @property
    def nodes(self) -> int:
        """The last token and the drafts."""
        return self.length + 1

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Drafter.init`."""
        return {"token": jnp.zeros((batch, self.length), jnp.int32), "count": jnp.zeros((batch,), jnp.int32)}

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`."""
        side = p.side["handed"]
        token = jnp.concatenate([last_token(p.text, p.length), side["token"]], axis=1)
        return Tree.chain(token, jnp.arange(self.nodes) <= side["count"][:, None]), side


class Told(NamedTuple):
    """The next drafts, and what they took: CPU seconds of the draft's process."""

    tokens: tuple[int, ...]
    seconds: float


class Channel(Protocol):
    """The target's end of what leads to the draft."""

    def send(self, what: Any) -> None:
        """GO, END, or the ids `[n]` of the text behind which it is to write on."""
        ...

    def recv(self) -> Told:
        """What it wrote since."""
        ...


class Row:
    """One request of a model: greedy or drawn, with the key of `--mode=generate`, and the settings of its parts."""

    def __init__(self, model: Any, settings: Mapping[str, Any], seed: int, handed: int = 0, ends: bool = True):
        options = model.config.generate.to_dict() | dict(settings)
        self.tokenizer, self.options, self.seed = model.tokenizer, options | {"drafter": "none"}, seed
        self.decoder = Decoder(model.program, model.tokenizer)
        parts = self.decoder.parts([self.options])
        changes = {"drafter": ("handed", Handed(handed))} if handed else {}
        self.parts = dataclasses.replace(parts, **changes, **({} if ends else {"eos": -1}))
        if problems := [*self._problems(model.program)]:
            raise ConfigError(problems)
        self.weights = self.decoder.weights(model.params, self.parts)
        own = self.decoder  # Not given away, as theirs are: a state that is gone back to is read twice.
        self.read = model.program.jit(own._read, static_argnames=("parts", "size", "fresh"))
        self.extend = model.program.jit(own._extend, static_argnames=("parts",))

    def _problems(self, program: Any) -> Iterator[str]:
        """Sentences about a model that cannot read drafts so."""
        name, memory = self.parts.drafter[0], self.parts.memory.name
        yield from segments.decoding_problems(program.spec.kind, name, memory, "dense")
        yield from drafting.problems(self.parts, self.options, program, rewinds=lambda: True)

    def begun(self, prompt: str, limit: int, room: int) -> Progress:
        """The row with its prompt read; it ends at `limit` tokens behind the prompt and has room for `room`.

        Over several devices it is there once for each of them.
        """
        ids = requests.encode(self.tokenizer, prompt)
        rows = self.decoder.devices
        text, length = requests.padded([ids] * rows, room, self.tokenizer.pad)
        size, width = requests.first_pass(length), text.shape[1]
        dials = sockets.dials([self.options] * rows, self.parts)
        given_to = (text, length, length + limit, np.repeat(key_data([prompt], self.seed), rows, axis=0), dials)
        p = self.decoder.start(self.weights, *given_to, parts=self.parts, size=size, capacity=width)
        sides = self.decoder.sides(self.weights, self.parts, width)
        return started(p, given(self.parts, self.options, self.tokenizer, sides))


class Ahead:
    """The draft's end: writes `length` tokens at a time behind a text that may be cut.

    It keeps its state from before the last two times: a rejection goes back no further.
    """

    def __init__(self, row: Row, prompt: str, tokens: int, length: int):
        self.row, self.length = row, length
        room = tokens + 2 * length + 2  # It may be two times ahead of a text that is at its end.
        self.p = row.begun(prompt, room, room)
        self.held = int(self.p.length[0]) - 1
        self.kept = [(self.held, self.p)]

    def write(self, text: np.ndarray | None = None) -> tuple[int, ...]:
        """The next `length` tokens: behind what it wrote last, or behind the text `[n]`."""
        if text is None:
            self.kept = [self.kept[-1], (self.held, self.p)]
        else:
            self._back(text)
        given_to = (self.row.weights, self.p, jnp.int32(self.length), jnp.int32(2**31 - 1))
        self.p = self.row.extend(*given_to, parts=self.row.parts)
        start, self.held = self.held + 1, self.held + self.length
        return tuple(np.asarray(self.p.text)[0, start : start + self.length].tolist())

    def _back(self, text: np.ndarray) -> None:
        """The newest state that holds no token beyond the text's last but one, which has read up to that."""
        n = len(text)
        held, p = max((each for each in self.kept if each[0] < n), key=lambda each: each[0])
        buffer = np.array(p.text)
        buffer[:, :n] = text
        p = dataclasses.replace(p, text=jnp.asarray(buffer), length=jnp.full(len(buffer), n, jnp.int32))
        if held < n - 1:
            p = self.row.read(self.row.weights, p, parts=self.row.parts, size=self.length)
        self.p, self.held = p, n - 1
        self.kept = [(self.held, p)]


class Here:
    """A draft in this process: both halves take turns, and their steps are those of two processes."""

    def __init__(self, ahead: Ahead):
        self.ahead, self._told = ahead, []

    def send(self, what: Any) -> None:
        """See `Channel.send`."""
        if not (isinstance(what, str) and what == END):
            self._told.append(_answer(self.ahead, what))

    def recv(self) -> Told:
        """See `Channel.recv`."""
        return self._told.pop(0)


def _answer(ahead: Ahead, what: Any) -> Told:
    begun = time.process_time()
    tokens = ahead.write(None if isinstance(what, str) else what)
    return Told(tokens, time.process_time() - begun)


class Step(NamedTuple):
    """A pass of the target: post: whether drafts were pending; before, after: tokens of the text, pending ones counted;
    accepted, rejected: as of `clock.PearlStep`; waited: CPU seconds of drafts that it waited for before; target, draft:
    CPU seconds of the two at the same time; wall: seconds of all of it."""

    post: bool
    before: int
    after: int
    accepted: int
    rejected: bool
    waited: float
    target: float
    draft: float
    wall: float

    @property
    def clock(self) -> PearlStep:
        """What the clocks know of it."""
        return PearlStep(self.post, self.before, self.after, self.accepted, self.rejected)


@dataclasses.dataclass(frozen=True)
class Written:
    """text: of the answer; tokens: its ids; steps: passes of the target."""

    text: str
    tokens: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def seconds(self) -> float:
        """On two devices: of each step the longer half, and what was waited for."""
        return sum(step.waited + max(step.target, step.draft) for step in self.steps)

    @property
    def wall(self) -> float:
        """On this machine."""
        return sum(step.wall for step in self.steps)


def pending_most(schedule: str, length: int) -> int:
    """Drafts that a pass of the target checks at most beside the last token: `pearl` length - 1, `llmcad` length.

    Errors: ConfigError.
    """
    if schedule not in SCHEDULES:
        raise ConfigError([f"schedule={schedule!r} is not known; use schedule='pearl' or schedule='llmcad'."])
    if length < 2:
        raise ConfigError([f"length={length}: drafts of a step must be at least 2, e.g. length=4."])
    return length if schedule == "llmcad" else length - 1


def write(target: Row, channel: Channel, prompt: str, tokens: int, schedule: str = "pearl") -> Written:
    """The text of `target` behind a prompt, with the drafts of the other end of `channel`.

    Args:
      target: made with `handed=pending_most(schedule, length)`.
      channel: to a draft that has read the same prompt and writes `length` tokens at a time.
      prompt: its text.
      tokens: to write, at most.
      schedule: one of `SCHEDULES`.
    """
    p = target.begun(prompt, tokens, tokens)
    first = int(p.length[0])
    text, length, pending, said, steps = np.array(p.text)[0], first, (), None, []
    while not bool(p.done[0]):
        begun, waited = time.perf_counter(), 0.0
        if said is None:
            said = text[:length]
            if schedule == "llmcad":
                channel.send(said)
                (pending, waited), said = channel.recv(), GO
        post, before = bool(pending), length + len(pending)
        channel.send(said)
        spent = time.process_time()
        p = _checked(target, p, pending)
        text, now = np.array(p.text)[0], int(p.length[0])
        spent, told = time.process_time() - spent, channel.recv()
        good = now - length - 1
        stays = good == len(pending) and int(text[now - 1]) == told.tokens[0]
        length, pending, said = now, told.tokens[1:] if stays else (), GO if stays else None
        wall = time.perf_counter() - begun
        made = (good + stays, not stays, waited, spent, told.seconds, wall)
        steps.append(Step(post, before, length + len(pending), *made))
    channel.send(END)
    reader = requests.RowText(target.tokenizer, tuple(target.options["stop"]))
    ids = text[first:length]
    return Written(reader.push(ids, last=True), tuple(ids.tolist()), tuple(steps))


def _checked(target: Row, p: Progress, pending: Sequence[int]) -> Progress:
    """One round of the target over its last token and the pending drafts."""
    token = np.zeros((len(p.text), target.parts.drafter[1].nodes - 1), np.int32)
    token[:, : len(pending)] = pending
    side = {"token": jnp.asarray(token), "count": jnp.full(len(token), len(pending), jnp.int32)}
    p = dataclasses.replace(p, side={**p.side, "handed": side})
    return target.decoder.extend(target.weights, p, jnp.int32(1), jnp.int32(2**31 - 1), parts=target.parts)


def writing_ahead(
    connection: Any, workdir: str, settings: Mapping[str, Any], seed: int, asked: Sequence[tuple]
) -> None:
    """The draft's process: for each (prompt, tokens, length) it writes as it is told; an error is sent in its place."""
    try:
        row = Row(trained.load(pathlib.Path(workdir)), settings, seed, ends=False)
        for prompt, tokens, length in asked:
            ahead = Ahead(row, prompt, tokens, length)
            while not (isinstance(what := connection.recv(), str) and what == END):
                connection.send(_answer(ahead, what))
    except Exception as error:  # Whatever it is, the other process waits for it.
        connection.send(f"{type(error).__name__}: {error}")
    finally:
        connection.close()


class _Far:
    """The channel to another process."""

    def __init__(self, connection: Any):
        self.connection, self.send = connection, connection.send

    def recv(self) -> Told:
        try:
            told = self.connection.recv()
        except EOFError:
            raise RuntimeError("the process that drafts has gone; look at what it printed.") from None
        if isinstance(told, str):
            raise RuntimeError(f"the process that drafts ended: {told}")
        return told


@contextlib.contextmanager
def far(workdir: str, settings: Mapping[str, Any], seed: int, asked: Sequence[tuple]) -> Iterator[Channel]:
    """A channel to a process that drafts with the run in `workdir`; arguments of `writing_ahead`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=writing_ahead, args=(there, workdir, settings, seed, asked), daemon=True)
    process.start()
    there.close()
    try:
        yield _Far(here)
    finally:
        here.close()
        process.join(10)
        process.terminate()


def check_pair(model: Any, draft: str) -> None:
    """Raises ConfigError or CheckpointError where the run in `draft` cannot draft for `model`, in a sentence."""
    beside.load(model.program, model.tokenizer, {"model_draft.workdir": draft})


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--draft", required=True, help="the workdir of a smaller run with the same tokenizer")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--length", type=int, default=4, help="drafts of a step")
    parser.add_argument("--schedule", default="pearl", choices=SCHEDULES)
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    model, settings = trained.load(pathlib.Path(args.workdir)), {"temperature": args.temperature}
    check_pair(model, args.draft)
    target = Row(model, settings, model.config.seed, handed=pending_most(args.schedule, args.length))
    asked = [(args.prompt, args.tokens, args.length)]
    with far(args.draft, settings, model.config.seed, asked) as channel:
        found = write(target, channel, args.prompt, args.tokens, args.schedule)
    print(f"{args.prompt}{found.text}\n[{len(found.tokens)} tokens in {len(found.steps)} steps, {found.wall:.2f} s]")


if __name__ == "__main__":
    main()
