"""A dense run becomes a mixture of experts with the same function; what would not keep it is refused in a sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import knobs
from experiments import preflight
from experiments.settings.errors import ConfigError
from experiments.training import train
from experiments.workdir import trained, upcycled
from kernels import masks
from tests.experiments import tiny
from tests.experiments.training.train_test import final_state

F = 48
DENSE = {"model__channel": "swiglu", "model__swiglu__hidden": F}
COPIES = {"experts": 3, "k": 2, "hidden": F}
SLICES = {"experts": 12, "k": 6, "hidden": F // 3, "scale": 3.0}  # four copies of three slices, the best two


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The workdir of a trained dense model, beside its corpus."""
    folder = tmp_path_factory.mktemp("dense")
    train(tiny.config(folder, **DENSE, train__steps=3), folder / "run", quiet=True)
    return folder / "run"


def logits(model, tokens):
    def run(params):
        made = model.program.merge(params)
        out = made(tokens, mask=masks.Causal())
        return made.logits(out.features), out.report

    return jax.device_get(jax.jit(run)(model.params))


@pytest.mark.parametrize("moe", [COPIES, SLICES], ids=["copies", "slices"])
def test_a_mixture_begins_as_the_dense_model(dense, moe):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 250, (2, 24)))
    old = trained.load(dense)
    want, _ = logits(old, tokens)
    got, report = logits(upcycled.upcycle(dense, **moe), tokens)
    # The same sums in another order, through two layers.
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(want).max())
    pieces = F // moe["hidden"]
    load = np.asarray(report["load"].total).reshape(2, -1, pieces)
    assert np.all(load == load[..., :1]) and load.sum() == 2 * 2 * 24 * moe["k"]
    assert np.sum(load[0, :, 0] > 0) > 1  # Tokens differ in the copy that they take.


def test_a_run_starts_there_and_says_so_of_its_experts(dense, tmp_path):
    changes = {f"model__moe__{name}": value for name, value in SLICES.items()}
    config = tiny.config(
        dense.parent, **changes, model__channel="moe",
        init__upcycle_from=str(dense), train__steps=2, optimizer__learning_rate=1e-12,
    )  # fmt: skip
    train(config, tmp_path / "run", quiet=True)
    (_, new), (_, old) = final_state(tmp_path / "run"), final_state(dense)
    born, was = (state["params"]["stack"]["period"]["0_attention"]["channel"] for state in (new, old))
    W = F // 3
    for e in range(12):
        part = slice(e % 3 * W, e % 3 * W + W)
        for name in ("up", "gate"):
            np.testing.assert_allclose(born["experts"][name][:, e], was[name]["kernel"][:, :, part], atol=1e-9)
        np.testing.assert_allclose(born["experts"]["down"][:, e], was["down"]["kernel"][:, part], atol=1e-9)
        np.testing.assert_allclose(born["router"][..., e], born["router"][..., e // 3 * 3], atol=1e-9)


WRONG = [
    ({"hidden": 20}, "model.moe.hidden=20 does not divide the 48 of the dense model"),
    ({"experts": 10}, "model.moe.experts=10 are no whole copies of 3 slices; use model.moe.experts=12"),
    ({"k": 4}, "model.moe.k=4 are no whole copies of 3 slices; use model.moe.k=6"),
    ({"scale": 1.0}, "model.moe.scale=1.0 with 3 slices of a layer; use model.moe.scale=3.0"),
    ({"router": "softmax_before", "scale": 3.0}, "has gates that do not sum to model.moe.scale"),
    ({"gated": False}, "model.moe.gated=False and the model has True; use model.moe.gated=True"),
    ({"shared": 1}, "model.moe.shared=1 is not in the dense model; use model.moe.shared=0"),
    ({"model.num_layers": 4}, "upcycling changes the channel alone, use model.num_layers=2"),
    ({"init.upcycle_from": "/nowhere"}, "init.upcycle_from='/nowhere' holds no finished checkpoint"),
    ({"init.warm_start": "SELF"}, "both start the run; use init.warm_start=''"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG, ids=[next(iter(changes)) for changes, _ in WRONG])
def test_what_would_not_begin_as_the_dense_model_is_refused(dense, changes, sentence):
    moe = {f"model__moe__{name}": value for name, value in SLICES.items()}
    more = {
        key.replace(".", "__") if "." in key else f"model__moe__{key}": str(dense) if value == "SELF" else value
        for key, value in changes.items()
    }
    given = {"model__channel": "moe", "init__upcycle_from": str(dense), **moe, **more}
    with pytest.raises(ConfigError) as caught:
        preflight.check(tiny.config(dense.parent, **given), num_devices=1)
    assert sentence in str(caught.value) and len(caught.value.problems) == 1


STARTS = [key for key, knob in knobs.KNOBS.items() if key.startswith("init.") and knob.default == ""]


@pytest.mark.parametrize("key", STARTS)
def test_a_run_that_has_saved_does_not_ask_for_what_it_was_started_from(tmp_path, key):
    """Every way to start: its source may be gone, as none of it is read again."""
    needs = {
        "init.upcycle_from": {"model__channel": "moe"}, "init.grow_from": {"model__projection": "pattention"},
        "init.rewire_from": {"model__kind": "swiftkv"},
    }  # fmt: skip
    config = tiny.config(tmp_path, **{key.replace(".", "__"): "/nowhere"}, **needs.get(key, {}))
    with pytest.raises(ConfigError, match="/nowhere"):
        preflight.check(config, num_devices=1)
    preflight.check(config, num_devices=1, begun=True)
