"""What no client should send, and more than there is room for: a clean refusal, a living server, free lanes."""

import concurrent.futures
import json
import re
import socket
import time

import pytest

from tests.experiments.serving import servers
from tests.experiments.serving.servers import LANES, QUEUE, ask, busy, text

httpx = pytest.importorskip("httpx")
JSON = {"content-type": "application/json"}


def post(server, body, headers=JSON, path="/v1/completions"):
    return httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=60)


BODIES = {
    "nothing": (b"", 400, "the body is not JSON"),
    "half of JSON": (b'{"prompt": "a', 400, "the body is not JSON"),
    "no object": (b"[1, 2]", 400, "the body is [1, 2]; send one object"),
    "no UTF-8": (b'{"prompt": "\xff\xfe"}', 400, "byte 12 of the body is not UTF-8"),
    "half a character": ('{"prompt": "ä"}'.encode()[:-3] + b'"}', 400, "is not UTF-8"),
    "half a surrogate pair": (rb'{"prompt": "\ud800"}', 400, "half of a surrogate pair"),
    "deep": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "nests too deep"),
    "large": (b'{"prompt": "' + b"a" * 10_000_000 + b'"}', 413, "longer than 1,048,576 bytes"),
    "no number": (b'{"prompt": "a", "temperature": NaN}', 400, "NaN is no number of JSON"),
    "infinite": (b'{"prompt": "a", "temperature": -Infinity}', 400, "-Infinity is no number of JSON"),
    "beyond floats": (b'{"prompt": "a", "temperature": 1e999}', 400, "temperature=Infinity must be a number from 0"),
    "long number": (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400, "the body is not JSON"),
    "negative heat": (b'{"prompt": "a", "temperature": -1}', 400, "temperature=-1 must be a number from 0 to 100"),
    "negative length": (b'{"prompt": "a", "max_tokens": -1}', 400, "max_tokens=-1 must be a whole number from 0"),
    "negative n": (b'{"prompt": "a", "n": -3}', 400, "n=-3 must be a whole number from 1"),
    "negative seed": (b'{"prompt": "a", "seed": -3}', 400, "seed=-3 must be a whole number from 0"),
    "half a number": (b'{"prompt": "a", "max_tokens": 1.5}', 400, "max_tokens=1.5 must be a whole number"),
    "true as a number": (b'{"prompt": "a", "max_tokens": true}', 400, "max_tokens=true must be a whole number"),
    "many stops": (json.dumps({"prompt": "a", "stop": ["x"] * 10_000}).encode(), 400, "stop is a list of 10,000"),
    "an empty stop": (b'{"prompt": "a", "stop": ""}', 400, "stop has a text of 0 characters"),
    "a long stop": (json.dumps({"prompt": "a", "stop": "x" * 999}).encode(), 400, "stop has a text of 999 characters"),
    "no prompt": (b"{}", 400, "prompt is missing"),
    "prompts of a kind": (b'{"prompt": {"a": 1}}', 400, "a prompt is a text, or a list of ids"),
    "no prompts": (b'{"prompt": []}', 400, "give 1 to 128 prompts"),
    "no ids": (b'{"prompt": [[]]}', 400, "a prompt is a text, or a list of ids"),
    "an id that is not there": (b'{"prompt": [259]}', 400, "prompt has the id 259; ids are 0 to 258"),
    "a bias that is not there": (b'{"prompt": "a", "logit_bias": {"259": 1}}', 400, "ids are 0 to 258"),
    "a bias of a word": (b'{"prompt": "a", "logit_bias": {"the": 1}}', 400, 'logit_bias has the id "the"'),
    "a large bias": (b'{"prompt": "a", "logit_bias": {"9": 1e9}}', 400, "logit_bias.9=1000000000.0 must be a number"),
    "a misspelt field": (b'{"prompt": "a", "temprature": 1}', 400, "did you mean temperature?"),
    "a field of nobody": (b'{"prompt": "a", "xyz": 1}', 400, '"xyz" is no field of this request'),
    "infilling": (b'{"prompt": "a", "suffix": "b"}', 400, "written from left to right"),
    "best of three": (b'{"prompt": "a", "best_of": 3}', 400, "best_of=3 with n=1"),
    "another model": (b'{"prompt": "a", "model": "gpt-9"}', 404, 'model="gpt-9" is not served here; use "tiny-run"'),
    "too long together": (b'{"prompt": "a", "max_tokens": 191}', 400, "use at most max_tokens=190"),
    "too long": (json.dumps({"prompt": "a" * 500}).encode(), 400, "use a shorter prompt"),
    "more than there are lanes": (b'{"prompt": "a", "n": 100}', 400, f"more than the {LANES + QUEUE} that this server"),
    "nothing to draw": (b'{"prompt": "a", "max_tokens": 0}', 400, 'max_tokens=0 goes with "echo": true alone'),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_cannot_be_is_refused_in_a_sentence(name, server):
    body, status, told = BODIES[name]
    answer = post(server, body)
    error = answer.json()["error"]
    assert answer.status_code == status and told in error["message"], answer.text
    assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) < 300


CHATS = {
    "no messages": ({}, "messages is missing"),
    "none": ({"messages": []}, "messages must be a list"),
    "no role": ({"messages": [{"content": "a"}]}, 'messages[0] is {"content": "a"}; it needs "role" and "content"'),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 'parts are of type "text"'),
    "tools": ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "calls no tools; leave it away"),
    "alternatives alone": ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "goes with"),
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_that_cannot_be_is_refused_in_a_sentence(name, server):
    body, told = CHATS[name]
    answer = ask(server, "/v1/chat/completions", **body)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"], answer.text


def test_only_json_for_this_host_is_read(server):
    """A page from elsewhere may send forms and plain text to any address, and may have its name led to this one."""
    assert post(server, b'{"prompt": "a"}', {"content-type": "text/plain"}).status_code == 415
    assert post(server, b'{"prompt": "a"}', JSON | {"host": "evil.example"}).status_code == 403
    assert httpx.get(f"{server.url}/v1/models", headers={"host": "evil.example:8000"}).status_code == 403
    assert "access-control-allow-origin" not in httpx.options(f"{server.url}/v1/completions").headers
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405


def connected(server):
    host, port = re.fullmatch(r"http://([\d.]+):(\d+)", server.url).groups()
    return socket.create_connection((host, int(port)), timeout=30)


def drawn(server):
    """Tokens that the engine has drawn."""
    return int(httpx.get(f"{server.url}/metrics").text.split("\ntessera_drawn_total ")[1].split("\n")[0])


def test_half_a_body_and_a_client_that_hangs_up_leave_nothing_behind(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    asked = {"prompt": "b", "max_tokens": 150, "logit_bias": {"98": 100}, "n": 32}
    with connected(server) as line:
        body = json.dumps(asked).encode()
        line.sendall(head % len(body) + body[:20])
    for more in ({}, {"stream": True}):
        body, before = json.dumps(asked | more).encode(), drawn(server)
        with connected(server) as line:
            line.sendall(head % len(body) + body)
            servers.until(lambda before=before: drawn(server) > before)
        servers.until(lambda: busy(server) == (0, 0), 10)
        assert drawn(server) - before < 32 * 150  # They were not written to their ends for nobody.
    with connected(server) as line:  # No HTTP at all.
        line.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)))
        assert line.recv(100).startswith(b"HTTP/1.1 400")
    assert len(text(server, "a", max_tokens=3, logit_bias={"97": 100})) == 3


def test_200_requests_above_capacity_are_each_answered_once(server):
    """At once, with room for 36: each has its text, or a 429 that says when to come again."""
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=0)
    body = {"max_tokens": 3, "logit_bias": {"97": 100}}
    with httpx.Client(limits=limits, timeout=120) as client, concurrent.futures.ThreadPoolExecutor(200) as pool:

        def one(number):
            answer = client.post(f"{server.url}/v1/completions", json=body | {"prompt": f"{number}"})
            return answer, time.monotonic()

        answers = [each.result() for each in [pool.submit(one, number) for number in range(200)]]
    statuses = [answer.status_code for answer, _ in answers]
    assert set(statuses) == {200, 429} and statuses.count(200) >= LANES + QUEUE
    for answer, _ in answers:
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["text"] == "aaa"
        else:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["code"] == "queue_full"
    assert len({answer.json()["id"] for answer, _ in answers if answer.status_code == 200}) == statuses.count(200)
    assert busy(server) == (0, 0)


def test_who_comes_first_is_served_first(server):
    """Texts of one length end in the order in which they were asked for, a lane's worth apart at most."""
    ended = []

    def one(number):
        ask(server, prompt="a", max_tokens=20, logit_bias={"97": 100}, seed=number)
        ended.append(number)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        asked = []
        for number in range(16):
            asked.append(pool.submit(one, number))
            servers.until(lambda number=number: busy(server)[1] + len(ended) > number)
        concurrent.futures.wait(asked)
    assert all(abs(place - number) < LANES for place, number in enumerate(ended)), ended
