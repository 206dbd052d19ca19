"""Sets in prompts, in the engine: the text is that of masked whole passes, and the order of members changes no bit."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generation import engine as engines
from experiments.generation.between import parsed
from experiments.generation.text import Generator
from experiments.settings.errors import ConfigError
from kernels import masks
from models.decoding import parts as sockets
from models.decoding.control import members, sets
from tests.experiments.generation.generate_test import OPTIONS, generator, made
from tests.models.decoding.stream_test import DEFAULTS

pytestmark = pytest.mark.usefixtures("one_device")
PROMPT = "of [[red||blue||or so]], [[a||bc]]: "
SET = DEFAULTS | OPTIONS | {"control": "sets", "temperature": 0.0, "max_tokens": 6}
SET |= {"sets": SET["sets"] | {"on": True}}


@functools.cache
def plainly(prompt):
    """The greedy text by whole passes with the layout's mask and positions: no cache."""
    program, params = made()
    tokenizer = generator()[0].tokenizer
    ids = lambda text: tokenizer.encode(text).tolist()  # noqa: E731
    parts = [[tokenizer.bos], *[[*map(ids, x)] if isinstance(x, list) else ids(x) for x in members.Sets().cut(prompt)]]

    written = []
    for _ in range(6):
        laid = sets.layout([*parts, *([written] if written else [])])
        n = len(laid.tokens)
        tokens, positions, mask = np.zeros((1, 64), int), np.zeros((1, 64), int), np.eye(64, dtype=bool)
        tokens[0, :n], positions[0, :n], mask[:n, :n] = laid.tokens, laid.positions, laid.mask
        logits = np.array(last()(params, tokens, positions, mask))[n - 1]
        logits[[tokenizer.bos, tokenizer.pad]] = -np.inf
        written.append(int(logits.argmax()))
    return tokenizer.decode([t for t in written if t != tokenizer.eos])


@functools.cache
def last():
    program, _ = made()

    @jax.jit
    def logits(params, tokens, positions, mask):
        model = program.merge(params)
        return model.logits(model(tokens, mask=masks.Dense(mask), positions=positions).features)[0]

    return logits


@functools.cache
def write():
    maker, params = generator()
    return functools.partial(Generator(maker.program, maker.tokenizer), params)


def test_it_is_the_whole_pass_with_the_layouts_mask():
    different = 0
    for end in (": ", "x", "(self", "=1", "e"):
        prompt = PROMPT[:-2] + end
        flat = prompt.replace("[[", "").replace("||", "").replace("]]", "")
        found = write()([prompt], SET)[0]
        assert found == plainly(prompt)
        different += write()([flat], SET | {"sets": SET["sets"] | {"on": False}})[0] != found
    assert different


def test_places_and_what_members_see_by_hand():
    """of [x yz] [a|b] :, whose members begin at one place; what is written stands behind the longest."""
    side = {"place": jnp.array([[0, 1, 1, 2, 3, 3, 4, 9]] * 2), "many": jnp.array([7, 0]), "next": jnp.array([5, 0])}
    positions = jnp.array([[0, 2, 5, 6, 7, 8, -1]] * 2)
    found = members.Sets().placed(side, positions)
    assert found.tolist() == [[0, 1, 3, 4, 5, 6, -1], [0, 2, 5, 6, 7, 8, -1]]
    group, member = [0, 1, 1, 1, 2, 2, 0], [0, 1, 2, 2, 1, 2, 0]
    apart = [(i, j) for i in range(7) for j in range(7) if group[i] == group[j] > 0 and member[i] != member[j]]
    seen = np.asarray(sets.among(jnp.array([[*group, 5]]), jnp.array([[*member, 5]]), 7))[0]
    assert [tuple(pair) for pair in np.argwhere(~seen)] == apart and len(apart) == 6


def test_the_order_of_members_changes_nothing_at_all():
    """Order sensitivity is exactly 0: ids, positions, groups, and so every bit."""
    maker, _ = generator()
    parts = sockets.make([SET], DEFAULTS)
    first, found = None, set()
    for colours, letters in itertools.product(
        itertools.permutations(["red", "blue", "or so"]), (["a", "bc"], ["bc", "a"])
    ):
        prompt = f"of [[{'||'.join(colours)}]], [[{'||'.join(letters)}]]: "
        ids, given = parsed(parts, SET, maker.tokenizer, prompt)
        own = (ids.tolist(), *(given["sets"][name].tolist() for name in sorted(given["sets"])))
        first = first or own
        assert own == first
        found.add(prompt)
    assert len(found) == 12
    assert write()(["of [[or so||red||blue]], [[bc||a]]: "], SET)[0] == plainly(PROMPT)


def test_a_masked_set_has_no_order_even_where_it_is_not_sorted():
    """Without `ordered` the mask alone leaves the order of sums: differences are rounding, and none without sets is."""
    program, params = made()
    rng = np.random.default_rng(0)
    one, two, three = (rng.integers(0, 255, n).tolist() for n in (3, 2, 4))

    @jax.jit
    def logits(tokens, positions, mask):
        model = program.merge(params)
        return model.logits(model(tokens, mask=masks.Dense(mask), positions=positions).features)[0, -1]

    def of(order):
        laid = sets.layout([[256, 7], order, [9, 8]])
        return np.asarray(
            logits(jnp.asarray(laid.tokens[None]), jnp.asarray(laid.positions[None]), jnp.asarray(laid.mask))
        )

    a, b = of([one, two, three]), of([three, one, two])
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)  # Sums of 32 float32 in another order, through two layers.
    T = 2 + 9 + 2
    causal = jnp.tril(jnp.ones((T, T), bool))
    flat = lambda order: jnp.asarray([[256, 7, *itertools.chain(*order), 9, 8]])  # noqa: E731
    x, y = (np.asarray(logits(flat(o), jnp.arange(T)[None], causal)) for o in ([one, two, three], [three, one, two]))
    assert np.abs(x - y).max() > 0.1


def test_rows_with_and_without_sets_share_a_batch_and_an_engine():
    maker, params = generator()
    had, options = maker.program.config, SET | {"sets": SET["sets"] | {"on": False}}
    config = types.SimpleNamespace(
        seed=had.seed, data=had.data, generate=types.SimpleNamespace(to_dict=lambda: options)
    )
    trained = types.SimpleNamespace(config=config, program=maker.program, params=params, tokenizer=maker.tokenizer)
    served = engines.Engine(trained, lanes=2, capacity=64)
    on = {"sets": {"on": True}}
    ids = [served.admit(PROMPT, **on), served.admit("def "), served.admit("of [[blue||or so||red]], [[a||bc]]: ", **on)]
    found = {result.id: result.text for result in served.results()}
    assert found[ids[0]] == found[ids[2]] == plainly(PROMPT)
    assert found[ids[1]] == write()(["def "], options)[0]
    assert write()([PROMPT, "[[x||yz]]-"], SET) == [plainly(PROMPT), plainly("[[x||yz]]-")]


@pytest.mark.parametrize("prompt, says", [
    ("a [[b||c", "without ']]' behind it"), ("a]] b", "without '[[' before it"), ("[[a||]] b", "an empty member"),
    ("a [[b||c]]", "ends in a set"),
])  # fmt: skip
def test_marks_that_do_not_close_are_refused(prompt, says):
    maker, _ = generator()
    with pytest.raises(ConfigError, match=says.replace("[", r"\[")):
        parsed(sockets.make([SET], DEFAULTS), SET, maker.tokenizer, prompt)


def test_other_mixers_and_memories_are_refused():
    model = types.SimpleNamespace(mixer="gated_delta", kind="lm")
    parts = types.SimpleNamespace(memory=types.SimpleNamespace(name="window"), prefill=None)
    found = " ".join(members.Sets(open="").problems(types.SimpleNamespace(model=model), parts))
    assert all(word in found for word in ("none may be empty", "a model of attention", "generate.memory='full'"))
