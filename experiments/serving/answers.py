"""What goes back, as OpenAI's interface writes it: whole answers, and the pieces of a stream."""

import dataclasses
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.serving.asked import Asked
from experiments.serving.wrong import Wrong

Mark = Sequence[Any]
"""A token: [bytes as latin-1, log-probability, [[bytes, log-probability]], first character, whether it was drafted]."""
REASONS = {"end": "stop", "stop": "stop", "limit": "length", "freed": "stop"}
SMALLEST = -9999.0  # What OpenAI writes for a log-probability of -inf.


@dataclasses.dataclass
class Choice:
    """A text as far as it has come."""

    text: str = ""
    marks: list[Mark] = dataclasses.field(default_factory=list)
    reason: str | None = None
    prompt: int = 0
    drawn: int = 0
    found: int = 0  # tokens of the prompt that were not read again
    kept: dict[str, Any] | None = None  # what each layer kept

    def take(self, event: Mapping[str, Any]) -> None:
        """What the engine says next of it. Errors: Wrong where it failed."""
        check(event)
        self.text += event.get("text", "")
        self.marks += event.get("marks", [])
        if "end" in event:
            self.reason = REASONS[event["end"]]
            self.prompt, self.drawn, self.found = event["counts"]
            if kept := event.get("kept"):
                self.kept = kept | {"tokens": [shown(token) for token in kept["tokens"]]}


def check(event: Mapping[str, Any]) -> None:
    """Raises Wrong where a text was refused, or has failed."""
    if "wrong" in event:
        raise Wrong(event["wrong"], param=event.get("param"))
    if event.get("end", "end") not in REASONS:
        raise Wrong(event["end"], status=500, code="failed")


class Answer:
    """The answer to one request: whole, or piece by piece."""

    def __init__(self, asked: Asked, model: str):
        self.asked, self.id = asked, f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.head = {"id": self.id, "created": int(time.time()), "model": model}
        self.choices = [Choice() for _ in range(asked.choices)]

    def take(self, event: Mapping[str, Any]) -> None:
        """The next event. Errors: Wrong."""
        self.choices[event["choice"]].take(event)

    def whole(self) -> dict[str, Any]:
        """When all have ended."""
        kind = "chat.completion" if self.asked.chat else "text_completion"
        choices = [self._choice(i, c.text, c.marks, c.reason, whole=True) for i, c in enumerate(self.choices)]
        return self.head | {"object": kind, "choices": choices, "usage": self.usage()}

    def piece(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """What one event adds to a stream."""
        index = event["choice"]
        reason = self.choices[index].reason if "end" in event else None
        return self._streamed([self._choice(index, event.get("text", ""), event.get("marks", []), reason, whole=False)])

    def first(self) -> list[dict[str, Any]]:
        """Pieces before the first event: who speaks."""
        if not self.asked.chat:
            return []
        return [
            self._streamed([
                {"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            ])
            for i in range(len(self.choices))
        ]  # fmt: skip

    def last(self) -> list[dict[str, Any]]:
        """Pieces behind the last event: the counts, where they are asked for."""
        return [self._streamed([]) | {"usage": self.usage()}] if self.asked.usage else []

    def _streamed(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.asked.chat else "text_completion"
        return self.head | {"object": kind, "choices": choices}

    def _choice(self, index: int, text: str, marks: Sequence[Mark], reason: str | None, *, whole: bool) -> dict:
        made: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
        if self.asked.chat:
            made["message" if whole else "delta"] = ({"role": "assistant"} if whole else {}) | {"content": text}
        else:
            made["text"] = text
        if self.asked.alternatives is not None:
            made["logprobs"] = self._chat_marks(marks) if self.asked.chat else _completion_marks(marks)
        if self.asked.drafts:
            made["drafted"] = [bool(mark[4]) for mark in marks]
        if self.asked.kept and reason is not None:
            made["kept"] = self.choices[index].kept
        return made

    def _chat_marks(self, marks: Sequence[Mark]) -> dict[str, Any]:
        return {
            "content": [
                _entry(mark[0], mark[1]) | {"top_logprobs": [_entry(*other) for other in mark[2] or []]}
                for mark in marks
            ],
            "refusal": None,
        }

    def usage(self) -> dict[str, Any]:
        """Tokens of the prompts, each counted once, and of all texts; of the prompts those that were not read again."""
        firsts = self.choices[:: self.asked.n]
        prompt, drawn = sum(choice.prompt for choice in firsts), sum(choice.drawn for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
            "prompt_tokens_details": {"cached_tokens": sum(choice.found for choice in firsts)},
        }


def _entry(token: str, value: float | None) -> dict[str, Any]:
    return {"token": shown(token), "logprob": _finite(value), "bytes": list(token.encode("latin-1"))}


def _completion_marks(marks: Sequence[Mark]) -> dict[str, Any]:
    """Parallel lists; a token in front of which nothing stands has no probability: null."""
    best = []
    for token, own, others, _, _ in marks:
        if others is None:
            best.append(None)
            continue
        named: dict[str, float | None] = {}
        for other, value in (*others, (token, own)):  # Of two ids with the same bytes the likelier is told.
            named.setdefault(shown(other), _finite(value))
        best.append(named)
    return {
        "tokens": [shown(mark[0]) for mark in marks],
        "token_logprobs": [_finite(mark[1]) for mark in marks],
        "top_logprobs": best,
        "text_offset": [mark[3] for mark in marks],
    }


def shown(token: str) -> str:
    """Bytes (as latin-1) as text; those that are no whole characters as OpenAI writes them, bytes:\\xe2\\x82."""
    raw = token.encode("latin-1")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(value: float | None) -> float | None:
    return None if value is None else max(value, SMALLEST)
