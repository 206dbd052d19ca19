"""The check `growth`: who is grown from whom, for how many FLOPs rivals train, and the curve of a chain."""

import pathlib

import pytest

from configs.claims import tokenformer_growth
from experiments.claims import growth

STEP = {"small": 1e9, "middle": 2e9, "large": 3e9, "transformer": 4e9}
LOSS = {"small": 3.0, "middle": 2.5, "grown": 2.0, "large": 2.2, "transformer": 1.8}


def test_a_chain_grows_by_seed_and_its_rivals_train_for_all_its_flops(tmp_path, monkeypatch):
    asked = []

    def trained(base, given, seeds, workdir, **_):
        (name, values), *more = given.items()
        assert not more and values["model.projection"] == claim["arms"][name]["model.projection"]
        asked.append((name, values["train.steps"], values.get("init.grow_from"), tuple(seeds)))
        kind = "grown" if name == "large" and "init.grow_from" in values else name
        flops = STEP[name] * values["train.steps"]
        return {
            name: [
                {"loss": LOSS[kind] + 0.001 * k, "flops": flops, "parameters": 1e5, "tokens": 1e6,
                 "workdir": pathlib.Path(f"/{kind}{k}")}
                for k in seeds
            ]
        }  # fmt: skip

    claim = tokenformer_growth.get_claim()
    claim |= {"chain": ("small", "middle", "large"), "steps": (400, 300, 300)}
    claim["arms"] |= {"middle": claim["arms"]["small"] | {"model.pattention.tokens": 60}}
    steps = dict(zip(STEP, STEP.values(), strict=True))
    kinds = {values["model.pattention.tokens"]: name for name, values in claim["arms"].items()}
    monkeypatch.setattr(growth.arms, "train", trained)
    monkeypatch.setattr(growth.arms, "compare", lambda *_: None)
    monkeypatch.setattr(growth.arms, "flops_per_step", lambda config: steps[
        "transformer" if config.model.projection == "dense" else kinds[config.model.pattention.tokens]
    ])  # fmt: skip
    compared = []
    monkeypatch.setattr(growth, "change_by_growth", lambda a, b: compared.append((a["workdir"], b["workdir"])) or 1e-9)
    monkeypatch.setattr(growth.held_out, "curves", lambda rows: {
        "epochs": [0.5, 2.0], "bits_per_byte": [[9.0, row["loss"]] for row in rows],
    })  # fmt: skip
    first, second = growth.run(claim | {"seeds": (0, 1)}, tmp_path, jobs=1, quiet=True)
    flops = 400 * 1e9 + 300 * 2e9 + 300 * 3e9
    assert asked == [
        ("small", 400, None, (0, 1)),
        ("middle", 300, "/small0", (0,)), ("middle", 300, "/small1", (1,)),
        ("large", 300, "/middle0", (0,)), ("large", 300, "/middle1", (1,)),
        ("large", round(flops / 3e9), None, (0, 1)), ("transformer", round(flops / 4e9), None, (0, 1)),
    ]  # fmt: skip
    assert [(str(a), str(b)) for a, b in compared] == [
        ("/small0", "/middle0"), ("/small1", "/middle1"), ("/middle0", "/grown0"), ("/middle1", "/grown1"),
    ]  # fmt: skip
    assert first.numbers["mean"] == pytest.approx(-0.2) and second.numbers["mean"] == pytest.approx(0.2)
    assert first.verdict == "holds" and second.verdict == "does not" and "curves" not in second.numbers
    curves = first.numbers["curves"]
    assert curves["grown"]["flops"] == pytest.approx([1e11, 4e11, 5.5e11, 10e11, 12.25e11, 19e11])
    assert curves["grown"]["bits_per_byte"][1] == pytest.approx([9, 3.001, 9, 2.501, 9, 2.001])
    assert curves["large"]["flops"][-1] == pytest.approx(flops, rel=0.01)
