"""Many requests over a fixed number of lanes: a row that ends makes room for the next request at once.

    engine = Engine(trained.load("runs/first"), lanes=8)
    engine.generate(["def main(", "import "], max_tokens=200)

Below that are four verbs. `admit` hands a request in, `step` does what a plan says (or what `Engine.plan` says, first
come first served), `free` takes a request back, `results` are those that have ended. The text of a request is the same
alone, in any lane, in any company, and however its prompt was cut: its randomness is its own
(`models.decoding.keys`), and rows do not meet.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import preflight
from experiments.generation import draft_length, drafting, requests
from experiments.generation.between import NO_TOKEN, NOT_FINITE, between, given, hosted, parsed, together
from experiments.generation.chatting import spoken_to
from experiments.generation.decoder import Decoder
from experiments.generation.lanes import Lanes
from experiments.generation.pool import Pool, Shape
from experiments.generation.prefixes import Prefixes, shared
from experiments.generation.prompts import Piece
from experiments.generation.request import Request, Result, changed
from experiments.generation.serving.plan import StepPlan
from experiments.settings.errors import ConfigError
from models.decoding import keys as key_scheme
from models.decoding import parts as sockets
from models.decoding.control import Host
from models.decoding.stream import Parts, Progress
from models.mixers.memory import MEMORIES

BESIDE = 64  # Tokens of a piece of a prompt, at most, that is read in one pass with a round: few programs are compiled.


class Engine(Lanes):
    """See the module's docstring.

    Args:
      trained: of `experiments.workdir.trained.load`.
      lanes: rows that are under way together; on many devices a multiple of their number.
      capacity: tokens of prompt and text together, at most; 0: the length that the model was trained on.
      pool: slots of all rows together, at least `capacity`; 0: lanes x capacity.
      chunk: tokens of a prompt that are read in one pass, at most.
      rounds: passes of the model between two looks from the host.
      **settings: of `config.generate`, other than the run's own, e.g. temperature=0.0 or drafter="lookup".

    Errors: ConfigError in one sentence for settings that cannot be.
    """

    def __init__(
        self,
        trained: Any,
        *,
        lanes: int = 8,
        capacity: int = 0,
        pool: int = 0,
        chunk: int = 512,
        rounds: int = 16,
        **settings: Any,
    ):
        self.settings = changed(trained.config.generate.to_dict(), settings)
        preflight.check_generation(self.settings, tables=True)
        if self.settings["edit_of"]:
            raise ConfigError(["generate.edit_of is of one --prompt with --mode=generate; use generate.edit_of=''."])
        self.tokenizer = spoken_to(trained.tokenizer, self.settings["chat"], trained.config.data.template)
        self.chunk, self.rounds = chunk, rounds
        self.decoder = Decoder(trained.program, self.tokenizer)
        if draft_length.asked(self.settings):  # There is no prompt yet: texts from their start.
            ids = [requests.encode(self.tokenizer, "")] * lanes
            self.settings = draft_length.settled(self.decoder, trained.params, self.settings, ids)
        self._parts = self.decoder.parts([self.settings], every=True)  # What a state is made for.
        reads = any(part.whole for _, part in self._parts.control)
        self._whole = reads or self._parts.prefill is not None or not MEMORIES[self._parts.memory.name].pieces
        self.unpackable = self.decoder.unpackable(self._parts)  # Why prompts share no row; "": they may.
        self.weights = self.decoder.weights(trained.params, self._parts)
        self._sides = self.decoder.sides(self.weights, self._parts, 1)
        capacity = capacity or trained.config.data.length
        for name, value, least in (("lanes", lanes, 1), ("chunk", chunk, 1), ("rounds", rounds, 1)):
            if value < least:
                raise ConfigError([f"{name}={value} must be at least {least}, e.g. {name}=8."])
        self.pool = Pool(lanes, capacity, pool or lanes * -(-capacity // 64) * 64, least=self.decoder.devices)
        if lanes % self.pool.least:
            raise ConfigError([f"lanes={lanes} must be a multiple of the {self.pool.least} devices that share them."])
        if self.pool.size < self.pool.smallest:
            raise ConfigError([f"pool={pool} holds no row of capacity={capacity}; use e.g. pool={self.pool.smallest}."])
        if problems := [*drafting.fits(self._parts, self.pool.capacity)]:
            raise ConfigError(problems)
        self.seed, self._next, self._seen = trained.config.seed, 0, {}
        self.waiting: deque[Request] = deque()  # not begun, or out of their lanes
        self.reading: dict[int, Request] = {}  # begun, the prompt not yet read or no lane free
        self.running: dict[int, Request] = {}  # in lanes, the oldest first
        self.prefixes = Prefixes(lanes)
        self.drawn = 0  # tokens, of all requests
        self._ended: list[Result] = []
        self._lanes: Progress | None = None
        self._shape: Shape | None = None
        self._unsaid: list[tuple[Request, np.ndarray, str]] = []  # tokens whose text is still to be made

    # The API of a notebook.

    def generate(self, prompts: Sequence[str], *, seed: int | None = None, **settings: Any) -> list[str]:
        """The continuation of each prompt; the same prompt and seed give the same text in any company.

        Errors: ConfigError for settings that cannot be and for a prompt that does not fit.
        """
        texts = dict.fromkeys(self.admit_all(prompts, seed=seed, **settings))
        for result in self.results():
            if result.id in texts:
                if result.failed:
                    raise RuntimeError(result.reason)
                texts[result.id] = result.text
        return list(texts.values())

    def admit_all(
        self, prompts: Sequence[str], *, seed: int | None = None, numbers: Sequence[int] | None = None, **settings: Any
    ) -> list[int]:
        """`admit` for many; beginnings that several of them share are read once. `numbers`: of all, as of `admit`."""
        options = self._options(settings)
        numbers = np.asarray(requests.rows(prompts)) if numbers is None else numbers
        made = [self._request(prompt, options, seed, int(n)) for prompt, n in zip(prompts, numbers, strict=True)]
        begins = [()] * len(made) if self._whole else shared([r.ids for r in made])
        for request, prefix in zip(made, begins, strict=True):
            request.prefix = prefix
            self.prefixes.expect(prefix)
        self.waiting.extend(made)
        return [request.id for request in made]

    # The four verbs.

    def admit(
        self,
        prompt: str | np.ndarray | requests.Spoken,
        *,
        seed: int | None = None,
        number: int | None = None,
        **settings: Any,
    ) -> int:
        """Hands a request in and returns its id.

        Args:
          prompt: its text; or its ids `[n]`, the start of a document included, which go with a `number`.
          seed: of its randomness; None: the run's.
          number: tells requests of one seed apart; None: from the prompt, and how often it was asked before.
          **settings: of `config.generate`.

        Errors: ConfigError.
        """
        if number is None:
            count = self._seen[prompt] = self._seen.get(prompt, -1) + 1
            number = requests.number(prompt, count)
        request = self._request(prompt, self._options(settings), seed, number)
        self.waiting.append(request)
        return request.id

    def step(self, plan: StepPlan | None = None) -> None:
        """Preempts, admits, reads and decodes as `plan` says, or as `self.plan()` does."""
        plan = self.plan() if plan is None else plan
        rounds = min(plan.rounds, self.rounds)
        for id in plan.preempt:
            self._preempt(self.running.get(id) or self.reading[id])
        for id in plan.admit:
            self._begin(next(request for request in self.waiting if request.id == id))
        made = self._read_prompts(plan, rounds)
        for request in [r for r in self.reading.values() if r.ready]:
            self._seat(request, rounds)
        self._decode(plan, rounds, made)

    def free(self, id: int) -> None:
        """Ends a request where it stands."""
        self._say()
        for request in [*self.waiting, *self.reading.values(), *self.running.values()]:
            if request.id == id:
                self._end(request, "freed")

    def results(self) -> Iterator[Result]:
        """Requests as they end, until there are none left."""
        while self.waiting or self.reading or self.running:
            self.step()
            ended, self._ended = self._ended, []  # Text of the last tokens is made behind the next step.
            yield from ended
        yield from self.ended()

    def ended(self) -> list[Result]:
        """Requests that have ended since the last call."""
        self._say()
        ended, self._ended = self._ended, []
        return ended

    def plan(self) -> StepPlan:
        """First come first served: whoever waits takes a free lane as long as the pool has room for its text so far."""
        taken, admit = len(self.running) + len(self.reading), []
        chunks = {request.id: len(request.ids) for request in self.reading.values() if not request.ready}
        needs = [self.need(request, self.rounds) for request in (*self.running.values(), *self.reading.values())]
        for request in self.waiting:
            needs.append(self.need(request, self.rounds))
            if self.pool.shape(taken + 1, max(needs)) is None:
                break
            admit.append(request.id)
            taken += 1
            if request.one is None:
                chunks[request.id] = len(request.ids)
        left = len(self.waiting) > len(admit)
        ends = 1 if left else 2**31 - 1
        return StepPlan((), tuple(admit), chunks, rounds=self.rounds, ends=ends, packed=not self.unpackable)

    # What they are made of.

    def _options(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        options = changed(self.settings, settings)
        preflight.check_generation(options, tables=True)
        if differs := sockets.kept_apart(options, self.settings, self._parts):
            group, _, leaf = differs.rpartition(".")
            value = (options[group] if group else options)[leaf]
            raise ConfigError([
                f"generate.{differs}={value!r} holds for all requests of an engine; make one with "
                + (f"{group}={{{leaf!r}: {value!r}}}." if group else f"{leaf}={value!r}.")
            ])  # fmt: skip
        if options["max_tokens"] > self._parts.memory.drawn > 0:
            raise ConfigError([
                f"generate.max_tokens={options['max_tokens']} is more than the slots that generate.memory="
                f"{options['memory']!r} has for drawn tokens; make an engine with max_tokens={options['max_tokens']}."
            ])  # fmt: skip
        return options

    def _request(
        self, prompt: str | np.ndarray | requests.Spoken, options: dict[str, Any], seed: int | None, number: int
    ) -> Request:
        ids, read = parsed(self._parts, options, self.tokenizer, prompt)
        if len(ids) + options["max_tokens"] > self.pool.capacity:
            raise ConfigError([
                f"a prompt of {len(ids)} tokens with generate.max_tokens={options['max_tokens']} does not fit "
                f"capacity={self.pool.capacity}; use e.g. capacity={len(ids) + options['max_tokens']}."
            ])  # fmt: skip
        key = jax.random.key(self.seed if seed is None else seed)
        key = jax.random.key_data(key_scheme.row_keys(key, 1, jnp.asarray([number], jnp.uint32))[0])
        reader = requests.RowText(self.tokenizer, tuple(options["stop"]))
        self._next += 1
        own = together(given(self._parts, options, self.tokenizer, self._sides), read)
        return Request(self._next - 1, ids, options, np.asarray(key), reader, length=len(ids), given=own)

    def _begin(self, request: Request) -> None:
        """Takes a request out of the queue: its row begins, with what is there of its prompt, or comes back."""
        self.waiting.remove(request)
        self.reading[request.id] = request
        if request.one is None:
            found = self.prefixes.take(request.prefix)
            if found is not None:
                request.one, request.read = self._fresh_row(request, found), len(request.prefix)

    def _read_prompts(self, plan: StepPlan, rounds: int) -> int:
        """Reads what a plan says; how many rounds the lanes have made beside it: one, if a piece is small and the step
        has no more."""
        counts, made = dict(plan.chunks), 0
        if plan.packed:
            whole = [self.reading[id] for id, n in counts.items() if n >= len(self.reading[id].ids) - 1]
            counts = {id: n for id, n in counts.items() if id not in self._read_packed(whole)}
        for id, count in counts.items():
            for piece in self._reading(self.reading[id], count):
                if rounds == 1 and not made and piece.size <= BESIDE and self._round_beside(piece, plan):
                    made = 1
                else:
                    self._read_piece(piece)
        return made

    def _round_beside(self, piece: Piece, plan: StepPlan) -> bool:
        """One pass for a piece of a prompt and a round of the running rows, where there are any and parts allow it."""
        if self._whole or not self.running or not self.decoder.joins(self._parts):
            return False
        here, among, parts = self._turn(plan, 1)
        if not any(among) or not self.decoder.joins(parts) or any(hosted(parts, r.options) for r in here):
            return False
        given = (self.weights, self._lanes, piece.shown(), among)
        self._lanes, one = self.decoder.both(*given, parts=parts, whole=self._parts, size=piece.size)
        piece.taken(one)
        return True

    def _decode(self, plan: StepPlan, rounds: int, made: int) -> None:
        """Rounds of the running rows, of which `made` are made, while the host makes text of what came before; then a
        look at what there is."""
        if any(hosted(self._parts, r.options) for r in self.running.values()):
            self._say()  # A row that a stop string has ended is not shown to its controls.
        if not self.running:
            return self._say()
        here, among, parts = self._turn(plan, rounds)
        left = rounds - made
        if left and (waits := [r for r in here if among[r.row] and hosted(parts, r.options)]):
            left = 1
            for request in self._between(parts, waits):
                here.remove(request)
                among[request.row] = False
        if left:
            ends = np.int32(plan.ends)
            self._lanes = self.decoder.extend(self.weights, self._lanes, np.int32(left), ends, among, parts=parts)
        self._say()
        self._look(here)

    def _between(self, parts: Parts, waits: Sequence[Request]) -> list[Request]:
        """Lets controls look at rows before their next round; the requests that ended here."""
        rows = {
            r.row: Host(r.options, self.tokenizer, np.concatenate([r.ids, r.tokens]).astype(np.int32), len(r.ids))
            for r in waits
        }
        self._lanes, failed = between(parts, self._lanes, rows)
        ended = [r for r in waits if r.row in failed]
        for request in ended:
            self._end(request, failed[request.row])
        return ended

    def _look(self, here: Sequence[Request]) -> None:
        """Takes what the rows have drawn; those that are done leave their lanes."""
        lanes = self._lanes
        text, length = np.array(lanes.text), np.array(lanes.length)
        done, failed, calls = np.array(lanes.done), np.array(lanes.failed), np.array(lanes.calls)
        for request in [r for r in here if not r.over]:
            row = request.row
            new = text[row, request.length : length[row]]
            request.length, request.calls = int(length[row]), int(calls[row])
            request.tokens.extend(new.tolist())
            self.drawn += len(new)
            reason = ""
            if done[row]:
                ended = len(new) and new[-1] == self.tokenizer.eos
                reason = (NO_TOKEN if request.given else NOT_FINITE) if failed[row] else "end" if ended else "limit"
                del self.running[request.id]
            self._unsaid.append((request, new, reason))

    def _say(self) -> None:
        """Makes text of what was drawn; a stop string, or a failure here, ends its request and no other."""
        unsaid, self._unsaid = self._unsaid, []
        for request, new, reason in unsaid:
            if request.over:
                continue
            try:
                request.text.append(request.reader.push(new, last=bool(reason)))
            except Exception as error:  # Whatever it is, it is this row's alone.
                reason = f"its text cannot be made: {type(error).__name__}: {error}"
            if request.reader.stopped and reason in ("", "limit", "end"):
                reason = "stop"
            if reason:
                self._end(request, reason)

    def _end(self, request: Request, reason: str) -> None:
        if self.running.pop(request.id, None) is not None:
            self._retire([request.row])
        self.reading.pop(request.id, None)
        if request in self.waiting:
            self.waiting.remove(request)
            if request.one is None:
                self.prefixes.take(request.prefix)
        request.over, request.one = True, None
        self._ended.append(Result(request.id, "".join(request.text), tuple(request.tokens), reason, request.calls))


__all__ = ["Engine", "Result", "StepPlan"]
