"""Checkpoints are atomic, described, verified, and readable on another mesh."""

import json
import logging

import jax
import numpy as np
import pytest

from experiments.workdir.checkpoints import CheckpointError, Checkpoints, differences, manifest
from tests.experiments.program.program_test import assert_close, program


@pytest.fixture(scope="module")
def made():
    return program()


def test_a_state_comes_back_bit_for_bit_and_every_leaf_is_compared(tmp_path, made):
    state = made.init()
    saves = Checkpoints(tmp_path)
    saves.save(3, state, {"config": {"a": 1}})
    saves.close()
    step, restored, about = Checkpoints(tmp_path).restore(made.abstract, made.shardings)
    assert step == 3 and about["config"] == {"a": 1}
    leaves = list(zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True))
    assert len(leaves) == len(about["arrays"]) > 20
    for a, b in leaves:
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_retention_keeps_the_last_the_multiples_and_the_best(tmp_path, made):
    state = made.init()
    saves = Checkpoints(tmp_path, keep_last=2, keep_every=4, keep_best=1)
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 2.6, 2.7, 2.8], start=1):
        saves.save(step, state, {}, loss=loss)
    saves.close()
    assert Checkpoints(tmp_path).steps() == [2, 4, 6, 7]


def test_it_restores_onto_another_mesh(tmp_path, made):
    state = made.init()
    saves = Checkpoints(tmp_path)
    saves.save(1, state, {})
    saves.close()
    wide = program(8, mesh__data=1, mesh__fsdp=8)
    _, restored, _ = Checkpoints(tmp_path).restore(wide.abstract, wide.shardings)
    assert restored["params"]["embedding"].sharding == wide.shardings["params"]["embedding"]
    assert_close(jax.device_get(state), jax.device_get(restored), 0)
    narrow = program(4, mesh__data=2, mesh__fsdp=2)
    params = Checkpoints(tmp_path).parameters(narrow)
    assert_close(jax.device_get(state["params"]), jax.device_get(params), 0)


def test_another_model_is_refused_with_the_difference(tmp_path, made):
    saves = Checkpoints(tmp_path)
    saves.save(1, made.init(), {})
    saves.close()
    other = program(model__mlp__hidden=48)
    with pytest.raises(
        CheckpointError, match="another model than the config describes:(?s:.*)'up'.*saved float32.*wanted"
    ):
        Checkpoints(tmp_path).restore(other.abstract, other.shardings)


def test_an_unfinished_save_is_ignored_and_swept_away(tmp_path, made):
    saves = Checkpoints(tmp_path)
    saves.save(1, made.init(), {})
    saves.save(2, made.init(), {})
    saves.close()
    (saves.root / "2.sha256.json").unlink()  # Killed between the commit and the checksums.
    again = Checkpoints(tmp_path)
    assert again.steps() == [1]
    assert again.restore(made.abstract, made.shardings)[0] == 1
    again.save(2, made.init(), {})
    again.close()
    assert Checkpoints(tmp_path).steps() == [1, 2]


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_every_kind_of_damage_is_found(tmp_path, made, caplog, harm):
    saves = Checkpoints(tmp_path)
    saves.save(1, made.init(), {})
    saves.save(2, made.init(), {})
    saves.close()
    victim = max((saves.root / "2").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = victim.read_bytes()
    if harm == "delete":
        victim.unlink()
    else:
        victim.write_bytes(data[:-1] if harm == "truncate" else data[:-1] + bytes([data[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        fresh = Checkpoints(tmp_path)
        assert fresh.restore(made.abstract, made.shardings)[0] == 1
    assert "checkpoint 2 is damaged" in caplog.text
    fresh.forget_after(1)
    assert fresh.steps() == [1] and list(fresh.root.glob("damaged-2-*"))


def test_nothing_there_is_none_and_differences_are_readable(tmp_path, made):
    assert Checkpoints(tmp_path).restore(made.abstract, made.shardings) is None
    mine = manifest(made.abstract)
    assert differences(mine, mine) == []
    less = dict(list(mine.items())[1:])
    assert differences(mine, less)[0].endswith("not wanted")
    many = {f"p{i}": "float32[1]" for i in range(20)}
    assert differences(many, {})[-1] == "and 8 more"
    json.dumps(mine)
