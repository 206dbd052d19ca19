"""Routes: OpenAI's, those of tokenizers as vLLM has them, health, figures, and the page."""

import asyncio
import contextlib
import json
import pathlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from experiments.serving import asked as asking
from experiments.serving import fields, guard
from experiments.serving.answers import Answer, check
from experiments.serving.asked import Asked
from experiments.serving.engines import Engines, Texts
from experiments.serving.figures import Figures
from experiments.serving.wrong import Wrong

PAGE = pathlib.Path(__file__).with_name("page.html")
Handler = Callable[[Request], Awaitable[Response]]
SECURE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
GONE = 499  # How figures count a request whose client has gone.


class App:
    """The server's routes over one engine.

    Args:
      engines: under way.
      model: the name of the model.
      key: that /v1 and the like ask for; "": none.
      hosts: names under which requests may come; none: any.
    """

    def __init__(self, engines: Engines, model: str, *, key: str = "", hosts: Sequence[str] = ()):
        self.engines, self.model, self.key, self.hosts = engines, model, key, hosts
        self.figures, self.began = Figures(), int(time.time())

    def starlette(self) -> Starlette:
        """As an ASGI application."""
        posts: dict[str, Handler] = {
            "/v1/completions": self.completions,
            "/v1/chat/completions": self.chat,
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
        }
        gets: dict[str, tuple[Handler, bool]] = {  # and whether they ask for the key
            "/": (self.page, False),
            "/health": (self.health, False),
            "/metrics": (self.metrics, True),
            "/v1/models": (self.models, True),
            "/v1/models/{name}": (self.one_model, True),
            "/tokenizer_info": (self.tokenizer_info, True),
        }
        routes = [Route(path, self._guarded(path, does, True), methods=["POST"]) for path, does in posts.items()]
        routes += [
            Route(path, self._guarded(path, does, keyed), methods=["GET"]) for path, (does, keyed) in gets.items()
        ]
        return Starlette(
            routes=routes, exception_handlers={404: self._not_found, 405: self._not_found, Exception: self._failed}
        )

    def _guarded(self, path: str, does: Handler, keyed: bool) -> Handler:
        """A handler behind the checks; what is wrong becomes an answer, and each request is counted."""

        async def handler(request: Request) -> Response:
            began, status = time.monotonic(), 500
            try:
                guard.check_host(request, self.hosts)
                if keyed:
                    guard.check_key(request, self.key)
                made = await does(request)
                status = made.status_code
                return made
            except Wrong as wrong:
                status = wrong.status
                return JSONResponse(wrong.body(), wrong.status, headers=dict(wrong.headers))
            except ClientDisconnect:
                status = GONE
                return Response(status_code=GONE)  # Nobody reads it.
            finally:
                self.figures.requests[path, status] += 1
                if request.method == "POST" and status == 200:
                    self.figures.whole.add(time.monotonic() - began)

        return handler

    async def _not_found(self, request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        wrong = Wrong(f"{request.method} {request.url.path[:80]} is nothing that this server does.", status=status)
        return JSONResponse(wrong.body(), status)

    async def _failed(self, request: Request, error: Exception) -> Response:
        wrong = Wrong(f"the server failed at this request: {type(error).__name__}.", status=500, code="failed")
        return JSONResponse(wrong.body(), 500)

    # What is read.

    async def page(self, request: Request) -> Response:
        """The page for people."""
        return HTMLResponse(PAGE.read_text("utf-8"), headers=SECURE)

    async def health(self, request: Request) -> Response:
        """Whether there is an engine."""
        problem = self.engines.problem
        body = {"status": "ok", **self.engines.busy} if not problem else {"status": "no engine", "problem": problem}
        return JSONResponse(body, 503 if problem else 200)

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        engines, busy = self.engines, self.engines.busy
        return PlainTextResponse(self.figures.text({
            "tessera_up": ("gauge", "Whether there is an engine.", int(not engines.problem)),
            "tessera_lanes": ("gauge", "Lanes of the engine.", engines.lanes),
            "tessera_queue": ("gauge", "Texts that may wait for a lane.", engines.queue),
            "tessera_texts_under_way": ("gauge", "Texts that are not finished.", engines.under_way),
            "tessera_texts_running": ("gauge", "Texts in lanes.", busy["running"]),
            "tessera_texts_waiting": ("gauge", "Texts in the engine without a lane.", busy["waiting"]),
            "tessera_prefix_blocks": ("gauge", "Blocks of prompts that are kept.", busy.get("blocks", 0)),
            "tessera_prefix_blocks_used": ("gauge", "Of them, those that texts in lanes use.", busy.get("used", 0)),
            "tessera_prefix_found_total": (
                "counter", "Tokens of prompts that were found in blocks.", busy.get("hit_tokens", 0),
            ),
            "tessera_prefix_missed_total": (
                "counter", "Tokens of prompts that were looked for and not found.", busy.get("read_tokens", 0),
            ),
            "tessera_drawn_total": ("counter", "Tokens that were drawn, of given-up texts too.", busy["drawn"]),
            "tessera_engine_restarts_total": ("counter", "How often the engine was started again.", engines.restarts),
            "tessera_engine_cpu_seconds_total": ("counter", "CPU time of the engine's process.", busy["cpu"]),
            "tessera_http_cpu_seconds_total": ("counter", "CPU time of the HTTP process.", time.process_time()),
        }), media_type="text/plain; version=0.0.4")  # fmt: skip

    async def models(self, request: Request) -> Response:
        """The one model that there is."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def one_model(self, request: Request) -> Response:
        """The model, by its name."""
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        facts = {name: value for name, value in self.engines.facts.items() if name != "specials"}
        return {"id": self.model, "object": "model", "created": self.began, "owned_by": "tessera"} | {"tessera": facts}

    def _check_model(self, name: str) -> None:
        if name not in ("", self.model):
            said = f"model={fields.shown(name)} is not served here; use {fields.shown(self.model)}."
            raise Wrong(said, status=404, param="model", code="model_not_found")

    async def tokenizer_info(self, request: Request) -> Response:
        """Names of its specials."""
        names = list(self.engines.facts.get("specials", {})) or [None] * 3
        keys = ("bos_token", "eos_token", "pad_token")
        return JSONResponse(dict(zip(keys, names, strict=False)) | {"tokenizer_class": "tessera"})

    async def tokenize(self, request: Request) -> Response:
        """Ids of a text."""
        known: dict[str, fields.Read] = {"prompt": fields.text, "add_special_tokens": fields.switch}
        said = fields.taken(fields.parsed(await guard.body(request)), known | {"model": fields.passed_over})
        if "prompt" not in said:
            raise Wrong('prompt is missing; give a text, e.g. "prompt": "def main(".', param="prompt")
        event = await self._one({"do": "tokenize", "text": said["prompt"]})
        return JSONResponse({
            "tokens": event["tokens"], "count": len(event["tokens"]), "max_model_len": self.engines.facts["capacity"]
        })  # fmt: skip

    async def detokenize(self, request: Request) -> Response:
        """The text of ids."""
        known: dict[str, fields.Read] = {"tokens": asking.prompts, "model": fields.passed_over}
        said = fields.taken(fields.parsed(await guard.body(request)), known)
        ids = said.get("tokens", ({},))
        if len(ids) != 1 or "ids" not in ids[0]:
            raise Wrong('tokens must be a list of ids, e.g. "tokens": [104, 105].', param="tokens")
        event = await self._one({"do": "detokenize", "tokens": ids[0]["ids"]})
        return JSONResponse({"prompt": event["text"]})

    async def _one(self, message: dict[str, Any]) -> dict[str, Any]:
        texts = await self.engines.begin([message])
        async with contextlib.aclosing(self.engines.events(texts)) as events:
            async for event in events:
                check(event)
                return event
        raise Wrong("nothing was said.", status=500)

    # What is written.

    async def completions(self, request: Request) -> Response:
        """A text behind a prompt."""
        return await self._written(request, asking.completion(fields.parsed(await guard.body(request))))

    async def chat(self, request: Request) -> Response:
        """The answer in a conversation."""
        asked = asking.chat(fields.parsed(await guard.body(request)))
        if not self.engines.problem and not self.engines.facts["chat"]:
            raise Wrong("this model has no chat template; use /v1/completions.", code="no_template")
        return await self._written(request, asked)

    async def _written(self, request: Request, asked: Asked) -> Response:
        self._check_model(asked.model)
        self._check_bias(asked)
        began = time.monotonic()
        texts = await self.engines.begin(messages(asked))
        answer = Answer(asked, self.model)
        if asked.stream:
            return await self._streamed(request, answer, texts, began)
        await while_there(request, self._gathered(answer, texts))
        self._count(answer)
        return JSONResponse(answer.whole())

    def _check_bias(self, asked: Asked) -> None:
        size = self.engines.facts.get("vocab_size", 0)
        if size and any(id >= size for id in asked.settings.bias or {}):
            raise Wrong(f"logit_bias has an id that is not there; ids are 0 to {size - 1}.", param="logit_bias")

    def _count(self, answer: Answer) -> None:
        used = answer.usage()
        self.figures.prompt_tokens += used["prompt_tokens"]
        self.figures.drawn_tokens += used["completion_tokens"]

    async def _gathered(self, answer: Answer, texts: Texts) -> None:
        async with contextlib.aclosing(self.engines.events(texts)) as events:
            async for event in events:
                answer.take(event)

    async def _streamed(self, request: Request, answer: Answer, texts: Texts, began: float) -> Response:
        """Server-sent events. A request that is refused is an answer of its own: the first event is waited for."""
        events = self.engines.events(texts)
        try:
            first = await while_there(request, anext(events))
            answer.take(first)
        except BaseException:
            await events.aclose()
            raise
        self.figures.first.add(time.monotonic() - began)

        async def pieces() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(events):
                try:
                    for made in (*answer.first(), answer.piece(first)):
                        yield sent(made)
                    async for event in events:
                        answer.take(event)
                        yield sent(answer.piece(event))
                except Wrong as wrong:
                    yield sent(wrong.body())
                    return
                for made in answer.last():
                    yield sent(made)
                yield b"data: [DONE]\n\n"
                self._count(answer)

        return StreamingResponse(pieces(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def messages(asked: Asked) -> list[dict[str, Any]]:
    """What the engine's process is told, a message for each text."""
    seed = secrets.randbelow(asking.SEEDS) if asked.seed is None else asked.seed
    both = {
        "do": "start",
        "seed": seed,
        "settings": asked.settings.generate(),
        "alternatives": asked.alternatives,
        "echo": asked.echo,
        "streams": asked.stream,
        "drafts": asked.drafts,
        "kept": asked.kept,
    }
    return [both | {"prompt": prompt, "choice": choice} for prompt in asked.prompts for choice in range(asked.n)]


async def while_there(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, which ends when the client hangs up. Errors: ClientDisconnect."""
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def gone(request: Request) -> None:
    """Waits until the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def sent(message: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
