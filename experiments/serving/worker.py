"""The process of the engine: a child of the HTTP process, which it hears on its input and tells on its output.

    python -m experiments.serving.worker

Its first line is a function that loads a model, pickled; frames of JSON follow. It ends when its input does.
"""

import base64
import dataclasses
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from data import conversations
from experiments.generation import requests
from experiments.generation.engine import Engine
from experiments.generation.serving import cached
from experiments.generation.serving.cached import CachedEngine
from experiments.generation.serving.plan import StepPlan
from experiments.generation.serving.planned import Planned
from experiments.generation.serving.schedulers import SCHEDULERS
from experiments.program import inputs
from experiments.serving import frames, reading
from experiments.serving.kept import Watcher
from experiments.serving.scores import Scorer
from experiments.serving.tracks import Track
from experiments.serving.wrong import Wrong
from experiments.settings.errors import ConfigError, Refused, sentence
from experiments.workdir import vocabulary

CONTROLS = ("penalties", "logit_bias")
"""Entries of `generate.control` that every request may turn on; off, they are in no program."""
STREAMED = 4
"""Rounds of a step while somebody reads along; else as many as the engine's own."""


class Worker:
    """An engine and the texts under way in it; `hear` takes a message, `turn` makes a step and what it has to tell."""

    def __init__(self, trained: Any, lanes: int):
        generate = trained.config.generate
        if trained.program.objective.generator != "autoregressive":
            raise Refused(
                f"--mode=serve is for models that write token by token, which objective={trained.config.objective!r} "
                "does not; use --mode=generate."
            )
        named = [name for name in map(str.strip, generate.control.split(",")) if name]
        control = ",".join([*named, *(name for name in CONTROLS if name not in named)])
        places, asked = trained.config.model.positions, generate.engine.capacity or trained.config.data.length
        capacity = min(asked, places) if places > 0 else asked
        self.engine = _engine(trained, lanes=lanes, capacity=capacity, chat=False, control=control)
        self.planned = _planned(self.engine, generate.engine)
        self.template, self.score, self.watch = _template(trained), Scorer(self.engine), Watcher(self.engine)
        self.tracks: dict[str, Track] = {}
        self._told: list[dict[str, Any]] = []

    def facts(self) -> dict[str, Any]:
        """What the HTTP process is to know of the model."""
        tokenizer, settings = self.engine.tokenizer, self.engine.settings
        return {
            "capacity": self.engine.pool.capacity,
            "lanes": self.engine.pool.lanes,
            "vocab_size": int(tokenizer.vocab_size),
            "tokenizer": tokenizer.name,
            "specials": reading.specials(tokenizer),
            "chat": bool(self.template or getattr(tokenizer, "chat", "")),
            "drafter": settings["drafter"],
            "memory": settings["memory"],
            "scheduler": self.engine.settings["engine"]["scheduler"],
            "prefix_blocks": self.engine.cache.most if isinstance(self.engine, CachedEngine) else 0,
            "settings": {name: settings[name] for name in ("max_tokens", "temperature", "top_p", "top_k", "min_p")},
        }

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.tracks and not self._told

    def hear(self, message: Mapping[str, Any]) -> None:
        """Takes a message: "start", "cancel", "tokenize" or "detokenize"."""
        does: dict[str, Callable] = {
            "start": self._start,
            "cancel": self._cancel,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
        }
        try:
            does[message["do"]](message)
        except Wrong as wrong:
            self._told.append({"id": message["id"], "wrong": wrong.message, "param": wrong.param})
        except ConfigError as error:
            self._told.append({"id": message["id"], "wrong": " ".join(error.problems), "param": None})

    def _start(self, message: Mapping[str, Any]) -> None:
        prompt = reading.prompt(self.engine.tokenizer, self.template, message["prompt"])
        if message["kept"] and self.engine.settings["memory"] == "full":
            raise Wrong(
                "return_kept: every layer keeps the whole text here; serve with e.g. --config.generate.memory=h2o.",
                param="return_kept",
            )
        settings, more = self._fitted(prompt, message["settings"])
        request = None
        if more:
            number = requests.number(prompt.name, message["choice"])
            asked = {"seed": message["seed"], "number": number} | settings
            if self.planned is None:
                self.engine.admit(prompt.told, **asked)
            else:
                self.planned.admit(prompt.told, time.monotonic(), **asked)
            request = self.engine.waiting[-1]
        self.tracks[message["id"]] = Track(
            message["id"], prompt, self.engine.tokenizer, request, message["alternatives"], message["echo"],
            message["streams"], message["drafts"], self.watch if message["kept"] else None,
        )  # fmt: skip

    def _fitted(self, prompt: reading.Prompt, settings: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Settings whose text fits behind the prompt, and how many tokens it may have."""
        room = self.engine.pool.capacity - len(prompt.ids)
        wanted = settings.get("max_tokens", max(1, min(self.engine.settings["max_tokens"], room)))
        if wanted > room:
            raise Wrong(
                f"a prompt of {len(prompt.ids)} tokens with max_tokens={wanted} does not fit the "
                f"{self.engine.pool.capacity} tokens that a request may have here; "
                + (f"use at most max_tokens={room}." if room > 0 else "use a shorter prompt."),
                param="max_tokens" if room > 0 else "prompt",
            )
        tuples = {name: tuple(value) if name == "stop" else value for name, value in settings.items()}
        return tuples | {"max_tokens": wanted}, wanted

    def _cancel(self, message: Mapping[str, Any]) -> None:
        track = self.tracks.pop(message["id"], None)
        if track is not None and track.request is not None:
            (self.planned or self.engine).free(track.request.id)

    def _tokenize(self, message: Mapping[str, Any]) -> None:
        try:
            ids = reading.tokenize(self.engine.tokenizer, message["text"])
        except ValueError as error:
            raise Wrong(f"prompt: {error}", param="prompt") from None
        self._told.append({"id": message["id"], "end": "end", "tokens": ids})

    def _detokenize(self, message: Mapping[str, Any]) -> None:
        if any(id >= self.engine.tokenizer.vocab_size for id in message["tokens"]):
            raise Wrong(f"tokens: ids are 0 to {self.engine.tokenizer.vocab_size - 1}.", param="tokens")
        self._told.append({"id": message["id"], "end": "end", "text": self.engine.tokenizer.decode(message["tokens"])})

    def turn(self) -> dict[str, Any]:
        """One step of the engine; what there is to tell, and how busy it is."""
        engine = self.engine
        drafts = [track for track in self.tracks.values() if track.drafts]
        if engine.waiting or engine.reading or engine.running:
            streams = any(track.streams for track in self.tracks.values())
            engine.step(self._plan(1 if drafts else STREAMED if streams else engine.rounds))
        ended = {result.id: result for result in engine.ended()}
        for track in drafts:
            if track.request is not None:
                track.looked()
        told, self._told = self._told, []
        read = False
        for track in list(self.tracks.values()):
            if track.request is None and read:
                continue  # One prompt a turn is read for its scores alone: texts under way do not wait for all.
            read = read or track.request is None
            result = ended.get(track.request.id) if track.request is not None else None
            event = track.event(result, self.score)
            if event is not None:
                told.append(event)
            if track.request is None or result is not None:
                del self.tracks[track.id]
        return {"told": told, "busy": self.busy()}

    def _plan(self, rounds: int) -> StepPlan:
        if self.planned is None:
            return dataclasses.replace(self.engine.plan(), rounds=rounds)
        return self.planned.turn(time.monotonic(), rounds)

    def busy(self) -> dict[str, Any]:
        """Figures of the engine's process."""
        engine = self.engine
        made = {
            "running": len(engine.running),
            "waiting": len(engine.waiting) + len(engine.reading),
            "drawn": engine.drawn,
            "cpu": time.process_time(),
        }
        return made | (dict(engine.figures()) if isinstance(engine, CachedEngine) else {})


def _engine(trained: Any, **settings: Any) -> Engine:
    """With a cache of beginnings, where the model's settings let prompts have any."""
    asked = trained.config.generate.engine
    settings["pool"] = asked.pool
    whole = trained.config.generate.to_dict() | settings
    if not asked.prefix_blocks or cached.refusal(whole, trained.config.model.roles):
        return Engine(trained, **settings)
    return CachedEngine(trained, blocks=asked.prefix_blocks, **settings)


def _planned(engine: Engine, asked: Any) -> Planned | None:
    """The engine under the scheduler that `generate.engine` names; None: it plans by itself."""
    if asked.scheduler == "first_come":
        return None
    options: dict[str, Any] = {}
    if asked.scheduler in ("sarathi", "batchllm"):
        if asked.budget <= engine.pool.lanes:
            raise ConfigError([
                f"generate.engine.budget={asked.budget} leaves no token for prompts while {engine.pool.lanes} "
                f"lanes write; use e.g. generate.engine.budget={8 * engine.pool.lanes}."
            ])  # fmt: skip
        options["budget"] = asked.budget
    elif asked.scheduler == "past_future":
        options["longest"] = engine.pool.capacity
    return Planned(engine, SCHEDULERS[asked.scheduler](**options))


def _template(trained: Any) -> str:
    """The chat template of a run: "" where it has none of its own. Errors: ConfigError where it is not as it was."""
    named = trained.config.data.template
    if trained.about:  # Of a run; pretrained weights have none.
        vocabulary.check_template(trained.about, named, trained.workdir)
    try:
        return conversations.template_of(named)
    except ValueError as error:
        raise ConfigError([inputs.keyed(trained.config, str(error))]) from None


def turns(worker: Worker, inbox: queue.SimpleQueue, tell: Callable[[Any], None]) -> None:
    """Hears and steps until a message is None: the HTTP process has gone."""
    while True:
        messages = [inbox.get()] if worker.idle else []
        while not inbox.empty():
            messages.append(inbox.get())
        for message in messages:
            if message is None:
                return
            worker.hear(message)
        tell(worker.turn())


def main() -> None:
    """See the module's docstring."""
    for name in (signal.SIGINT, signal.SIGTERM):  # The HTTP process hears them, drains, and then ends its pipe.
        signal.signal(name, signal.SIG_IGN)
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints is no message.

    def tell(message: Any) -> None:
        try:
            pipe.write(frames.packed(message))
            pipe.flush()
        except BrokenPipeError:
            os._exit(0)

    load, lanes = pickle.loads(base64.b64decode(sys.stdin.buffer.readline()))
    try:
        worker = Worker(load(), lanes)
    except Exception as error:
        said = sentence(error)
        tell({"refused": said or f"the model cannot be loaded: {type(error).__name__}: {error}"})
        if not said:
            raise
        return
    tell({"ready": worker.facts()})
    inbox: queue.SimpleQueue = queue.SimpleQueue()

    def listen() -> None:
        while (message := frames.read(sys.stdin.buffer)) is not None:
            inbox.put(message)
        inbox.put(None)

    threading.Thread(target=listen, daemon=True).start()
    turns(worker, inbox, tell)


if __name__ == "__main__":
    main()
