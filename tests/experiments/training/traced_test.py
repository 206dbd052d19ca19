"""The trace of a model: the experts that its layers tell of, token by token, in the order of the text."""

import jax
import numpy as np
import pytest

from experiments import workdir as files
from experiments.routing import traces
from experiments.training import traced
from tests.experiments.program import program_test

MOE = {"model__channel": "moe", "model__num_layers": 2, "model__moe__experts": 4, "model__moe__hidden": 8}


@pytest.fixture(scope="module")
def made():
    program = program_test.program(**MOE, eval__trace=10**6)
    return program, program.init()["params"]


def test_a_trace_holds_every_choice_of_the_layers_and_no_padding(made):
    program, params = made
    batches = list(program_test.batches(2))
    trace = traced.record(program, params, batches, 10**6)
    run = jax.jit(
        lambda params, batch: (
            program.objective.loss(program.merge(params), batch, jax.random.key(0)).report["load"].total
        )
    )
    want = sum(np.asarray(run(params, batch)) for batch in batches)
    assert len(trace) == sum(int(np.sum(batch["segment_ids"] != 0)) for batch in batches)
    np.testing.assert_array_equal(traces.load(trace, 4), want)
    np.testing.assert_array_equal(traced.record(program, params, batches, 50), trace[:50])


def test_tokens_stand_in_the_order_of_the_text(made):
    """The experts of one token, from the activations that go into its last layer."""
    program, params = made
    batch = next(program_test.batches(1))
    trace = traced.record(program, params, [batch], 10**6)
    model = program.merge(params)
    out = model(
        batch["tokens"], mask=program.objective.mask, positions=batch["positions"], segment_ids=batch["segment_ids"],
        taps=("residual", "channel"),
    )  # fmt: skip
    block = model.stack.unstack().periods[1].blocks["0_attention"]
    read = block.channel_norm(out.report["residual"][1] - out.report["channel"][1])
    z = np.asarray(read, np.float64) @ np.asarray(block.channel.router[...], np.float64)
    want = np.argsort(-z, axis=-1, kind="stable")[..., :2][batch["segment_ids"] != 0]
    # Logits nearer to each other than the rounding of float32 may change places; none are in this batch.
    np.testing.assert_array_equal(trace[:, 1], want)


def test_it_is_written_to_the_workdir_and_read_again(made, tmp_path, capsys):
    program, params = made
    traced.write(program, params, program_test.batches(1), tmp_path, lambda ids: f"<{ids[0]}>")
    trace, experts = traces.read(tmp_path / files.ROUTING)
    tokens, texts = traces.read_texts(tmp_path / files.ROUTING)
    (batch,) = program_test.batches(1)
    there = batch["segment_ids"] != 0
    assert [texts[m] for m in tokens] == [f"<{i}>" for i in batch["tokens"][there][: len(trace)]]
    assert experts == 4 and f"experts of {len(trace)} tokens in 2 layers, 2 of 4 each: " in capsys.readouterr().out
