"""A text under way in the engine's process: what of it was told, and what is told next."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data import StreamDecoder
from experiments.generation.request import Request, Result
from experiments.serving.reading import Prompt, piece
from experiments.serving.scores import Scores

Score = Callable[[np.ndarray], Scores]


class Places:
    """Where in a text each of its tokens begins, in characters."""

    def __init__(self, tokenizer: Any):
        self._decoder = StreamDecoder(tokenizer)
        self.begin: list[int] = []
        self.text = ""

    def push(self, tokens: Sequence[int]) -> None:
        """More tokens; one that ends in the middle of a character begins where that character does."""
        for token in tokens:
            self.begin.append(len(self.text))
            self.text += self._decoder.push(int(token))


@dataclasses.dataclass
class Track:
    """See the module's docstring.

    Attributes:
      id: the HTTP process's name of it.
      prompt: as the model reads it.
      tokenizer: of the model.
      request: in the engine; None: the prompt is to be read, and nothing drawn.
      alternatives: log-probabilities of each token and of so many others; None: none.
      echo: whether the prompt is told, too.
      streams: whether pieces are wanted as they come; else all is told at the end.
      drafts: whether it is told which tokens were drafted.
      watch: what each layer kept, `[L, T]` of a request that has ended; None: nobody asks.
    """

    id: str
    prompt: Prompt
    tokenizer: Any
    request: Request | None
    alternatives: int | None = None
    echo: bool = False
    streams: bool = False
    drafts: bool = False
    watch: Callable[[Request], np.ndarray] | None = None
    text: str = ""  # told so far, without the prompt
    told: int = 0  # tokens
    drafted: list[bool] = dataclasses.field(default_factory=list)
    _begun: bool = False
    _pieces: int = 0

    def __post_init__(self):
        self._places = Places(self.tokenizer)
        self._front = len(self._echoed()) if self.echo else 0

    def looked(self) -> None:
        """After a step of one round: the last token of what it wrote is the model's own, those before were drafts."""
        new = len(self.request.tokens) - len(self.drafted)
        self.drafted += [True] * (new - 1) + [False] * min(new, 1)

    def event(self, result: Result | None, score: Score) -> dict[str, Any] | None:
        """What is new, as a message to the HTTP process; None: nothing. result: the text has ended, and how."""
        if self.request is None:
            return {"id": self.id, **self._beginning(score), "end": "limit", "counts": [len(self.prompt.ids), 0, 0]}
        if result is None and not self.streams:
            return None
        pieces = self.request.text[self._pieces :]
        self._pieces += len(pieces)
        fresh = "".join(pieces)
        self.text += fresh
        if not fresh and result is None:
            return None
        made: dict[str, Any] = {"id": self.id, "text": fresh}
        begun = self._beginning(score) if self.echo and not self._begun else {}
        shown = self._shown(result)
        if self.alternatives is not None or self.drafts:
            made["marks"] = begun.get("marks", []) + self._marks(self.told, shown, score)
        made["text"] = begun.get("text", "") + fresh
        self.told = shown
        if result is not None:
            made |= {"end": result.reason, "counts": [len(self.prompt.ids), shown, self.request.found]}
            if self.watch is not None and not result.failed:
                made["kept"] = self._kept()
        return made

    def _echoed(self) -> str:
        return self.tokenizer.decode(self.prompt.ids[self.prompt.hidden :])

    def _beginning(self, score: Score) -> dict[str, Any]:
        """The prompt as it is echoed."""
        self._begun = True
        made: dict[str, Any] = {"text": self._echoed()}
        if self.alternatives is not None:
            places, hidden = Places(self.tokenizer), self.prompt.hidden
            places.push(self.prompt.ids[hidden:])
            scores = score(self.prompt.ids)
            made["marks"] = [
                self._mark(int(id), at, scores, hidden + i)
                for i, (id, at) in enumerate(zip(self.prompt.ids[hidden:], places.begin, strict=True))
            ]
        return made

    def _shown(self, result: Result | None) -> int:
        """How many tokens the text told so far has, its end included; those of a stop string are none of them."""
        tokens, count = self.request.tokens, self.told
        if self.alternatives is not None or self.drafts or self.request.options["stop"]:
            self._places.push(tokens[len(self._places.begin) :])
        if result is not None and result.reason != "stop":
            return len(tokens)
        while count < len(self._places.begin) and self._places.begin[count] < len(self.text):
            count += 1
        return count

    def _marks(self, first: int, last: int, score: Score) -> list[list]:
        """Of the tokens first..last - 1 of the answer."""
        tokens, n = self.request.tokens, len(self.prompt.ids)
        scores = None
        if self.alternatives is not None and last > first:
            scores = score(np.concatenate([self.prompt.ids, np.asarray(tokens[:last], np.int32)]))
        return [
            self._mark(tokens[i], self._front + self._places.begin[i], scores, n + i, i) for i in range(first, last)
        ]

    def _kept(self) -> dict[str, Any]:
        """Tokens of prompt and text (bytes as latin-1), how many of them are the prompt, and per cent of the heads of
        each layer that saw each of them at the end."""
        ids = [*map(int, self.prompt.ids), *self.request.tokens]
        shares = np.rint(100 * self.watch(self.request)).astype(int).tolist()
        return {"tokens": [self._piece(id) for id in ids], "prompt": len(self.prompt.ids), "layers": shares}

    def _mark(self, id: int, at: int, scores: Scores | None, place: int, drawn: int = -1) -> list:
        """[bytes as latin-1, log-probability, [[bytes, log-probability]], first character, whether it was drafted]."""
        drafted = self.drafted[drawn] if 0 <= drawn < len(self.drafted) else False
        own, others = None, None
        if scores is not None and place > 0:
            own = float(scores.own[place])
            best = zip(scores.ids[place][: self.alternatives], scores.best[place], strict=False)
            others = [[self._piece(int(one)), float(value)] for one, value in best]
        return [self._piece(int(id)), own, others, at, drafted]

    def _piece(self, id: int) -> str:
        return piece(self.tokenizer, id).decode("latin-1")


__all__ = ["Places", "Track"]
