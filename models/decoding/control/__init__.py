"""Socket Control: what do the logits become before a token is chosen, and who makes the step?

`generate.control` is a list of names between commas. An entry is a frozen dataclass in a module of this folder that
says `PARTS = {"mine": Mine}`; its fields are the knobs of `generate.mine`. The settings of sampling are entries,
too: those that are not named follow, in their order, those that are; so "" is plain sampling, "gedi" guides what
sampling then cuts, and "temperature,gedi" guides the divided logits.

An entry that is off for every row is not in the program, and turning a dial compiles nothing: numbers of a request are
arrays `[B]` in `Progress.dials`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from models import tables
from models.block import Pass
from models.decoding.drafts import Seen, Tree

Step = Callable[[Mapping[str, Any], Any, Any, jax.Array], Any]
"""(models, p: Progress, parts, live [B] bool) -> Progress: one pass of the model over the rows that are live.

`stream.round_` is the plain step. A row that is not live comes back as it was: its tokens are read at position -1,
which enter no state. A composition of steps (another model for some rows, roll-outs, rounds of a helper) is a step.
"""


Parsed = tuple[np.ndarray, Mapping[str, Any]]
"""Ids of a prompt `[n]`, and entries of its row's side."""


class Feed(NamedTuple):
    """What is read in the place of each row's last token (soft inputs)."""

    vector: jax.Array  # [B, D] as `LM.embed` gives them
    on: jax.Array  # [B] bool: whether it is; else the token is read


class Host(NamedTuple):
    """One row, as `Control.between` finds it on the host."""

    options: Mapping[str, Any]  # `config.generate` of its request
    tokenizer: Any
    tokens: np.ndarray  # [n] ids of its text so far
    prompt: int  # how many of them are its prompt


class Control:
    """Base of all entries: a processor of logits, a composition of steps, or both.

    Attributes:
      dials: knobs of `generate` that each request may set for itself, e.g. "top_k" or "gedi.weight": `process` finds
        `p.dials[knob] [B]` float32 (whole numbers below 2^24 are exact). An entry with dials that are at their defaults
        in all rows is left out of the program.
      runs: fields that hold the workdir of a run whose model it reads, as `models["NAME.FIELD"]`.
      pure: whether logits are all that `process` reads, besides dials: it then also warps the law of a drafter's model.
      taps: see `Drafter.taps`.
      feeds: whether `soft` is called.
      own: fields that each request may set for itself, as `given`, `hosts` and `between` find them in its options.
        Nothing else may read them: a part is made once for all requests. An entry whose dials and own fields are at
        their defaults in all rows is left out of the program.
      alone: whether it reads one token a pass, so that drafts are refused.
      whole: whether a prompt is read in one pass, but for its last token, and shares no beginning with others.
    """

    dials: ClassVar[tuple[str, ...]] = ()
    runs: ClassVar[tuple[str, ...]] = ()
    pure: ClassVar[bool] = False
    taps: ClassVar[tuple[str, ...]] = ()
    feeds: ClassVar[bool] = False
    own: ClassVar[tuple[str, ...]] = ()
    alone: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    @property
    def idle(self) -> bool:
        """Whether its own settings turn it off for all requests: it is then left out of the program."""
        return False

    def problems(self, config: Any, parts: Any) -> Iterator[str]:
        """Sentences about settings that cannot be with the model of `config`, a run's, or with the `stream.Parts`."""
        yield from ()

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """The side of `batch` rows without a token: a pytree with the batch in front."""
        return {}

    def read(self, models: Mapping[str, Any], side: Any, tokens: jax.Array, positions: jax.Array, made: Pass) -> Any:
        """The side after a piece of the prompt, `[B, T]` each; position -1 is padding. See `Drafter.read`."""
        return side

    def enters(self, models: Mapping[str, Any], side: Any, p: Any) -> Mapping[str, Any]:
        """What the model's passes are given besides tokens, of prompts, too: "layers", "edits" and "depth" of
        `LM.__call__`; "among", which gives its array for T first tokens, and "roles", which gives those of places.

        Values of several entries go together; of edits at one site that of the later entry is made behind the other, of
        others that is no mapping the last is heard.
        """
        return {}

    def placed(self, side: Any, positions: jax.Array) -> jax.Array:
        """Where the model is to find tokens that stand at `positions [B, T]` of their texts; -1 stays."""
        return positions

    def parsed(self, options: Mapping[str, Any], tokenizer: Any, prompt: str) -> Parsed | None:
        """On the host: a prompt's ids `[n]`, the start of a document included, and entries of its row's side, as of
        `given`; None: it is read as always. An entry that is shorter than its side is filled with zeros.

        Errors: ValueError, one sentence.
        """
        return None

    def shown(self, models: Mapping[str, Any], side: Any, made: Pass) -> Any:
        """The side as `process` is to find it, with what it needs of this pass: features, and what the report holds."""
        return side

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Logits `[B, N, V]` float32 of the token behind each node, changed; -inf rules a token out, one stays.

        Args:
          models: see `Drafter.propose`.
          side: `p.side[name]`, the state before this tree; or what `shown` made of it.
          logits: of the model, or of the entry before.
          p: `stream.Progress` before the round.
          tree: its drafts; position: `[B, N]` of the nodes, -1 where there is none.

        Returns:
          the logits, and whatever `commit` needs of this pass.
        """
        return logits, None

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """The side after the accepted nodes; `made` is from `process`."""
        return side

    def soft(self, models: Mapping[str, Any], side: Any, seen: Seen) -> Feed:
        """What the next round reads in place of the last token, where the entry `feeds`; `side` is the one after it.

        The text holds the token all the same. Of several entries that feed a row the last one is heard.
        """
        raise NotImplementedError

    def given(self, options: Mapping[str, Any], tokenizer: Any, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """On the host, once for a request: entries of its side at the start (numpy, without the batch), in place of
        those of `init`, e.g. the tables of a constraint.

        Args:
          options: `config.generate` of the request.
          tokenizer: of the model.
          sizes: the side of `init`, of any number of rows.

        Errors: ValueError, one sentence: the request is refused with it.
        """
        return {}

    def hosts(self, options: Mapping[str, Any]) -> bool:
        """Whether `between` is to be called for a request with `config.generate` = options. Such a row makes one round
        between two looks from the host."""
        return False

    def between(self, row: Host, side: Any) -> Any:
        """On the host, before each round of a row: its side (leaves without the batch, numpy), or None: as it was.

        Shapes and dtypes stay. An exception ends the request, with its sentence as the reason.
        """
        return None

    def step(self, inner: Step) -> Step:
        """The step that is taken in the place of `inner`."""
        return inner


CONTROLS: dict[str, type[Control]] = tables.found(__name__)
