"""The server as clients see it: texts are those of --mode=generate, alone or in company; streams; a killed engine."""

import concurrent.futures
import json
import os
import pathlib
import signal

import pytest

from experiments import modes
from experiments import workdir as files
from tests.experiments.cli_test import flags
from tests.experiments.serving import servers
from tests.experiments.serving.servers import LANES, TOKENS, ask, busy, text

httpx = pytest.importorskip("httpx")
PROMPTS = ["a", "def main(", "x" * 37, "say 3", "ä€", "hello world " * 5, "say 4", "b"]


@pytest.fixture(scope="module")
def written(workdir, one_device):
    """What --mode=generate writes, by prompt and how often it came before, with and without chat."""
    made = {}
    for chat in (False, True):
        path = workdir.parent / f"prompts{chat:d}"
        path.write_text("\n".join(PROMPTS[:2] if chat else [*PROMPTS, PROMPTS[0], PROMPTS[0]]) + "\n")
        given = flags(mode="generate", workdir=str(workdir), prompts=str(path), output=f"{path}.jsonl")
        changes = {"seed": "7", "generate.chat": str(chat), "generate.max_tokens": str(TOKENS)}
        modes.run(given, [*changes.items()])
        seen = {}
        for line in sorted(
            map(json.loads, pathlib.Path(f"{path}.jsonl").read_text().splitlines()), key=lambda line: line["index"]
        ):
            count = seen[line["prompt"]] = seen.get(line["prompt"], -1) + 1
            made[line["prompt"], count, chat] = line["text"]
    return made


def events(server, path="/v1/completions", **body):
    """The events of a stream."""
    with httpx.stream("POST", f"{server.url}{path}", json=body | {"stream": True}, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_text_is_that_of_generate(server, written):
    answer = ask(server, prompt=PROMPTS, seed=7).json()
    assert [choice["text"] for choice in answer["choices"]] == [written[prompt, 0, False] for prompt in PROMPTS]
    several = ask(server, prompt=PROMPTS[0], seed=7, n=3).json()
    assert [choice["text"] for choice in several["choices"]] == [written[PROMPTS[0], i, False] for i in range(3)]
    assert several["usage"]["prompt_tokens"] == 2 and len({written[PROMPTS[0], i, False] for i in range(3)}) == 3
    assert text(server, PROMPTS[0], seed=8) != written[PROMPTS[0], 0, False]
    assert ask(server, prompt=PROMPTS[3]).json() != ask(server, prompt=PROMPTS[3]).json()  # A seed of its own each.


def test_ids_and_chats_are_read_as_generate_reads_them(server, written):
    ids = ask(server, "/tokenize", prompt=PROMPTS[1]).json()["tokens"]
    assert ids == list(PROMPTS[1].encode())
    assert ask(server, "/detokenize", tokens=ids).json() == {"prompt": PROMPTS[1]}
    assert text(server, ids) == text(server, [256, *ids]) == written[PROMPTS[1], 0, False]
    for prompt in PROMPTS[:2]:
        told = [{"role": "user", "content": prompt}]
        answer = ask(server, "/v1/chat/completions", messages=told, seed=7).json()
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": written[prompt, 0, True]}
        pieces = events(server, "/v1/chat/completions", messages=told, seed=7)
        assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(p["choices"][0]["delta"]["content"] for p in pieces) == written[prompt, 0, True]
    more = [{"role": "system", "content": "s"}, *told, {"role": "assistant", "content": "b"}, *told]
    assert ask(server, "/v1/chat/completions", messages=more, seed=7).json()["usage"]["prompt_tokens"] > 90


def test_a_stream_has_the_same_text_in_whole_characters(server, written):
    for prompt in PROMPTS[:5]:
        pieces = events(server, prompt=prompt, seed=7, stream_options={"include_usage": True})
        told = [piece["choices"][0]["text"] for piece in pieces[:-1]]
        assert "".join(told) == written[prompt, 0, False] and len(told) > 2
        assert pieces[-1]["choices"] == [] and pieces[-1]["usage"]["completion_tokens"] <= TOKENS
        assert [p["choices"][0]["finish_reason"] for p in pieces[:-2]] == [None] * (len(pieces) - 2)
        assert pieces[-2]["choices"][0]["finish_reason"] in ("length", "stop")


def test_texts_are_the_same_among_32_clients_that_come_and_go(server, written):
    """Each asks a few times, as a stream or whole, with neighbours that set all else; some hang up midway."""

    def client(number):
        made = []
        for turn in range(3):
            prompt = PROMPTS[(number + turn) % len(PROMPTS)]
            if number % 4 == 1:
                other = {"temperature": 0, "frequency_penalty": 1.5, "logit_bias": {"97": 5}, "stop": ["a"]}
                assert ask(server, prompt=prompt, seed=number, **other, max_tokens=5 + turn).status_code == 200
            elif number % 4 == 2:
                body = {"prompt": prompt, "stream": True, "seed": number}
                with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120) as answer:
                    next(answer.iter_bytes())
            elif number % 4 == 3:
                pieces = events(server, prompt=prompt, seed=7)
                made.append((prompt, "".join(piece["choices"][0]["text"] for piece in pieces)))
            else:
                made.append((prompt, text(server, prompt)))
        return made

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        made = [pair for pairs in pool.map(client, range(32)) for pair in pairs]
    assert len(made) == 48
    assert all(told == written[prompt, 0, False] for prompt, told in made)
    servers.until(lambda: busy(server) == (0, 0))


def test_a_beginning_that_was_read_is_not_read_again(server, written):
    """As usage and the figures say it; 64 of 70 tokens are whole blocks."""
    page = lambda: httpx.get(f"{server.url}/metrics").text  # noqa: E731
    found = lambda: int(page().split("\ntessera_prefix_found_total ")[1].split("\n")[0])  # noqa: E731
    before, head = found(), "something that nobody has said before now, and that is long: "
    answers = [ask(server, prompt=f"{head} {i} of 4", seed=7, max_tokens=4).json() for i in range(4)]
    assert [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers] == [0, 32, 32, 32]
    again = ask(server, "/v1/completions", prompt=[f"{head} 0 of 4", "b"], n=2, seed=7, max_tokens=4).json()
    assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": 64}
    assert again["choices"][0]["text"] == answers[0]["choices"][0]["text"]
    assert found() - before == 96 + 128


def test_settings_of_a_request_are_its_own(server):
    plain = text(server, "a", max_tokens=8)
    assert text(server, "a", max_tokens=8, temperature=0.8, top_p=1, top_k=0, min_p=0, presence_penalty=0) == plain
    biased = text(server, "a", max_tokens=8, logit_bias={"97": 100})
    assert biased == "a" * 8
    first = text(server, "a", max_tokens=8, logit_bias={"97": 100}, frequency_penalty=60)
    assert first.startswith("aa") and first != biased  # 100 - 60 n: twice it is the largest by far.
    assert text(server, "a", max_tokens=8, logit_bias={"97": 100}, stop="aaa") == ""
    stopped = ask(server, prompt="a", max_tokens=8, logit_bias={"97": 100}, stop=["aaa"], echo=True).json()
    assert stopped["choices"][0]["finish_reason"] == "stop" and stopped["choices"][0]["text"] == "a"
    assert stopped["usage"]["completion_tokens"] == 0
    assert text(server, "a", max_tokens=4, top_k=1, temperature=50) == text(server, "a", max_tokens=4, temperature=0)


def test_the_http_process_imports_no_jax(server):
    maps = pathlib.Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "jaxlib" not in maps and "/numpy/" not in maps


def test_a_killed_engine_ends_its_texts_with_a_sentence_and_is_started_again(server, written):
    (child,) = servers.children(server.process.pid)
    with concurrent.futures.ThreadPoolExecutor(LANES + 4) as pool:
        asked = [pool.submit(ask, server, prompt=f"say {i}", max_tokens=150, n=11) for i in range(3)]
        streamed = pool.submit(
            lambda: httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 150, "stream": True})
        )
        servers.until(lambda: busy(server)[0] > 0)
        os.kill(child, signal.SIGKILL)
        answers = [each.result(60) for each in asked]
        streamed.result(60)
    assert 500 in {answer.status_code for answer in answers} <= {200, 500, 503}  # 200: written before.
    for answer in (answer for answer in answers if answer.status_code != 200):
        assert "ask" in answer.json()["error"]["message"] and answer.json()["error"]["type"] == "server_error"
    assert httpx.get(f"{server.url}/health").status_code in (503, 200)
    servers.until(lambda: httpx.get(f"{server.url}/health").status_code == 200)
    assert "tessera_engine_restarts_total 1" in httpx.get(f"{server.url}/metrics").text
    assert text(server, PROMPTS[0]) == written[PROMPTS[0], 0, False]


def test_the_model_has_a_name_and_no_path(server):
    (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert model["id"] == servers.NAME and str(server.workdir) not in json.dumps(model)
    assert httpx.get(f"{server.url}/v1/models/{servers.NAME}").json() == model
    for path in ("/v1/models/../../etc/passwd", "/etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/%2e%2e%2fx"):
        answer = httpx.get(f"{server.url}{path}")
        assert answer.status_code == 404 and set(answer.json()) == {"error"}
    assert files.CONFIG not in httpx.get(f"{server.url}/").text
