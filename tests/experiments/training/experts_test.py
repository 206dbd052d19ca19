"""A mixture of experts that is killed goes on with the same bits: biases, the schedule's state, and its metrics."""

import pytest

from experiments.training import train
from experiments.workdir.checkpoints import Checkpoints
from tests.experiments import tiny
from tests.experiments.training.train_test import assert_same_bits, final_state

MOE = {
    "model__channel": "moe", "model__num_layers": 1, "model__moe__experts": 4, "model__moe__hidden": 8,
    "train__accumulation": 2, "model__moe__balance_scope": "accumulated", "data__batch_size": 16,
}  # fmt: skip
KINDS = {
    "bias": {"model__moe__router": "sigmoid_bias"},
    "schedule": {
        "model__moe__router": "relu", "model__moe__sparsity": 0.05, "model__moe__chunk": 8, "model__moe__stable": 2,
        "model__moe__window": 1, "model__moe__gated": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_run_killed_between_two_saves_ends_with_the_same_bits(name, tmp_path):
    config = tiny.config(tmp_path, **MOE, **KINDS[name], train__steps=4, checkpoint__every=2, train__log_every=1)
    train(config, tmp_path / "whole", quiet=True)
    train(config, tmp_path / "again", quiet=True)
    saves = Checkpoints(tmp_path / "again")
    saves.forget_after(2)
    train(config, tmp_path / "again", quiet=True)
    assert_same_bits(tmp_path / "whole", tmp_path / "again")
    kept = final_state(tmp_path / "whole")[1]["params"]["stack"]["period"]["0_attention"]["channel"][name]
    assert len(set(kept.ravel().tolist())) > 1, "it has moved"
