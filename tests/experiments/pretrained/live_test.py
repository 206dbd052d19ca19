"""Against transformers where torch is installed: float64 logits and gradients of every case, greedy text of families.

transformers computes norms, rotary angles and softmax in float32 whatever the model's type. Here what it calls float32
is float64, so that both sides can agree to 1e-10 and nothing hides below rounding.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import pretrained
from experiments.pretrained import names, reading, writing
from kernels import masks
from kernels.cross_entropy.reference import shape_logits
from models.lm import LM
from models.spec import Spec
from tests.experiments.pretrained import cases
from tests.experiments.pretrained.pretrained_test import read

LIVE = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
pytestmark = pytest.mark.skipif(not LIVE, reason="torch and transformers are not installed")
# Rates that follow the length are computed anew for new tokens alone there, and for all of the text here.
GREEDY = [name for name in cases.CASES if name not in ("llama-dynamic", "phi3-long")]


@pytest.fixture
def wide(monkeypatch):
    """What torch calls float32 is float64."""
    import torch

    before = torch.get_default_dtype()
    for name in ("float32", "float"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", cases.CASES)
def test_logits_and_gradients_in_float64(name, tmp_path, x64, wide):
    torch, model = wide, cases.build(name, "float64")
    model.save_pretrained(tmp_path)
    weights = np.random.default_rng(5).normal(size=(*cases.IDS.shape, 29))
    theirs = model(torch.from_numpy(cases.IDS)).logits
    (theirs * torch.from_numpy(weights)).sum().backward()
    want, params = theirs.detach().numpy(), read(tmp_path, "float64")[1]
    config = pretrained.get_config(str(tmp_path)).model
    config.dtype = config.param_dtype = "float64"
    spec = Spec.from_config(config.to_dict(), vocab_size=config.vocab_size)
    graph = nnx.split(nnx.eval_shape(lambda: LM(spec, rngs=nnx.Rngs(0))), nnx.Param)[0]

    def logits(params, ids):  # `LM.logits` rounds to float32.
        model = nnx.merge(graph, params)
        found = model(ids, mask=masks.Causal()).features @ model.head_weights().T
        return shape_logits(found, spec.logit_scale, spec.softcap)

    loss = lambda p: (jnp.sum(logits(p, cases.IDS) * weights), logits(p, cases.IDS))  # noqa: E731
    gradients, got = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * np.abs(want).max())
    flat = {path: np.asarray(value) for path, value in reading.flatten(gradients).items()}
    named = writing.theirs(spec, flat, names.HUGGING_FACE[model.config.model_type])
    wanted = {key: p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}
    if model.config.model_type in ("mixtral", "qwen3_moe"):
        wanted = apart(model.config.model_type, wanted)
    if "embed_out.weight" in named and "lm_head.weight" in wanted:  # GPT-NeoX: its files keep the name.
        wanted["embed_out.weight"] = wanted.pop("lm_head.weight")
    assert {*named} == {*wanted} or {*named} - {*wanted} <= {"lm_head.weight"}
    for key, value in wanted.items():
        np.testing.assert_allclose(named[key], value, rtol=0, atol=1e-10 * max(np.abs(value).max(), 1e-3))


def apart(family, named):
    """By the names of files, a tensor an expert: in memory the library holds those of a layer as one."""
    mixtral = family == "mixtral"
    calls = {"gate": "w1", "up": "w3", "down": "w2"} if mixtral else {n: f"{n}_proj" for n in ("gate", "up", "down")}
    found = {}
    for key, value in named.items():
        key = key.replace(".mlp.", ".block_sparse_moe.") if mixtral else key
        front, _, last = key.partition(".experts.")
        halves = np.split(value, 2, axis=1) if last == "gate_up_proj" else [value]
        for part, each in zip(("gate", "up") if last == "gate_up_proj" else ("down",), halves, strict=True):
            made = {f"{front}.experts.{e}.{calls[part]}.weight": one for e, one in enumerate(each)}
            found |= made if last else {key: value}
    return found


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_text_is_theirs(name, tmp_path, x64, wide):
    model = cases.build(name, "float64")
    model.save_pretrained(tmp_path)
    count = 56 if name.startswith("gpt2") else 64  # As many as it has positions.
    ids = cases.IDS[:, :8]
    want = model.generate(
        wide.from_numpy(ids), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, 8:].numpy()  # fmt: skip
    _, params = read(tmp_path, "float64")
    config = pretrained.get_config(str(tmp_path)).model
    config.dtype = config.param_dtype = "float64"
    spec = Spec.from_config(config.to_dict(), vocab_size=config.vocab_size)
    got = np.asarray(jax.jit(lambda p: greedy(spec, p, jnp.asarray(ids), count))(params))
    np.testing.assert_array_equal(got, want)


def greedy(spec, params, ids, count):
    """`count` tokens behind `ids` [B, P], one at a time on the decoding state, `[B, count]`."""
    graph = nnx.split(nnx.eval_shape(lambda: LM(spec, rngs=nnx.Rngs(0))), nnx.Param)[0]
    model = nnx.merge(graph, params).for_decoding()
    B, P = ids.shape
    where = jnp.broadcast_to(jnp.arange(P), (B, P))
    out = model(ids, mask=masks.Causal(), positions=where, state=model.init_state(B, P + count), fresh=True)

    def step(carry, i):
        state, token = carry
        at = jnp.full((B, 1), P, jnp.int32) + i
        out = model(token[:, None], mask=masks.Causal(), positions=at, state=state)
        return (out.state, model.logits(out.features)[:, -1].argmax(-1)), token

    first = model.logits(out.features)[:, -1].argmax(-1)
    return jax.lax.scan(step, (out.state, first), jnp.arange(count))[1].T
