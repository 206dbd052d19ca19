"""What may be asked: bodies of OpenAI's interface as typed requests, in the words of `config.generate`.

A field that is not known is refused, as OpenAI does: a misspelt one would else be passed over. Fields of OpenAI's that
change no text here are taken and not read; those that would change it and cannot are refused unless they are neutral.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.serving import fields
from experiments.serving.fields import Number, Only, Whole, passed_over, switch, text
from experiments.serving.wrong import Wrong

STOPS, STOP_LENGTH, CHOICES, ALTERNATIVES, BIASES, SEEDS = 16, 256, 128, 20, 1024, 2**32 - 1
"""The largest that a request may say: stop strings, characters of one, texts, alternatives of a token, biases, seed."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How text is drawn; None: as `config.generate` of the server says.

    Attributes: those of `generate`; presence, frequency, repetition of `generate.penalties`; bias: id -> number that is
    added to its logit.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: tuple[str, ...] | None = None
    presence: float | None = None
    frequency: float | None = None
    repetition: float | None = None
    bias: Mapping[int, float] | None = None

    def generate(self) -> dict[str, Any]:
        """Settings of `config.generate` that are said; a group is a dict."""
        plain = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "stop")
        made = {name: getattr(self, name) for name in plain if getattr(self, name) is not None}
        penalties = {"presence": self.presence, "frequency": self.frequency, "repetition": self.repetition}
        if said := {name: value for name, value in penalties.items() if value is not None}:
            made["penalties"] = said
        if self.bias:
            made["logit_bias"] = {"ids": ", ".join(f"{id}:{value!r}" for id, value in self.bias.items())}
        return made


@dataclasses.dataclass(frozen=True)
class Asked:
    """One body of /v1/completions or /v1/chat/completions.

    Attributes:
      chat: whether it was the latter.
      prompts: each {"text": str}, {"ids": [int]} or {"messages": [{"role", "content"}]}.
      n: texts of each prompt.
      seed: of all of them; None: the server draws one.
      model: its name, "" where none is said.
      stream: whether pieces are wanted as they come; usage: with the counts behind them.
      alternatives: log-probabilities of each token and of so many others; None: none.
      echo: whether the prompt stands in front of the text.
      drafts: whether the answer says which tokens were drafted (a field of ours).
      kept: whether it says what each layer kept of the text (a field of ours).
      settings: how text is drawn.
    """

    chat: bool
    prompts: tuple[dict[str, Any], ...]
    n: int
    seed: int | None
    model: str
    stream: bool
    usage: bool
    alternatives: int | None
    echo: bool
    drafts: bool
    kept: bool
    settings: Settings

    @property
    def choices(self) -> int:
        """Texts in all."""
        return len(self.prompts) * self.n


def stop_strings(name: str, value: Any) -> tuple[str, ...]:
    """A text or a list of texts; see `fields.Read`."""
    made = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else None
    if made is None or len(made) > STOPS:
        held = f"a list of {len(made):,}" if made else fields.shown(value)
        raise Wrong(f"{name} is {held}; give a text, or a list of at most {STOPS} texts.", param=name)
    for each in made:
        if not 0 < len(text(name, each)) <= STOP_LENGTH:
            raise Wrong(f"{name} has a text of {len(each):,} characters; give 1 to {STOP_LENGTH}.", param=name)
    return made


def biases(name: str, value: Any) -> dict[int, float]:
    """{"id": number}; see `fields.Read`."""
    if not isinstance(value, dict) or len(value) > BIASES:
        raise Wrong(f'{name} must be an object of at most {BIASES} ids, e.g. {{"50": -100}}.', param=name)
    made = {}
    for id, added in value.items():
        if not (id.isascii() and id.isdigit() and len(id) < 10):
            raise Wrong(f'{name} has the id {fields.shown(id)}; ids are whole numbers, e.g. "50".', param=name)
        made[int(id)] = Number(-100, 100, -100)(f"{name}.{id}", added)
    return made


def prompts(name: str, value: Any) -> tuple[dict[str, Any], ...]:
    """A text, ids, or a list of either; see `fields.Read`."""
    several = isinstance(value, list) and not (value and type(value[0]) is int)
    each = value if several else [value]
    if not each or len(each) > CHOICES:
        raise Wrong(f"{name} is a list of {len(each)}; give 1 to {CHOICES} prompts.", param=name)
    return tuple(_prompt(name, one) for one in each)


def _prompt(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list) and value and all(type(id) is int and 0 <= id < 2**31 for id in value):
        return {"ids": value}
    if isinstance(value, str):
        return {"text": text(name, value)}
    raise Wrong(f"{name} has {fields.shown(value)}; a prompt is a text, or a list of ids from 0.", param=name)


def messages(name: str, value: Any) -> list[dict[str, str]]:
    """Messages with texts in "role" and "content"; see `fields.Read`."""
    if not isinstance(value, list) or not value:
        raise Wrong(f'{name} must be a list such as [{{"role": "user", "content": "Hello"}}].', param=name)
    return [_message(f"{name}[{i}]", one) for i, one in enumerate(value)]


def _message(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise Wrong(f'{name} is {fields.shown(value)}; it needs "role" and "content".', param=name)
    if unknown := sorted(set(value) - {"role", "content", "name"}):
        raise Wrong(f"{name}.{unknown[0]} is not read here; leave it away.", param=name)
    content, role = value["content"], text(f"{name}.role", value["role"])
    if isinstance(content, list):  # Parts, of which there are texts alone.
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise Wrong(f'{name}.content has {fields.shown(part)}; parts are of type "text".', param=name)
        content = "".join(text(f"{name}.content", part.get("text")) for part in content)
    return {"role": "system" if role == "developer" else role, "content": text(f"{name}.content", content)}


def stream_options(name: str, value: Any) -> bool:
    """Whether counts stand behind a stream; see `fields.Read`."""
    if not isinstance(value, dict) or set(value) - {"include_usage", "include_obfuscation"}:
        raise Wrong(f'{name} must be {{"include_usage": true}}.', param=name)
    return switch(f"{name}.include_usage", value.get("include_usage", False))


BOTH: dict[str, fields.Read] = {
    "model": text,
    "temperature": Number(0, 100, 0.8),
    "top_p": Number(1e-6, 1, 0.95),
    "top_k": Whole(0, 2**24, 40),
    "min_p": Number(0, 1, 0.05),
    "presence_penalty": Number(-100, 100, 0.5),
    "frequency_penalty": Number(-100, 100, 0.5),
    "repetition_penalty": Number(1e-3, 1000, 1.1),
    "logit_bias": biases,
    "stop": stop_strings,
    "seed": Whole(0, SEEDS, 1),
    "n": Whole(1, CHOICES, 1),
    "stream": switch,
    "stream_options": stream_options,
    "return_drafts": switch,
    "return_kept": switch,
    **dict.fromkeys(
        ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"), passed_over
    ),
}
COMPLETION: dict[str, fields.Read] = BOTH | {
    "prompt": prompts,
    "max_tokens": Whole(0, 2**24, 100),
    "logprobs": Whole(0, ALTERNATIVES, 5),
    "echo": switch,
    "best_of": Whole(1, CHOICES, 1),
    "suffix": Only([""], "text is written from left to right, so that nothing can stand behind it"),
}
CHAT: dict[str, fields.Read] = BOTH | {
    "messages": messages,
    "max_tokens": Whole(1, 2**24, 100),
    "max_completion_tokens": Whole(1, 2**24, 100),
    "logprobs": switch,
    "top_logprobs": Whole(0, ALTERNATIVES, 5),
    "tools": Only([[]], "a model of this server calls no tools"),
    "tool_choice": Only(["none", "auto"], "a model of this server calls no tools"),
    "parallel_tool_calls": passed_over,
    "functions": Only([[]], "a model of this server calls no functions"),
    "function_call": Only(["none", "auto"], "a model of this server calls no functions"),
    "response_format": Only([{"type": "text"}], "answers are plain text"),
    "modalities": Only([["text"]], "answers are plain text"),
}


def completion(body: Mapping[str, Any]) -> Asked:
    """A body of /v1/completions. Errors: Wrong."""
    said = fields.taken(body, COMPLETION)
    if "prompt" not in said:
        raise Wrong('prompt is missing; give a text, e.g. "prompt": "def main(".', param="prompt")
    n, best = said.get("n", 1), said.get("best_of")
    if best not in (None, n):
        raise Wrong(f"best_of={best} with n={n}: no text is drawn to be thrown away; give n alone.", param="best_of")
    if said.get("max_tokens") == 0 and not said.get("echo"):
        raise Wrong('max_tokens=0 goes with "echo": true alone, to read a prompt; give at least 1.', param="max_tokens")
    return _asked(said, said["prompt"], chat=False, alternatives=said.get("logprobs"))


def chat(body: Mapping[str, Any]) -> Asked:
    """A body of /v1/chat/completions. Errors: Wrong."""
    said = fields.taken(body, CHAT)
    if "messages" not in said:
        raise Wrong('messages is missing; give e.g. [{"role": "user", "content": "Hello"}].', param="messages")
    if "top_logprobs" in said and not said.get("logprobs"):
        raise Wrong('top_logprobs goes with "logprobs": true.', param="top_logprobs")
    if "max_completion_tokens" in said:
        said["max_tokens"] = said["max_completion_tokens"]
    alternatives = said.get("top_logprobs", 0) if said.get("logprobs") else None
    return _asked(said, ({"messages": said["messages"]},), chat=True, alternatives=alternatives)


def _asked(said: Mapping[str, Any], given: tuple[dict, ...], *, chat: bool, alternatives: int | None) -> Asked:
    """The request of fields that are checked each by itself."""
    plain = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "stop")
    settings = Settings(
        **{name: said.get(name) for name in plain},
        presence=said.get("presence_penalty"),
        frequency=said.get("frequency_penalty"),
        repetition=said.get("repetition_penalty"),
        bias=said.get("logit_bias"),
    )
    made = Asked(
        chat=chat,
        prompts=given,
        n=said.get("n", 1),
        seed=said.get("seed"),
        model=said.get("model", ""),
        stream=said.get("stream", False),
        usage=said.get("stream_options", False),
        alternatives=alternatives,
        echo=said.get("echo", False),
        drafts=said.get("return_drafts", False),
        kept=said.get("return_kept", False),
        settings=settings,
    )
    if made.choices > CHOICES:
        raise Wrong(f"{len(given)} prompts with n={made.n} are {made.choices} texts; at most {CHOICES}.", param="n")
    return made
