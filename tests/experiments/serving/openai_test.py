"""OpenAI's own client, unchanged."""

import math

import jax
import numpy as np
import pytest

from experiments.workdir import trained
from kernels import masks
from tests.experiments.serving import servers

pytestmark = pytest.mark.usefixtures("one_device")
openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_models(client):
    assert [model.id for model in client.models.list()] == [servers.NAME]
    assert client.models.retrieve(servers.NAME).owned_by == "tessera"
    with pytest.raises(openai.NotFoundError, match="model='?\"?other.*is not served here"):
        client.models.retrieve("other")


def test_completions_and_streams(client):
    asked = {"model": servers.NAME, "prompt": "def main(", "seed": 3, "max_tokens": 20}
    whole = client.completions.create(**asked)
    assert whole.usage.completion_tokens == 20 and whole.choices[0].finish_reason == "length"
    pieces = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].text for p in pieces[:-1]) == whole.choices[0].text
    assert pieces[-1].usage == whole.usage and len({piece.id for piece in pieces}) == 1
    several = client.completions.create(**asked | {"prompt": ["a", "b"]}, n=2, extra_body={"top_k": 1})
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text != several.choices[2].text


def test_chats_and_streams(client):
    told = [{"role": "user", "content": "say 3"}]
    asked = {"model": servers.NAME, "messages": told, "seed": 3, "max_completion_tokens": 20}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert whole.choices[0].message.role == "assistant" and whole.usage.completion_tokens == 20
    pieces = list(client.chat.completions.create(**asked, stream=True, logprobs=True, top_logprobs=2))
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == whole.choices[0].message.content
    streamed = [entry for p in pieces if p.choices[0].logprobs for entry in p.choices[0].logprobs.content]
    entries = whole.choices[0].logprobs.content
    assert [entry.bytes for entry in streamed] == [entry.bytes for entry in entries] and len(entries) == 20
    for one, other in zip(streamed, entries, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)  # One pass over fewer tokens: float32 sums.
        assert len(other.top_logprobs) == 2 and other.top_logprobs[0].logprob >= other.top_logprobs[1].logprob
    text = bytes(byte for entry in entries for byte in entry.bytes).decode("utf-8", "replace")
    assert whole.choices[0].message.content in text


def plain_law(workdir, ids):
    """log p(token | those before it) `[n - 1, V]` of ids `[n]`, by the model's training pass."""
    made = trained.load(workdir)

    @jax.jit
    def logits(params):
        model = made.program.merge(params)
        return model.logits(model(np.asarray([ids]), mask=masks.Causal()).features)[0]

    values = np.asarray(logits(made.params), np.float64)[:-1, : made.tokenizer.vocab_size]
    values -= values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def test_probabilities_are_those_of_the_model(client, server):
    """Against a pass of the model here, in the words of its own tokens; an echo reads the prompt alone."""
    prompt = "say 4 ä"
    made = client.completions.create(
        model=servers.NAME, prompt=prompt, max_tokens=6, seed=3, logprobs=3, echo=True, temperature=1.5
    ).choices[0]
    tokens = [token.removeprefix("bytes:") for token in made.logprobs.tokens]
    ids = [int(t[2:], 16) if t.startswith("\\x") else ord(t) if t != "<|eos|>" else 257 for t in tokens]
    assert ids[: len(prompt.encode())] == list(prompt.encode()) and made.text.startswith(prompt)
    law = plain_law(server.workdir, [256, *ids])
    for place, (token, own) in enumerate(zip(ids, made.logprobs.token_logprobs, strict=True)):
        assert own == pytest.approx(law[place, token], abs=1e-4)
        best = sorted(made.logprobs.top_logprobs[place].values())[-3:]
        assert best == pytest.approx(sorted(law[place])[-3:], abs=1e-4)
    assert made.logprobs.text_offset[:8] == [0, 1, 2, 3, 4, 5, 6, 6]  # Two bytes of one character begin where it does.
    read = client.completions.create(model=servers.NAME, prompt=prompt, max_tokens=0, logprobs=0, echo=True)
    assert read.choices[0].text == prompt and read.usage.completion_tokens == 0
    assert read.choices[0].logprobs.token_logprobs == pytest.approx(
        [law[place, token] for place, token in enumerate(prompt.encode())], abs=1e-4
    )
    assert math.isclose(sum(math.exp(value) for value in law[0]), 1, abs_tol=1e-4)


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.BadRequestError, match="temperature=-1 must be a number") as caught:
        client.completions.create(model=servers.NAME, prompt="a", temperature=-1)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
