"""A kernel is cut as its op's table says for the chip at hand, and means the same however it is cut."""

import concurrent.futures
import contextvars
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import bench
from experiments.bench import ops, tune
from experiments.bench.comparison import Planned
from experiments.settings.errors import Refused
from kernels import choices, masks
from kernels.attention import attention, gpu_hopper
from kernels.attention.scoring import Result, Scoring
from kernels.cross_entropy import gpu as cross_gpu
from kernels.cross_entropy import tpu as cross_tpu
from kernels.cross_entropy.reference import Options
from kernels.grouped_matmul import tiled
from kernels.grouped_matmul.reference import grouped_matmul_reference
from kernels.lact import gpu as lact_gpu
from kernels.lact import tpu as lact_tpu

HERE = jax.devices()[0]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder of tables of its own."""
    monkeypatch.setattr(choices, "ROOT", tmp_path)
    choices.table.cache_clear()
    (tmp_path / "op").mkdir()
    yield tmp_path
    choices.table.cache_clear()


def write(*row):
    path, contents = choices.edited(*row)
    path.write_bytes(contents)
    choices.table.cache_clear()


def test_the_table_answers_on_its_chip_and_nowhere_else(tables):
    ask = lambda platform=HERE.platform: choices.chosen("op", "kernel, H 64", platform, (128, 64), ((64, 64),))  # noqa: E731
    assert ask() == (128, 64)
    write("op", HERE.device_kind, "kernel, H 64", {"choice": (64, 64)})
    assert ask() == (64, 64) and ask("tpu") == (128, 64)
    write("op", "another chip", "kernel, H 64", {"choice": (32, 32)})
    assert ask() == (64, 64)
    assert set(json.loads((tables / "op" / choices.FILE).read_text())) == {HERE.device_kind, "another chip"}
    write("op", HERE.device_kind, "kernel, H 64", {})
    assert ask() == (128, 64)
    assert set(json.loads((tables / "op" / choices.FILE).read_text())) == {"another chip"}


def test_what_is_asked_is_collected_and_what_is_given_is_answered(tables):
    write("op", HERE.device_kind, "b", {"choice": (5,)})
    ask = lambda of: choices.chosen("op", of, HERE.platform, (1,), ((2,),))  # noqa: E731
    with choices.asking() as asked, choices.given({choices.Question("op", "a"): (3,)}):
        assert (ask("a"), ask("b")) == ((3,), (5,))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            assert pool.submit(contextvars.copy_context().run, ask, "a").result() == (3,)
        with choices.given({choices.Question("op", "b"): (4,)}):
            assert (ask("a"), ask("b")) == ((3,), (4,))
    assert ask("a") == (1,)
    assert asked == {choices.Question("op", of): choices.Asked(HERE.platform, (1,), ((2,),)) for of in "ab"}


def test_what_was_traced_before_is_traced_anew_under_other_answers(tables):
    @jax.jit
    def times(x):
        return x * choices.chosen("op", "a", HERE.platform, (1,))[0]

    assert times(7) == 7
    with choices.given({choices.Question("op", "a"): (3,)}):
        assert times(7) == 21
    assert times(7) == 7


@pytest.mark.parametrize(("tokens", "power"), [(1, 1), (2, 2), (3, 4), (1024, 1024), (1025, 2048)])
def test_lengths_of_one_class(tokens, power):
    assert choices.length(tokens) == power


def asked_by(function):
    with choices.asking() as asked:
        function()
    return {question: told for question, told in asked.items() if told.tried}


def test_attention_and_grouped_products_mean_the_same_however_they_are_cut():
    """Odd lengths, grouped heads, a tile that reaches over its end; against the forms without tiles."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 150, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    x, w = rng.normal(size=(150, 8)).astype(np.float32), rng.normal(size=(3, 8, 5)).astype(np.float32)
    x, w, sizes = jnp.asarray(x), jnp.asarray(w), jnp.asarray([40, 0, 97])

    def gradients(implementation):
        attend = lambda *given: attention(*given, mask=masks.Causal(), implementation=implementation).sum()  # noqa: E731
        return jax.value_and_grad(attend, (0, 1, 2))(q, k, v)

    cases = [
        (lambda: gradients("chunked"), gradients("reference"), 2),
        (lambda: tiled.grouped_matmul_tiled(x, w, sizes), grouped_matmul_reference(x, w, sizes), 1),
    ]
    for call, expected, questions in cases:
        asked = asked_by(lambda: jax.eval_shape(call))  # noqa: B023
        assert len(asked) == questions
        answers = {
            question: {told.default, *told.tried} - {told.default} for question, told in asked.items()
        }  # fmt: skip
        for choice in (min, max):
            with choices.given({question: choice(told) for question, told in answers.items()}):
                got = call()
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                # Sums of at most 150 products in float32, in another order, of numbers of at most the largest.
                np.testing.assert_allclose(a, b, rtol=0, atol=150 * 2**-23 * float(np.max(np.abs(b))))


def tiled_programs():
    """name -> (what is asked and the default, the function that asks, the shapes that it is traced at)."""
    of = lambda *shape, kind=jnp.bfloat16: jax.ShapeDtypeStruct(shape, kind)  # noqa: E731
    q, heads = of(1, 300, 2, 64), (of(1, 300, 2, 32), (of(1, 2, 48, 32), of(1, 2, 32, 48), of(1, 2, 48, 32)))
    logits = of(600, 256), of(2000, 256), of(600, kind=jnp.int32)
    scoring = Scoring(masks.Causal(), 1.0)
    backward = lambda q, k, v, out, lse: gpu_hopper.backward(q, k, v, scoring, Result(out, lse), Result(out, None))  # noqa: E731
    nll = {"options": Options(), "interpret": True}
    lact_of = lambda module: functools.partial(module.apply, interpret=True)  # noqa: E731
    return {
        "hopper forward": ((128, 4), lambda q, k, v: gpu_hopper.forward(q, k, v, scoring), (q, q, q)),
        "hopper backward": ((128,), backward, (q, q, q, q, of(1, 2, 300, kind=jnp.float32))),
        "cross-entropy tpu": ((256, 1024), functools.partial(cross_tpu.statistics, **nll), logits),
        "cross-entropy gpu": ((128, 128, 64), functools.partial(cross_gpu.statistics, **nll), logits),
        "lact tpu": ((256,), lact_of(lact_tpu), heads),
        "lact gpu": ((64,), lact_of(lact_gpu), heads),
    }


@pytest.mark.parametrize("name", tiled_programs())
def test_kernels_of_accelerators_are_cut_as_they_are_told_and_else_as_before(name):
    default, function, shapes = tiled_programs()[name]
    traced = lambda: str(jax.make_jaxpr(function)(*shapes))  # noqa: E731
    with choices.asking() as found:
        before = traced()
    ((question, asked),) = found.items()
    assert asked.default == default
    assert question.op == {"hopper": "attention", "cross-entropy": "cross_entropy", "lact": "lact"}[name.split()[0]]
    with choices.given({question: default}):
        assert traced() == before
    for at in range(len(default)):  # Each number by itself.
        other = next(
            c for c in asked.tried if c[at] != default[at] and c[:at] + c[at + 1 :] == default[:at] + default[at + 1 :]
        )
        with choices.given({question: other}):
            assert traced() != before


class Made:
    """A row of one op whose answers give what they say and take as long as they say."""

    def __init__(self, seconds, results):
        self.seconds, self.results = seconds, results

    def planned(self):
        return Planned("op/row", self.build)

    def forward(self, x):
        (answer,) = choices.chosen("op", "kernel", HERE.platform, (1,), tuple((n,) for n in self.results))
        if self.results[answer] is None:
            raise RuntimeError("does not fit")
        return x * self.results[answer]

    def build(self):
        return ops.row("op/row", {"ours": self.forward}, ([np.ones(3, np.float32)], None), False, baseline="ours")

    def rounds(self, calls, default, made, rounds=0):
        return {choice: [self.seconds[default[0]] / self.seconds[choice[0]]] * 5 for choice in calls}


def test_the_fastest_right_answer_is_kept_and_leaves_when_it_is_fastest_no_more(tables, monkeypatch):
    said = Console(quiet=True)
    made = Made({1: 1.0, 2: 0.9, 3: 0.8, 4: 0.1, 5: 0.1}, {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.01, 5: None})
    monkeypatch.setattr(tune, "_rounds", made.rounds)
    made.seconds[3], made.seconds[2] = 1.02, 1.01
    assert tune.row(made.planned(), said)[0]["choice"] is None and not (tables / "op" / choices.FILE).exists()
    made.seconds[3], made.seconds[2] = 0.8, 0.9
    (record,) = tune.row(made.planned(), said)
    assert record["choice"] == (3,) and record["again"] == pytest.approx(1 / 0.8)
    assert set(record["times_faster"]) == {"(1,)", "(2,)", "(3,)"}
    assert [text.split(" ")[0] for text in record["left_out"]] == ["(4,)", "(5,)"]
    assert choices.table("op")[HERE.device_kind]["kernel"] == {
        "choice": [3], "default": [1], "times_faster": 1.25, "row": "op/row",
    }  # fmt: skip
    made.seconds[3] = made.seconds[2] = 0.98  # Below the least that counts.
    (record,) = tune.row(made.planned(), said)
    assert record["choice"] is None and choices.table("op") == {}


def test_a_search_needs_a_chip():
    with pytest.raises(Refused, match="--topology=v5e has no chip"):
        bench.run(topology="v5e", tune=True)
    with pytest.raises(Refused, match="--bench_filter=atention/ is in no row's name; use e.g."):
        bench.run(filter="atention/", tune=True)
