"""What a draft model proposes in every round is what it writes behind the text by itself, whatever stayed before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.decoding import parts as sockets
from models.decoding import stream
from tests.models.decoding.stream_test import DEFAULTS, LENGTH, LIMIT, V, forward, key_data, model, prompts


@pytest.mark.parametrize("length", [1, 3])
def test_drafts_are_those_of_the_whole_forward_pass(length):
    """Greedy rows of which few, some or all drafts stay: the target is the draft model with noise."""
    asked = DEFAULTS | {"temperature": 0.0, "drafter": "model_draft", "model_draft": {"workdir": "w", "length": length}}
    parts = sockets.make([asked], DEFAULTS, vocab_size=V)
    graphdef, params = model("attention")
    near = jax.tree.map(lambda x: x + 0.15 * jax.random.normal(jax.random.key(x.size), x.shape), params)

    def models():
        pairs = {"model": near, "model_draft.workdir": params}
        return {name: nnx.merge(graphdef, own).for_decoding() for name, own in pairs.items()}

    @jax.jit
    def begun():
        given = (prompts(), jnp.asarray(LENGTH), jnp.asarray(LIMIT), key_data(), {})
        return stream.read(models(), stream.begin(models(), parts, *given, capacity=40), parts, 17, fresh=True)

    @jax.jit
    def turn(p):
        return parts.drafter[1].propose(models(), p, parts)[0].token, stream.round_(models(), p, parts, p.live)

    p, stayed = begun(), []
    while bool(jnp.any(p.live)):
        token, after = turn(p)
        for row in np.flatnonzero(p.live):
            n = int(p.length[row])
            text = np.zeros(40, np.int32)
            text[:n] = p.text[row, :n]
            for i in range(length):
                best = np.asarray(forward("attention")(text[None])[0, n + i - 1])
                assert best.max() - best[int(token[row, 1 + i])] < 1e-4, (row, n, i)
                text[n + i] = token[row, 1 + i]
            if n + length < LIMIT[row]:  # Else the limit has cut drafts.
                stayed.append(int(after.length[row]) - n - 1)
        p = after
    assert set(stayed) >= {0, length}, "rounds of which nothing, and of which all stays"
