"""Who may ask, where the server listens, how it ends, and what it says when it cannot begin."""

import functools
import importlib.util
import json
import os
import signal
import socket

import pytest

from experiments.serving import server as serving
from experiments.serving.figures import Figures
from experiments.serving.frames import packed
from experiments.serving.frames import read as read_frame
from experiments.serving.server import Serving
from experiments.settings.errors import Refused
from tests.experiments.serving import servers

httpx = pytest.importorskip("httpx")
KEY = "a key of ä"


@pytest.fixture(scope="module")
def locked(workdir):
    """A server with a key, whose engine drafts and reads prompts in chunks."""
    for name in ("starlette", "uvicorn"):
        pytest.importorskip(name)
    chunks = ("--config.generate.engine.scheduler=sarathi", "--config.generate.engine.budget=16")
    made = servers.started(workdir, "--lanes=2", "--config.generate.drafter=lookup", *chunks, TESSERA_API_KEY=KEY)
    yield made
    if made.process.poll() is None:
        made.end()


def test_without_the_key_nothing_is_said_of_the_model(locked):
    for headers in ({}, {"authorization": "Bearer other"}, {"authorization": f"Bearer {KEY}x".encode()}):
        answer = httpx.post(f"{locked.url}/v1/completions", json={"prompt": "a"}, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
        assert "key" in answer.json()["error"]["message"] and KEY not in answer.text
        for path in ("/v1/models", "/metrics", "/tokenizer_info"):
            assert httpx.get(f"{locked.url}{path}", headers=headers).status_code == 401
    right = {"authorization": f"Bearer {KEY}".encode()}
    assert httpx.get(f"{locked.url}/v1/models", headers=right).json()["data"][0]["tessera"]["lanes"] == 2
    assert httpx.get(f"{locked.url}/health").status_code == httpx.get(f"{locked.url}/").status_code == 200


def test_a_text_says_which_of_its_tokens_were_drafted(locked):
    body = {"prompt": "say aaaa", "max_tokens": 40, "logit_bias": {"97": 100}, "logprobs": 1}
    right = {"authorization": f"Bearer {KEY}".encode()}
    made = httpx.post(f"{locked.url}/v1/completions", json=body, headers=right, timeout=60).json()["choices"][0]
    told = httpx.post(
        f"{locked.url}/v1/completions", json=body | {"return_drafts": True}, headers=right, timeout=60
    ).json()["choices"][0]
    assert told["text"] == made["text"] == "a" * 40 and "drafted" not in made
    assert len(told["drafted"]) == len(told["logprobs"]["tokens"]) == 40
    # The latest place that looks like the end of "aaaa" has one token behind it: a draft and an own token each round.
    assert told["drafted"] == [True, False] * 20


def test_sigterm_finishes_what_is_under_way_and_takes_no_more(locked):
    body = {"prompt": "a", "max_tokens": 150, "logit_bias": {"257": -100}, "seed": 7, "temperature": 1.5}
    right = {"authorization": f"Bearer {KEY}".encode()}
    whole = httpx.post(f"{locked.url}/v1/completions", json=body, headers=right, timeout=60).json()["choices"][0]
    body["stream"] = True
    (child,) = servers.children(locked.process.pid)
    with httpx.stream("POST", f"{locked.url}/v1/completions", json=body, headers=right, timeout=60) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        os.kill(locked.process.pid, signal.SIGTERM)
        servers.until(lambda: not listens(locked.url))
        rest = [line for line in lines if line]
    told = [json.loads(line.removeprefix("data: ")) for line in (first, *rest[:-1])]
    assert "".join(piece["choices"][0]["text"] for piece in told) == whole["text"] and rest[-1] == "data: [DONE]"
    assert locked.process.wait(30) == 0
    servers.until(lambda: not os.path.exists(f"/proc/{child}"))


def listens(url):
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.socket() as line:
        return line.connect_ex((host, int(port))) == 0


def test_what_cannot_be_served_is_refused_in_a_sentence(monkeypatch):
    with pytest.raises(Refused, match="--port=70000 must be from 0 to 65535, e.g. --port=8000."):
        serving.check(Serving("m", port=70000))
    with pytest.raises(Refused, match="--lanes=0 must be from 1 to 4096, e.g. --lanes=8."):
        serving.check(Serving("m", lanes=0))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Refused, match=f"--port={port} cannot be listened at: address already in use; use e.g."):
            serving.listening(Serving("m", port=port))
    with serving.listening(Serving("m", port=0)) as place:
        assert place.proto == socket.IPPROTO_TCP  # Else asyncio leaves Nagle's algorithm on.
        socket.create_connection(place.getsockname(), timeout=5).close()  # Before anybody serves.
    with pytest.raises(Refused, match="--host=no.such.host.example --port=0 cannot be listened at"):
        serving.listening(Serving("m", host="no.such.host.example", port=0))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    with pytest.raises(Refused, match="--mode=serve needs uvicorn; pip install -r requirements-serve.txt."):
        serving.check(Serving("m"))


def broken():
    """Loads no model."""
    raise Refused("there is no model here; train one.")


def killed():
    """Ends the process that is to load a model."""
    os._exit(3)


@pytest.mark.parametrize(
    ("load", "told"), [(broken, "there is no model here; train one."), (killed, "ended with code 3 as it started")]
)
def test_a_model_that_cannot_be_loaded_ends_the_command(load, told):
    with pytest.raises(Refused, match=told):
        serving.serve(functools.partial(load), Serving("m", port=0))


def test_another_host_is_for_others_with_a_warning(capsys):
    assert Serving("m").hosts and Serving("m", host="::1").loopback and Serving("m", host="localhost").loopback
    assert not Serving("m", host="0.0.0.0").hosts and Serving("m", host="::1").url(5) == "http://[::1]:5"
    serving._say(Serving("m", host="0.0.0.0"), 5, "")
    assert "warning: --host=0.0.0.0 lets anybody who reaches this machine use" in capsys.readouterr().err
    serving._say(Serving("m", host="0.0.0.0"), 5, "key")
    assert "whoever reaches this machine and has the key of TESSERA_API_KEY" in capsys.readouterr().err
    serving._say(Serving("m"), 5, "")
    out = capsys.readouterr()
    assert not out.err and out.out.startswith("m is served at http://127.0.0.1:5 ")
    assert [serving.model_name(name) for name in ("a b/../c", "..", "", "run-1")] == [
        "a-b-..-c",
        "..",
        "model",
        "run-1",
    ]


def test_figures_are_prometheus_text():
    figures = Figures()
    figures.requests["/v1/completions", 200] += 2
    for seconds in (0.01, 0.02, 200.0):
        figures.first.add(seconds)
    lines = figures.text({"tessera_up": ("gauge", "Whether.", 1)}).splitlines()
    assert 'tessera_requests_total{route="/v1/completions",status="200"} 2' in lines
    buckets = [line.split()[-1] for line in lines if line.startswith("tessera_first_token_seconds_bucket")]
    assert buckets == ["1", "2", "2", "2", "2", "2", "2", "2", "2", "3"]
    assert lines[-3:] == ["# HELP tessera_up Whether.", "# TYPE tessera_up gauge", "tessera_up 1"]


def test_frames_end_where_the_pipe_does(tmp_path):
    whole = packed({"text": "ä" * 50}) + packed([1])
    for cut in (len(whole), len(whole) - 1, 3, 0):
        (tmp_path / "pipe").write_bytes(whole[:cut])
        with open(tmp_path / "pipe", "rb") as pipe:
            told = [read_frame(pipe), read_frame(pipe), read_frame(pipe)]
        assert told == ([{"text": "ä" * 50}] * (cut > 100) + [[1]] * (cut == len(whole)) + [None] * 3)[:3]
    (tmp_path / "pipe").write_bytes(b"\xff" * 9)
    with open(tmp_path / "pipe", "rb") as pipe, pytest.raises(ValueError, match="is longer than 67,108,864"):
        read_frame(pipe)


def test_retry_after_is_what_the_last_texts_took():
    from experiments.serving.engines import Engines

    engines = Engines(broken, 2, 2)
    assert engines.retry_after(5) == 1  # Nothing has ended yet.
    import time

    now = time.monotonic()
    engines._ends.extend(now - 20 + 2 * i for i in range(10))  # One each two seconds.
    assert engines.retry_after(5) == pytest.approx(10, abs=1) and engines.retry_after(500) == 60
