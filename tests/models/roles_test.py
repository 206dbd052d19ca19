"""Roles: who a token comes from, from the data to training and to text, against rules by hand and whole passes."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
from configs import base, transformer
from data import conversations, roles
from data.loader import Loader
from data.splits import Tokens
from experiments import preflight
from experiments.generation import requests
from experiments.generation.chatting import Chat
from experiments.generation.engine import Engine
from experiments.generation.serving import cached
from experiments.generation.text import Generator
from experiments.program import build, inputs
from experiments.program.sharding import make_mesh
from experiments.settings import smoke
from experiments.settings.errors import ConfigError
from experiments.training import train
from experiments.workdir import trained
from kernels import masks
from tests.experiments import tiny as runs
from tests.plain import tiny

TALK = [
    {"role": "system", "content": "S"}, {"role": "user", "content": "é?"}, {"role": "tool", "content": "D"},
    {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"},
]  # fmt: skip


def test_kinds_become_roles_by_the_formula():
    assert [roles.role(np.arange(4), n).tolist() for n in (4, 3, 2)] == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 1]]
    assert [roles.of_message(name) for name in ("system", "developer", "user", "tool", "x", "assistant")] == [
        0, 0, 1, 2, 2, 3,
    ]  # fmt: skip


def by_hand(messages, answer=False):
    """The bytes of a ChatML text and the kind of each: an answer begins behind what announces it."""
    text, kinds = b"", []
    for i, message in enumerate(messages):
        kind = {"system": 0, "user": 1, "assistant": 3}.get(message["role"], 2)
        head, body = f"<|im_start|>{message['role']}\n".encode(), f"{message['content']}<|im_end|>\n".encode()
        before = kinds[-1] if kind == 3 and i else kind
        text, kinds = text + head + body, kinds + [before] * len(head) + [kind] * len(body)
    if answer:
        more = b"<|im_start|>assistant\n"
        text, kinds = text + more, kinds + kinds[-1:] * len(more)
    return list(text), kinds


def test_messages_are_the_kinds_of_their_tokens():
    tokenizer = data.ByteTokenizer()
    made = conversations.encoded(json.dumps({"messages": TALK}).encode(), tokenizer, "chatml")
    text, kinds = by_hand(TALK)
    assert made.ids.tolist() == [tokenizer.bos, *text] and made.kinds.tolist() == [0, *kinds]
    np.testing.assert_array_equal(made.scored, made.kinds == roles.OUTPUT)
    said = Chat(tokenizer, "chatml").spoken(TALK[:3])
    assert (said.ids.tolist(), said.kinds.tolist()) == by_hand(TALK[:3], answer=True) and not said.scored.any()
    made = conversations.encoded(b'{"prompt": "ab", "completion": "c"}', tokenizer, "")
    assert made.kinds.tolist() == [1, 1, 1, 3, 3]


def test_where_a_template_hides_where_a_message_ends_the_least_trusted_kind_counts():
    pytest.importorskip("jinja2")
    template = "{% if messages|length == 1 %}!{% endif %}{% for m in messages %}{{ m.content }};{% endfor %}"
    ids = data.ByteTokenizer()
    text, parts = conversations.segments(TALK[:4], template, ids)
    assert text == "S;é?;D;a;" and parts == [(0, 5, 1), (5, 7, 2), (7, 9, 3)]


def tokens():
    """Two documents of nine and seven tokens, with kinds."""
    kinds = np.array([0, 0, 1, 1, 2, 3, 3, 1, 3, 1, 1, 3, 3, 3, 2, 3], np.uint8)
    scored = (kinds == 3) & (np.arange(16) != 0)
    return Tokens(np.arange(16, dtype=np.uint8), np.array([0, 9]), 16, scored=scored, kinds=kinds)


@pytest.mark.parametrize("packing", ["stream", "first_fit", "alone"])
def test_every_packing_keeps_a_token_and_its_kind_together(packing):
    loader = Loader(tokens(), batch_size=2, length=5, pad=99, shuffle=False, epochs=1, packing=packing, kinds=True)
    seen = {}
    for step in range(len(loader)):
        batch = loader.batch(step)
        held = batch["segment_ids"] > 0
        seen |= dict(zip(batch["tokens"][held].tolist(), batch["kinds"][held].tolist(), strict=True))
    assert [seen[token] for token in range(16)] == tokens().kinds.tolist()
    assert "kinds" not in Loader(tokens(), batch_size=2, length=5, pad=99, packing=packing).batch(0)


def test_a_task_gives_its_prompt_and_its_answer():
    config = base.get_config()
    config.data.update({"source": "task:arithmetic", "name": "digits=2", "length": 12, "batch_size": 4})
    config.model.roles = 2
    corpus = inputs.load(config)
    batch = inputs.prepare(config, corpus, inputs.train_loader(config, corpus).batch(0))
    assert "kinds" not in batch and batch["roles"].dtype == np.int32
    before = np.concatenate([np.zeros((4, 1), bool), batch["scored"][:, :-1]], axis=1)
    np.testing.assert_array_equal(batch["roles"], before)
    assert 0 < batch["roles"].sum() < batch["roles"].size
    config.model.roles = 4
    with pytest.raises(ConfigError, match=r"model.roles=4 .* its tokens are user, output .*; use model.roles=2."):
        inputs.check_roles(config, corpus)


def test_given_text_is_a_users_and_plain_text_has_no_roles():
    config, plain = base.get_config(), Tokens(np.arange(16, dtype=np.uint8), np.array([0, 9]), 16)
    corpus = types.SimpleNamespace(train=plain)
    config.model.roles = 2
    with pytest.raises(ConfigError, match=r"model.roles=2 are more than the data has: .* output .*; use model.roles=0"):
        inputs.check_roles(config, corpus)
    config.data.given = 3
    inputs.check_roles(config, corpus)
    batch = Loader(plain, batch_size=1, length=16, pad=0, shuffle=False, kinds=True).batch(0)
    made = inputs.prepare(config, types.SimpleNamespace(train=plain), batch)
    assert made["roles"][0].tolist() == [0] * 3 + [1] * 6 + [0] * 3 + [1] * 4
    config.model.roles = 3  # Instructions, data, output: there is no data.
    with pytest.raises(ConfigError, match="its tokens are user, output .* use model.roles=2"):
        inputs.check_roles(config, corpus)


@pytest.mark.parametrize("changes, says", [
    ({"objective": "masked_diffusion", "model.roles": 2}, "model.roles=2 wants to know .*use objective='next_token'"),
    ({"model.roles": 1}, "model.roles=1 adds one vector to all tokens; use model.roles=2"),
])  # fmt: skip
def test_what_cannot_be_is_refused(changes, says):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=says):
        preflight.check(config, num_devices=1)


@pytest.mark.parametrize("name", ["next_token", "remaining", "exits"])
def test_objectives_tell_the_model_the_roles_of_packed_rows(name, x64):
    """The loss of the next token by the plain model: each document of a row as if it stood alone."""
    made, batch = tiny.program(tiny.config(name, model__roles=3)), tiny.batch()
    batch["roles"] = np.random.default_rng(5).integers(0, 3, batch["tokens"].shape).astype(np.int32)
    params = made.init()["params"]
    params["roles"] = jnp.asarray(np.random.default_rng(6).normal(size=(3, 8)))

    def loss(params):
        return made.objective.loss(made.merge(params), batch, jax.random.key(0)).means["nll"]

    got, plain = jax.jit(loss)(params), jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    total = 0.0
    for row in range(4):
        for segment in (1, 2):
            at = np.flatnonzero(batch["segment_ids"][row] == segment)
            told = {"segments": np.ones(len(at)), "positions": np.arange(len(at))}
            features = tiny.features(plain, batch["tokens"][row][at], **told, roles=batch["roles"][row][at])
            log_p = tiny.log_probs(plain, features)
            for j, t in enumerate(at):
                total -= batch["scored"][row, t] * log_p[j, batch["targets"][row, t]]
    np.testing.assert_allclose(got.total, total, rtol=1e-6)


def test_untrained_roles_are_the_plain_model_bit_for_bit_and_untold_ones_are_an_error(x64):
    plain, with_roles = tiny.program(tiny.config("remaining")), tiny.program(tiny.config("remaining", model__roles=4))
    first, second = plain.init()["params"], with_roles.init()["params"]
    assert not np.any(second["roles"]) and "roles" not in first
    assert all(map(np.array_equal, *map(jax.tree.leaves, (first, {k: v for k, v in second.items() if k != "roles"}))))
    ids = jnp.asarray(tiny.batch()["tokens"])
    told = {"roles": ids % 4}
    run = lambda made, params, **told: made.merge(params)(ids, mask=masks.Causal(), **told).features  # noqa: E731
    assert np.array_equal(jax.jit(lambda: run(plain, first))(), jax.jit(lambda: run(with_roles, second, **told))())
    with pytest.raises(ValueError, match="model.roles=4, and this pass does not tell who a token comes from"):
        run(with_roles, second)
    with pytest.raises(ValueError, match="model.roles=0, and this pass tells who"):
        run(plain, first, **told)


# Text.

PROMPT, PLAIN = "<|system|>Be kind.<|data|>x = 3<|user|>add", "def main("
OPTIONS = base.get_config().generate.to_dict() | {"max_tokens": 8, "temperature": 0.0}


@functools.cache
def made(devices=1):
    config = smoke.shrink(transformer.get_config("tiny"))
    config.model.update({"init": "fan_in", "init_std": 0.5, "roles": 4})
    config.mesh.data = devices
    program = build(config.lock(), vocab_size=259, mesh=make_mesh(config, jax.devices()[:devices]))
    params, D = program.init()["params"], config.model.width
    params["roles"] = jax.device_put(
        np.random.default_rng(0).normal(size=(4, D)).astype(np.float32) * 3, params["roles"].sharding
    )
    return types.SimpleNamespace(config=config, program=program, params=params, tokenizer=data.ByteTokenizer())


@functools.cache
def written(text, kinds):
    """A greedy text by whole passes."""
    model, tokenizer = made(), data.ByteTokenizer()
    ids, role = [tokenizer.bos, *text.encode()], [*kinds]

    @jax.jit
    def best(ids, role):
        one = model.program.merge(model.params)
        logits = one.logits(one(ids, mask=masks.Causal(), roles=role).features)
        banned = jnp.isin(jnp.arange(logits.shape[-1]), jnp.asarray([tokenizer.bos, tokenizer.pad]))
        return jnp.argmax(jnp.where(banned | (jnp.arange(logits.shape[-1]) >= 259), -jnp.inf, logits), axis=-1)

    for _ in range(8):
        row = lambda x: jnp.asarray([x + [0] * (64 - len(x))])  # noqa: E731
        ids.append(int(best(row(ids), row(role))[0, len(ids) - 1]))
        role.append(3)
        if ids[-1] == tokenizer.eos:
            break
    out = ids[1 + len(text.encode()) :]
    return tokenizer.decode([i for i in out if i != tokenizer.eos])


def marked(on):
    return OPTIONS | {"roles": {"marked": on}}


KINDS = (0,) + (0,) * 8 + (2,) * 5 + (1,) * 3


@pytest.mark.parametrize("devices", [1, 2])
def test_text_is_written_by_the_roles_of_its_prompt(devices):
    """Marked, not marked; on several devices; the output's role behind the prompt."""
    model = made(devices)
    maker = Generator(model.program, model.tokenizer)
    bare = "Be kind.x = 3add"
    want = written(bare, KINDS)
    assert maker(model.params, [PROMPT, PROMPT], marked(True)) == [want] * 2
    assert maker(model.params, [bare, PLAIN], marked(False)) == [
        written(bare, (1,) * (1 + len(bare))), written(PLAIN, (1,) * (1 + len(PLAIN))),
    ]  # fmt: skip
    assert want != written(bare, (1,) * (1 + len(bare)))


def test_lanes_serve_chats_with_their_roles_beside_plain_prompts():
    model = made()
    engine = Engine(model, lanes=2, capacity=64, max_tokens=8, temperature=0.0)
    ids = np.array([256, *b"Be kind.x = 3add"], np.int32)
    first = engine.admit(requests.Spoken(ids, np.array(KINDS, np.uint8)), number=0)
    second, third = engine.admit(PLAIN), engine.admit(PROMPT, roles={"marked": True})
    found = {result.id: result.text for result in engine.results()}
    want = written("Be kind.x = 3add", KINDS)
    assert found == {first: want, second: written(PLAIN, (1,) * (1 + len(PLAIN))), third: want}
    with pytest.raises(ConfigError, match=r"model.roles=4 .* cache of beginnings"):
        cached.CachedEngine(model, lanes=2, capacity=64)
    with pytest.raises(ConfigError, match="generate.control='sets' reads prompts in its own way"):
        Engine(model, lanes=2, capacity=64, control="sets")


@pytest.mark.usefixtures("one_device")
def test_a_chat_is_learned_saved_and_answered(tmp_path):
    file = tmp_path / "talks.jsonl"
    talks = [[{**m, "content": f"{m['content']} {i}"} for m in TALK] for i in range(60)]
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    chat = {"data__source": "chat", "data__path": str(file), "data__template": "chatml", "data__length": 224}
    train(runs.config(tmp_path, **chat, data__packing="alone", model__roles=4), tmp_path / "run", quiet=True)
    model = trained.load(tmp_path / "run")
    assert np.all(np.any(np.asarray(model.params["roles"]) != 0, axis=1))  # Each role came in the data.
    text = Engine(model, lanes=1, capacity=128, chat=True, max_tokens=4).generate(["hello"])
    assert len(text) == 1
