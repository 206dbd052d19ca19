"""`models.decoding.stream` with the models of trained runs, compiled once per shape and parts."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from experiments.generation import beside, drafting, patterns, requests
from experiments.generation.layers import cut, whole
from experiments.preflight import memory_problems, segments
from experiments.program import Program, sharding
from experiments.settings.errors import ConfigError
from models.decoding import packed, stream
from models.decoding import parts as sockets
from models.decoding.commit import rewinds
from models.decoding.control import Control
from models.decoding.drafts import Drafter
from models.decoding.rows import fit, insert, take
from models.decoding.stream import Parts, Progress
from models.mixers.memory import group
from models.rope_scaling import Scaling


class Decoder:
    """The functions of `models.decoding.stream` for one model, and the models that the parts read beside it.

    `weights` are the parameters as decoding reads them, and an argument of each function. `lanes`, `moved` and `insert`
    are for rows that come and go: see `experiments.generation.engine`.
    """

    def __init__(self, program: Program, tokenizer: Any):
        self.program, self.tokenizer = program, tokenizer
        self.programs: dict[str, Program] = {"model": program}
        self.hosts = Hosts()
        self._beside: dict[str, Any] = {}  # weights of the models beside, by name and workdir
        self.start = program.jit(self._start, static_argnames=("parts", "size", "capacity"))
        self.read = program.jit(self._read, static_argnames=("parts", "size", "fresh"), donate_argnames=("p",))
        self.extend = program.jit(self._extend, static_argnames=("parts",), donate_argnames=("p",))
        self.both = program.jit(self._both, static_argnames=("parts", "whole", "size"), donate_argnames=("p", "others"))
        self.packed = program.jit(self._packed, static_argnames=("parts", "slots"))
        self.unpacked = program.jit(self._unpacked, static_argnames=("parts", "size"), donate_argnames=("p",))
        self.lanes = program.jit(self._lanes, static_argnames=("parts", "capacity"))
        self.moved = program.jit(self._moved, static_argnames=("parts", "capacity"))
        self.insert = program.jit(insert, donate_argnums=0)

    @property
    def devices(self) -> int:
        """Over how many devices the rows of a batch are cut."""
        return math.prod(self.program.mesh.shape[axis] for axis in sharding.rows(self.program.config))

    def parts(
        self, asked: Sequence[Mapping[str, Any]], *, every: bool = False, shared: Mapping[str, Any] | None = None
    ) -> Parts:
        """The parts for requests that are served together, each with its `config.generate` as a plain dict.

        `every`: entries whose dials are off, too: a state for whatever requests are to come. `shared`: see
        `models.decoding.parts.make`.

        Errors: ConfigError where the model cannot be read so.
        """
        asked = [patterns.resolved(each) for each in asked]
        shared = None if shared is None else patterns.resolved(shared)
        tokenizer = self.tokenizer
        known = {} if tokenizer is None else {
            "vocab_size": getattr(tokenizer, "written", tokenizer.vocab_size), "eos": tokenizer.eos,
            "banned": tuple(i for i in (tokenizer.bos, tokenizer.pad) if i != tokenizer.eos),
        }  # fmt: skip
        known["roles"] = self.program.spec.roles
        parts = sockets.make(asked, _defaults(), every=every, shared=shared, **known)
        named = parts.drafter[0], parts.memory.name, "dense" if parts.prefill is None else "minference"
        if problems := [*segments.decoding_problems(self.program.spec.kind, *named)]:
            raise ConfigError(problems)
        self._check_memory(parts)
        if problems := [*drafting.problems(parts, asked[0], self.program, rewinds=lambda: self._all_rewind(parts))]:
            raise ConfigError(problems)
        return parts

    def _check_memory(self, parts: Parts) -> None:
        """Raises ConfigError where no layer keeps what the memory is about, or its sizes do not go with the layers."""
        name, mixer = parts.memory.name, self.program.config.model.mixer
        if parts.prefill is not None:
            patterns.check(parts.prefill, parts.memory, self.program.config)
        if name == "full":
            return
        shared = {"memory": name, group(name): dict(parts.memory.options)}
        if problems := list(memory_problems(shared, mixer)):
            raise ConfigError(problems)
        try:
            self._state(parts)
        except ValueError as problem:
            raise ConfigError([str(problem)]) from None

    def _all_rewind(self, parts: Parts) -> bool:
        return rewinds(self._state(parts))

    def _state(self, parts: Parts) -> Any:
        """Shapes of the decoding state of a row of the trained length."""
        length = self.program.config.data.length
        state = lambda params: self.program.decoder(params).for_decoding().init_state(1, length, parts.memory)  # noqa: E731
        return jax.eval_shape(state, self.program.abstract["params"])

    def slots(self, p: Progress, parts: Parts) -> int:
        """Tokens that the rows of `p` have room for."""
        return p.state["slots"].position.shape[1] - (parts.drafter[1].nodes - 1)

    @property
    def _alone(self) -> bool:
        """Whether the model is plain, and on one device."""
        return self.program.spec.kind == "lm" and self.program.mesh.size == 1

    def joins(self, parts: Parts) -> bool:
        """Whether rows of these parts are read beside others, in one pass of the model."""
        return self._alone and stream.plain(parts)

    def unpackable(self, parts: Parts) -> str:
        """Why prompts cannot be read side by side in one row, in a sentence; "": they can."""
        config, rest = self.program.config, "use generate.engine.scheduler='first_come'."
        asks = "generate.engine.scheduler='prepacking' reads several prompts in one row, "
        if parts.memory.name != "full":
            return f"{asks}and generate.memory={parts.memory.name!r} chooses from a whole row; {rest}"
        if parts.prefill is not None:
            return f"{asks}and generate.prefill='minference' finds patterns in whole rows; {rest}"
        if set(self.program.spec.mixers) != {"attention"}:
            return f"{asks}which model.mixer={config.model.mixer!r} does not keep apart; {rest}"
        scaling = config.model.attention.rope_scaling
        if not ((made := Scaling.of(scaling)) is None or made.steady):
            return f"{asks}and model.attention.rope_scaling.kind={scaling.kind!r} turns them by the longest; {rest}"
        if not (self._alone and stream.plain(parts)):
            return f"{asks}which needs one device, model.kind='lm', and no part that enters the model's passes; {rest}"
        return ""

    def sides(self, weights: Mapping[str, Any], parts: Parts, width: int) -> dict[str, Any]:
        """Shapes of what controls that say what a request's row starts with keep of it, for texts of `width` tokens."""
        mine = [(name, part) for name, part in parts.control if type(part).given is not Control.given]

        def made(weights: Mapping[str, Any]) -> dict[str, Any]:
            models = self.models(weights)
            return {name: part.init(models, 1, width) for name, part in mine}

        return jax.eval_shape(made, weights) if mine else {}

    def weights(self, params: Any, parts: Parts) -> dict[str, Any]:
        """Parameters for the functions below: those of the model, and of the models that the parts read."""
        own = {"model": cut(params)}
        for name, workdir in sockets.runs(parts).items():
            key = f"{name} {workdir}"
            if key not in self._beside:
                programs, found = beside.load(self.program, self.tokenizer, {name: workdir})
                self.programs |= programs
                self._beside[key] = cut(found[name])
            own[name] = self._beside[key]
        return own

    def models(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """The models inside a trace."""
        made = {name: self.programs[name].decoder(whole(w)).for_decoding(w["layers"]) for name, w in weights.items()}
        return made | {"hosts": self.hosts}

    def _start(self, weights, text, length, limit, key, dials, *, parts, size, capacity):
        """`begin`, and the first `size` tokens of every prompt; 0: none."""
        models = self.models(weights)
        p = stream.begin(models, parts, text, length, limit, key, dials, capacity=capacity)
        return self._readable(stream.read(models, p, parts, size, fresh=True) if size else p)

    def _read(self, weights, p, *, parts, size, fresh=False):
        return self._readable(stream.read(self.models(weights), p, parts, size, fresh=fresh))

    def _extend(self, weights, p, rounds, ends, among=None, *, parts):
        return self._readable(stream.extend(self.models(weights), p, parts, rounds, ends, among))

    def _both(self, weights, p, others, among, *, parts, whole, size):
        """A round of the live rows of `p` that are `among` them, and the next `size` tokens of `others`."""
        models = self.models(weights)
        p, others = stream.beside(models, p, parts, p.live & among, others, whole, size)
        return self._readable(p), self._readable(others)

    def _packed(self, weights, tokens, positions, segments, *, parts, slots):
        return packed.read_row(self.models(weights), parts, tokens, positions, segments, slots)

    def _unpacked(self, weights, p, made, start, *, parts, size):
        return self._readable(packed.cut_out(self.models(weights), p, parts, made, start, size))

    def _lanes(self, weights, text, dials, *, parts, capacity):
        """Rows without a request, cut over the devices as rows are."""
        B = text.shape[0]
        none, key = jnp.zeros((B,), jnp.int32), jnp.zeros((B, 2), jnp.uint32)
        p = stream.begin(self.models(weights), parts, text, none, none, key, dials, capacity=capacity)
        return self._readable(self._by_rows(p))

    def _moved(self, weights, p, rows, *, parts, capacity):
        """The rows `rows [n]` of `p` (-1: without a request) with room for texts of up to `capacity` tokens."""
        model, more = self.models(weights)["model"], parts.drafter[1].nodes - 1
        p = take(p, jnp.maximum(rows, 0))
        memory = dataclasses.replace(parts.memory, slots=capacity + more)
        empty = model.init_state(len(rows), p.text.shape[1] - parts.drafter[1].depth + more, memory)
        p = dataclasses.replace(p, state=fit(p.state, empty), done=p.done | (rows < 0))
        return self._readable(self._by_rows(p))

    def _by_rows(self, p: Progress) -> Progress:
        constrain = self.program.spec.partition.constrain
        return jax.tree.map(lambda x: constrain(x, ("batch", *(None,) * (x.ndim - 1))), p)

    def _readable(self, p: Progress) -> Progress:
        """What the host looks at, whole on every device: it may see only its own."""
        shown = ("text", "length", "limit", "done", "failed", "calls", "wrote")
        constrain = self.program.spec.partition.constrain
        return dataclasses.replace(
            p, **{name: constrain(x, (None,) * x.ndim) for name in shown for x in [getattr(p, name)]}
        )


class Hosts(dict):
    """What drafters keep on the host, by drafter: made when it is first asked for."""

    def __missing__(self, drafter: Drafter) -> Any:
        self[drafter] = drafter.host()
        return self[drafter]


@functools.cache
def _defaults() -> dict[str, Any]:
    return base.get_config().generate.to_dict()


def key_data(prompts: Sequence[str], seed: int) -> np.ndarray:
    """`[B, 2]` data of the requests' keys: see `requests.keys`."""
    return np.asarray(jax.random.key_data(requests.keys(prompts, seed)))
