"""What goes with what: the page is what the code says, and every "yes" of it is traced in a decoder with both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.gallery import composition
from experiments.generation.decoder import Hosts
from models.decoding import parts as sockets
from models.decoding import stream
from models.lm import LM
from models.objectives import exits, remaining
from tests.models.decoding.stream_test import DEFAULTS, LENGTH, V
from tests.models.lm_test import make

pytestmark = pytest.mark.usefixtures("one_device")
SMALL = {
    "constraint": {"states": 8, "classes": 8}, "beam": {"beams": 2}, "best_of_n": {"n": 2, "choose": "majority"},
    "cntp": {"places": 2, "length": 2}, "adadec": {"candidates": 2, "length": 1}, "semantic": {"length": 1},
    "superposed": {"drafts": 2, "alpha": 0.5, "top": 4, "size": 8}, "trie": {"size": 4},
    "window": {"size": 8}, "h2o": {"budget": 8, "recent": 4},
}  # fmt: skip


@functools.cache
def cells():
    return composition.cells()


def test_the_page_is_what_the_code_says():
    """Else run: python -m experiments.gallery.composition."""
    text = composition.PLACE.read_text()
    assert text == composition.page(text)


@functools.cache
def model():
    spec = make(num_layers=2).spec
    heads = {**exits.Exits().heads(spec), **remaining.Remaining().heads(spec)}
    return nnx.split(LM(spec, rngs=nnx.Rngs(0), heads=heads))


def traced(control, **changes):
    """Shapes of three rows after their prompts and rounds, nothing compiled."""
    options = (
        DEFAULTS | {name: DEFAULTS[name] | group for name, group in SMALL.items()} | {"control": control} | changes
    )
    parts = sockets.make([options] * 3, DEFAULTS, vocab_size=V, every=True, eos=V - 2)
    graphdef, params = model()

    def go(params, text):
        one = nnx.merge(graphdef, params).for_decoding()
        models = {"model": one, "hosts": Hosts(), **{f"{name}.workdir": one for name in ("r2r", "nudging", "gedi")}}
        length, key = jnp.asarray(LENGTH), jnp.zeros((3, 2), jnp.uint32)
        p = stream.begin(models, parts, text, length, length + 5, key, sockets.dials([options] * 3, parts))
        p = stream.read(models, p, parts, 17, fresh=True)
        return p, stream.extend(models, p, parts, 9)

    before, after = jax.eval_shape(go, params, jax.ShapeDtypeStruct((3, 32), jnp.int32))
    return jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)


WAYS = {
    "drafts in a chain": {"drafter": "lookup"}, "a tree of drafts": {"drafter": "trie"},
    "memories that drop tokens": {"memory": "h2o"},
}  # fmt: skip


@pytest.mark.parametrize("control", [name for name in composition.CONTROLS if name not in composition.SAMPLING])
def test_what_goes_together_is_traced(control):
    assert traced(control)
    for column, found in zip(composition.COLUMNS, cells()[control], strict=True):
        if not found and column in WAYS:
            assert traced(control, **WAYS[column]), column


def test_what_is_off_for_all_rows_is_not_in_the_program():
    """Parts are static under jit: equal ones are one program. Every control that is at its defaults is left out."""
    plain = sockets.make([composition.settings("")], DEFAULTS, vocab_size=V)
    for name in cells():
        assert sockets.make([composition.settings(name)], DEFAULTS, vocab_size=V) == plain, name


def test_refusals_are_sentences_that_name_the_control():
    said = [says for row in cells().values() for says in row[:3] if says]
    assert said and all("generate.control=" in says and says.endswith((".", "'.")) for says in said)
    assert set(np.unique([row[-1] for row in cells().values()])) == {"no such objective reads it"}
