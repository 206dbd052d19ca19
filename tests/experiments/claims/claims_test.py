"""Claims from end to end at a size of seconds: what they train, how they judge, and the ledger that shows them."""

import importlib
import pathlib
import pkgutil
import types

import numpy as np
import pytest

import data
from configs import claims as configs_claims
from configs import tokenformer
from configs.claims import assd as assd_claim
from configs.claims import (
    diffusion_speed,
    digits_reversed,
    language_in_context,
    overtraining,
    tokenformer_growth,
    tokenformer_tiny,
    tokenization,
    toy_likelihood,
)
from data import tasks
from experiments import claims, modes, preflight
from experiments import workdir as files
from experiments.claims import answers, arms, assd, contrast, curve, evidence, measures, method, table
from experiments.claims import tokenization as tokens_check
from experiments.claims.laws import decoding
from experiments.program import build, counting, sharding
from experiments.settings import smoke
from experiments.settings.errors import Refused, sentence
from experiments.sweep import launchers, trials
from experiments.training import train
from experiments.workdir.saved import saved_config
from tests.experiments import tiny
from tests.experiments.cli_test import flags

pytestmark = pytest.mark.usefixtures("one_device")

HOUSE = [module.name for module in pkgutil.iter_modules(configs_claims.__path__)]


class Here:
    """A launcher without processes: a trial is over when it has started."""

    def start(self, workdir, slot):
        train(saved_config(workdir).lock(), workdir, quiet=True)
        return self

    def poll(self):
        return 0

    def stop(self):
        pass

    def close(self):
        pass


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(launchers, "make", lambda *_: Here())


def small(config, folder, *, texts=False):
    """A few steps of two narrow layers, with the data that the claim names, or little text."""
    made = smoke.shrink(config)
    made.data.length, made.data.cache_dir, made.eval.sample_prompt = config.data.length, str(folder / "cache"), ""
    if texts:
        made.data.update({"source": "text", "path": str(tiny.corpus(folder)), "length": 32, "max_files": 0})
    return made


@pytest.mark.parametrize("name", HOUSE)
def test_a_claim_of_the_house_is_complete_and_passes_the_preflight(name):
    module = importlib.import_module(f"configs.claims.{name}")
    claim = claims.load(module.__file__)
    assert f"--config=configs/claims/{name}.py" in module.__doc__ and "xpect" in module.__doc__
    assert claim["family"]
    if claim["check"] in ("law", "serving", "denoising", "worlds"):  # They train nothing, or no model of the house.
        return
    assert len(claim["seeds"]) >= 2
    beside = {"draft": claim["draft"]} if "draft" in claim else claim.get("taught")
    runs = {"model": {}} | beside if claim["check"] == "drafts" else claim.get("arms")
    runs = {name: claim[name] for name in ("chance", "router")} if claim["check"] == "paths" else runs
    runs = {"before": {}, "after": claim["change"]} if claim["check"] == "transplants" else runs
    arms = claim.get("small", []) + claim.get("large", []) or runs or table.cells(claim)
    made = trials.resolve(claim["base"], list(arms.values()) if isinstance(arms, dict) else arms)
    assert len(made) == len(arms)
    for trial in made:
        preflight.check(trial.config, num_devices=1)
        assert trial.config.train.steps * trial.config.data.batch_size * trial.config.data.length < 2e7


def test_verdicts_follow_the_interval():
    mean, low, high = evidence.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and high - mean == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)
    with pytest.raises(Refused, match="use at least 2"):
        evidence.interval([1.0])
    assert [evidence.above(*ends) for ends in ((0.1, 2), (-1, 1), (-2, -0.1))] == ["holds", "undecided", "does not"]
    judge = tokens_check.verdict
    assert judge((0.1, 0.0, 0.2), (0.9, 0.8, 1.0), 0.5) == "holds"
    assert judge((0.9, 0.8, 1.0), (0.9, 0.8, 1.0), 0.5) == "does not"
    assert judge((0.1, 0.0, 0.2), (0.3, 0.2, 0.4), 0.5) == "does not"
    assert judge((0.4, 0.0, 0.8), (0.9, 0.8, 1.0), 0.5) == "undecided"


def test_answers_are_scored_as_the_model_gives_them(tmp_path):
    """A model that has learned to copy one symbol is right everywhere; an untrained one about as often as by chance."""
    config = small(digits_reversed.get_claim()["base"], tmp_path)
    config.data.update({"source": "task:copying", "name": "symbols=2, payload=1", "length": 4})
    config.data.batch_size, config.optimizer.learning_rate = 64, 0.03
    config.eval.update({"every": 0, "rows": 512, "batch_size": 64})
    for steps in (1, 60):
        config.train.steps = steps
        train(config.copy_and_resolve_references().lock(), tmp_path / str(steps), quiet=True)
    learned, guessed = answers.score(tmp_path / "60"), answers.score(tmp_path / "1")
    assert learned == {"accuracy": 1.0, "exact": 1.0, "length": 1.0, "calls": 1.0}
    assert guessed["exact"] == guessed["accuracy"] < 0.8


def test_an_answer_is_judged_up_to_its_end():
    """END is 9: what stands behind it, or in the prompt, is not asked for."""
    targets = np.array([[9, 1, 2, 9, 9, 9], [9, 1, 9, 3, 4, 5]])
    batch = {"targets": targets, "scored": np.arange(6)[None] > [[0], [1]]}
    given = np.array([[0, 1, 2, 9, 7, 7], [0, 0, 9, 0, 0, 0]])
    found = answers.judge(batch, given, np.array([4, 2]), 9)
    assert found == {"answers": 4, "rows": 2, "accuracy": 1.0, "exact": 1.0, "length": 1.0, "calls": 3.0}
    given[0, 2], given[1, 2] = 9, 3
    found = answers.judge(batch, given, np.array([4, 2]), 9)
    assert found["accuracy"] == 0.5 and found["exact"] == 0.0 and found["length"] == (1 + 4) / 2
    assert answers.judge(batch, given, np.array([4, 2]), None)["answers"] == 9


def test_arms_train_for_equal_flops(tmp_path):
    claim = toy_likelihood.get_claim()
    base, given = small(claim["base"], tmp_path, texts=True), {k: dict(v) for k, v in claim["arms"].items()}
    base.train.steps = 100
    arms.equalise(base, given, claim["equal_to"])
    costs = {arm: arms.flops_per_step(trials.resolve(base, [values])[0].config) for arm, values in given.items()}
    spent = {arm: cost * given[arm]["train.steps"] for arm, cost in costs.items()}
    assert given["autoregressive"]["train.steps"] == 100 and given["any-subset"]["train.steps"] < 70
    for arm, flops in spent.items():
        assert abs(flops / spent["autoregressive"] - 1) <= 0.5 / given[arm]["train.steps"] + 1e-9


def test_pairs_of_likelihoods_are_judged_by_less_being_better(tmp_path, monkeypatch):
    claim = toy_likelihood.get_claim()
    bits = {"autoregressive": 3.0, "masked": 4.0, "score entropy": 3.9}

    def trained(base, given, seeds, workdir, **_):
        about = {"parameters": 1e5, "tokens": 1e6, "loss": 1.0, "flops": 1e9, "workdir": workdir}
        return {
            arm: [
                about | {"eval/bits_per_byte": bits.get(arm, 5.0) + 0.01 * k * k, "eval/kind": "<="}
                for k in seeds
            ]
            for arm in given
        }  # fmt: skip

    monkeypatch.setattr(contrast.arms, "train", trained)
    monkeypatch.setattr(contrast.arms, "equalise", lambda *_: None)
    monkeypatch.setattr(contrast.arms, "compare", lambda *_: None)
    found = contrast.run(claim, tmp_path, jobs=1, quiet=True)
    assert [row.verdict for row in found[:3]] == ["holds", "does not", "holds"]
    assert found[0].numbers["mean"] == pytest.approx(1.0) and "autoregressive <= 3.017" in found[0].measured


def test_a_contrast_is_paired_by_seed_and_judged_by_its_interval(tmp_path, monkeypatch):
    claim = digits_reversed.get_claim()
    claim["base"], claim["seeds"] = small(claim["base"], tmp_path), (0, 1)
    claim = {key: value for key, value in claim.items() if key not in ("tune", *method.KEYS)}
    scored = {}

    def pretended(workdir):
        saved = saved_config(workdir)
        real = answers.score(workdir)
        assert 0 <= real["exact"] <= real["accuracy"] <= 1
        scored[saved.data.name, saved.seed] = real
        return real | {"exact": 0.9 + 0.01 * saved.seed if "reverse" in saved.data.name else 0.5}

    monkeypatch.setattr(measures, "answers", types.SimpleNamespace(score=pretended))
    record = claims.run(claim, tmp_path / "w", name="digits_reversed.py", quiet=True)
    (row,) = record["rows"]
    assert len(scored) == 4 and row["verdict"] == "holds"
    assert row["numbers"]["exact"] == {"reversed": [0.9, 0.91], "plain": [0.5, 0.5]}
    assert row["numbers"]["mean"] == pytest.approx(0.405) and len(set(row["numbers"]["flops"]["plain"])) == 1
    assert row["numbers"]["flops"]["plain"] == row["numbers"]["flops"]["reversed"]  # equal compute
    assert files.read_json(tmp_path / "w" / claims.FILE) == record
    assert (tmp_path / "w" / "comparison.html").exists()


def test_a_contrast_of_losses_gives_a_row_for_each_pair(tmp_path, monkeypatch):
    """Lower is better; what any model of the task can reach stands beside it."""
    claim = language_in_context.get_claim() | {"seeds": (0, 1, 2)} | dict.fromkeys(method.KEYS)
    losses = {"attention": [0.8, 0.9, 0.7], "linear_attention": [1.2, 1.3, 1.15], "gated_delta": [0.5, 0.6, 0.4]}

    def trained(base, arms, seeds, workdir, **_):
        about = {"parameters": 1e5, "tokens": 1e6, "flops": 1e9}
        return {arm: [about | {"loss": losses[arm][seed]} for seed in seeds] for arm in arms}

    monkeypatch.setattr(contrast.arms, "train", trained)
    monkeypatch.setattr(contrast.arms, "compare", lambda *_: None)
    linear, delta = contrast.run(claim, tmp_path, jobs=1, quiet=True)
    assert (linear.verdict, delta.verdict) == ("holds", "does not") and "gated delta" in delta.statement
    half = 4.302653 * np.std([-0.4, -0.4, -0.45], ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
    assert linear.numbers["mean"] == pytest.approx(1.25 / 3)  # by how much better is better
    assert linear.numbers["low"] == pytest.approx(1.25 / 3 - half, rel=1e-6)
    assert "best possible 0.6931, by chance 1.7918" in linear.measured  # log 2 and log 6
    with pytest.raises(Refused, match="did you mean 'loss'"):
        contrast.run(claim | {"score": "los"}, tmp_path, jobs=1, quiet=True)


def test_the_tiny_tokenformer_and_transformer_are_of_one_size():
    claim = tokenformer_tiny.get_claim()
    sizes, preset = {}, tokenformer.get_config("tiny")
    for trial in trials.resolve(claim["base"], list(claim["arms"].values())):
        program = build(trial.config, vocab_size=259, mesh=sharding.make_mesh(trial.config))
        sizes[trial.config.model.projection] = counting.parameters(program)["non_embedding"]
        if trial.config.model.projection == "pattention":  # The preset at half its width.
            preset.model.update({"width": 64, "pattention": {"tokens": 48, "channel_tokens": 192}})
            assert trial.config.model.to_dict() == preset.model.to_dict()
    assert sizes["pattention"] == pytest.approx(sizes["dense"], rel=0.002)


def test_tokenization_places_both_arms_between_frequencies_and_entropy_rate(tmp_path, monkeypatch):
    claim = tokenization.get_claim() | {"documents": 20, "document_length": 300, "seeds": (0, 1)}
    bits = {"characters": [0.98, 0.99], "tokens": [0.5, 0.51]}
    given = {}

    def trained(base, arms, seeds, workdir, **_):
        given.update(base.data.to_dict())
        about = {"parameters": 1e5, "tokens": 1e6, "workdir": workdir}
        return {arm: [about | {"eval/bits_per_byte": bits[arm][seed]} for seed in seeds] for arm in arms}

    monkeypatch.setattr(tokens_check.arms, "train", trained)
    monkeypatch.setattr(tokens_check.arms, "compare", lambda *_: None)
    (row,) = tokens_check.run(claim, tmp_path, jobs=1, quiet=True)
    assert row.numbers["chance"] == pytest.approx(1.0) and row.numbers["rate"] == pytest.approx(0.468996, abs=1e-6)
    mean, low, high = row.numbers["learned"]["tokens"]
    assert mean == pytest.approx((1 - 0.505) / (1 - 0.468996), rel=1e-5) and low < mean < high
    assert row.verdict == "holds" and row.numbers["bits"] == bits
    # What the arms read: the source, in letters, which BPE cuts into longer tokens.
    texts = sorted(pathlib.Path(given["path"]).iterdir())
    source, text = tasks.Markov(**claim["source_settings"]), b"".join(path.read_bytes() for path in texts)
    assert given["source"] == "text" and len(texts) == 20 and len(text) == 6000 and set(text) == set(b"ab")
    back = np.frombuffer(text, np.uint8).reshape(20, 300)
    returned = (back[:, 2:] == back[:, :-2]).mean()  # With probability 1 - flip: a binomial share of 5,960.
    assert abs(returned - (1 - source.flip)) < 4.5 * np.sqrt(0.09 / 5960)
    arm = claim["arms"]["tokens"]
    corpus = data.load(
        "text", path=given["path"], tokenizer="bpe", vocab_size=arm["data.vocab_size"], cache_dir=str(tmp_path / "c")
    )
    assert corpus.tokenizer.vocab_size == arm["data.vocab_size"] and corpus.info["bytes_per_token"] > 2


def test_overtraining_fits_the_small_runs_and_predicts_the_large(tmp_path, monkeypatch):
    """Losses of a planted law with a wrinkle of 1% on large runs: the error that is found is that wrinkle."""
    from experiments.claims import overtraining as check

    claim = method.first(overtraining.get_claim(), 3)
    planted = {"E": 0.8, "a": 30.0, "b": 20.0, "eta": 0.16}

    def trained(base, runs, seeds, workdir, **_):
        made = {}
        for arm, values in runs.items():
            L, D = values["model.num_layers"], values["model.width"]
            parameters, tokens = 12 * L * D**2 + 259 * D, values["train.steps"] * 512
            columns = {"flops": np.array([6.0 * parameters * tokens]), "tokens_per_parameter": tokens / parameters}
            loss = check.scaling.OVERTRAINING.predict(planted, columns)[0] * (1.01 if "large" in arm else 1.0)
            row = {"parameters": parameters, "tokens": tokens, "flops": columns["flops"][0], "loss": loss}
            small = int(arm.split()[1]) % 2 - 0.5 if "small" in arm else 0.0
            made[arm] = [row | {"loss": loss * (1 + 1e-4 * seed) * np.exp(2e-6 * small)} for seed in seeds]
        return made

    monkeypatch.setattr(check.arms, "train", trained)
    (row,) = check.run(claim, tmp_path, jobs=1, quiet=True)
    assert row.verdict == "holds" and row.numbers["mean"] == pytest.approx(0.01 / 1.01, rel=0.05)
    assert 7 < row.numbers["beyond"] < 9 and len(row.numbers["errors"][0]) == 2
    assert 0.5e-6 < min(row.numbers["fit"]) <= max(row.numbers["fit"]) <= 1e-6  # what nine runs have of 1e-6, four free
    assert method.controlled(method.of(claim), row.numbers)[0]
    (row,) = check.run(claim | {"within": 0.005, "effect": 0.001}, tmp_path, jobs=1, quiet=True)
    assert row.verdict == "does not"


def test_speculative_decoding_is_exact_or_the_claim_says_so(monkeypatch):
    claim = assd_claim.get_claim() | {"tables": {"symbols": 2, "length": 3, "count": 1}, "orders": ((1, 0, 2),)}
    row = assd.law(claim)
    assert row.verdict == "exact" and row.numbers["total_variation"] < 1e-14 and row.numbers["cases"] == 8
    assert row.numbers["calls"]["1"] == pytest.approx(5) and row.numbers["calls"]["3"] < 3
    real = decoding.assd.exact_law

    def careless(conditionals, **kw):
        law, calls = real(conditionals, **kw)
        return law[::-1], calls

    with monkeypatch.context() as patch:
        patch.setattr(decoding.assd, "exact_law", careless)
        assert assd.law(claim).verdict == "does not"


@pytest.mark.slow
def test_calls_of_a_trained_model_are_counted(tmp_path):
    claim = assd_claim.get_claim()
    claim["base"] = small(claim["base"], tmp_path, texts=True)
    claim |= {"seeds": (0, 1), "drafts": (1, 2), "tokens": 8, "prompts": ("a", "b")}
    row = assd.calls(claim, tmp_path / "w", jobs=1, quiet=True)
    assert row.numbers["calls"] == {"2": [1.0, 1.0]} and row.verdict == "undecided"  # Two of two by two calls, always.


def test_a_curve_counts_what_was_fed_and_asks_for_equal_accuracy(tmp_path, monkeypatch):
    made = {
        "plain": {"flops": 900.0, "exact": 0.8}, "guided, free": {"flops": 100.0, "exact": 0.8},
        "threshold": {"flops": 50.0, "exact": 0.1},
    }  # fmt: skip
    claim = diffusion_speed.get_claim()
    claim["settings"] = {name: claim["settings"][name] for name in made}
    monkeypatch.setattr(curve.trained, "load", lambda workdir: workdir)
    ran = lambda seed: {"parameters": 1e5, "tokens": 1e6, "workdir": seed}  # noqa: E731
    train = lambda base, given, seeds, *_, **__: {arm: [ran(k) for k in seeds] for arm in given}  # noqa: E731
    monkeypatch.setattr(curve.arms, "train", train)

    def spent(model, guide, changes):
        (name,) = [name for name, values in claim["settings"].items() if values == changes]
        return made[name] | {"calls": 1.0, "seconds": 0.1, "flops": made[name]["flops"] + model * (name != "plain")}

    monkeypatch.setattr(curve, "spent", spent)
    (row,) = curve.run(claim, tmp_path, jobs=1, quiet=True)
    assert row.verdict == "holds" and 8.8 < row.numbers["ratio"][0] < 9 and "threshold 17." in row.measured
    (row,) = curve.run(claim | {"fast": "threshold"}, tmp_path, jobs=1, quiet=True)
    assert row.verdict == "does not"
    with pytest.raises(Refused, match="cost='flop' of the claim is unknown; did you mean 'flops'"):
        curve.run(claim | {"cost": "flop"}, tmp_path, jobs=1, quiet=True)
    (row,) = curve.run(claim | {"cost": "calls", "times": 0.5}, tmp_path, jobs=1, quiet=True)
    assert row.numbers["ratio"] == (1.0, 1.0, 1.0) and "1.0 times fewer calls" in row.measured
    judge = curve.verdict
    assert judge((6, 4, 8), (0, 0, 0), 5, 0.02) == judge((6, 5.5, 8), (0, -0.03, 0.03), 5, 0.02) == "undecided"


def test_settings_change_groups_within_groups_and_nothing_else():
    options = {"draft": 4, "diffusion": {"steps": 0, "adaptive": {"share": 0.25, "answer_every": 7}}}
    made = curve.merged(options, {"diffusion": {"adaptive": {"share": 1.0}}})
    assert made == {"draft": 4, "diffusion": {"steps": 0, "adaptive": {"share": 1.0, "answer_every": 7}}}
    assert options["diffusion"]["adaptive"]["share"] == 0.25
    with pytest.raises(Refused, match="settings: generate.diffusion.step is not a key of the config; did you mean"):
        curve.merged(options, {"diffusion": {"step": 3}})


@pytest.mark.slow
def test_flops_are_those_of_the_tokens_that_are_fed(tmp_path):
    """Untrained models on a canvas of 8 symbols and a prompt of 4: plain takes 8 calls of 12 tokens."""
    claim, models = diffusion_speed.get_claim(), []
    for name, changes in claim["arms"].items():
        config = small(claim["base"], tmp_path)
        config.update_from_flattened_dict(changes)
        config.data.update({"source": "task:arithmetic", "name": "digits=1, room=8", "length": 12})
        config.eval.update({"rows": 16, "batch_size": 8})
        config.model.num_layers = 1
        train(config.lock(), tmp_path / name, quiet=True)
        models.append(curve.trained.load(tmp_path / name))
    costs = [curve.counting.flops_per_token(made.program)["total"] / 3 for made in models]
    plain = curve.spent(*models, claim["settings"]["plain"])
    assert plain["calls"] == 8 and plain["flops"] == pytest.approx(8 * 12 * costs[0])
    free = curve.spent(*models, {"diffusion": {"method": "max_prob", "cache": "free", "block": 6, "commit": False}})
    assert free["flops"] < plain["flops"] and free["seconds"] > 0
    judged = curve.spent(*models, {"diffusion": {"method": "guided", "rule": "always"}})
    assert judged["calls"] == 1 and judged["flops"] == pytest.approx(12 * sum(costs))
    adaptive = {"prompt_every": 9, "answer_every": 9, "share": 0.25}  # The first call whole, then two of eight.
    kept = curve.spent(*models, {"diffusion": {"method": "max_prob", "cache": "adaptive", "adaptive": adaptive}})
    assert kept["flops"] == pytest.approx((12 + 7 * 2) * costs[0])


@pytest.mark.slow
def test_growth_compares_at_equal_flops(tmp_path):
    claim = {key: value for key, value in tokenformer_growth.get_claim().items() if key != "tune"}
    claim |= {"seeds": (0, 1), "steps": (6, 6, 6), "effect": 1e-6, "looks": (2,)}
    claim["control"] = claim["control"] | {"most": 100.0}  # Six steps teach nothing.
    claim["base"] = small(claim["base"], tmp_path, texts=True)
    claim["base"].eval.every = 3
    for name, n in (("small", 8), ("middle", 16), ("large", 32)):
        claim["arms"][name] |= {"model.pattention.tokens": n, "model.pattention.channel_tokens": 4 * n}
    assert len(found := claims.run(claim, tmp_path / "claim", name="tokenformer_growth.py", quiet=True)["rows"]) == 2
    for row in found:
        numbers = row["numbers"]
        assert numbers["change_of_loss_by_growth"] < 1e-6
        assert abs(numbers["flops_over_grown"] - 1) < 0.06  # whole steps: half of one in ten
        assert numbers["low"] < numbers["mean"] < numbers["high"]
        assert (row["verdict"] == "holds") == (numbers["high"] < 0)
        assert all(len(values) == 2 and np.all(np.isfinite(values)) for values in numbers["losses"].values())
    kept = found[0]["numbers"]["curves"]
    assert len(kept["grown"]["flops"]) == 6 and np.all(np.diff(kept["grown"]["flops"]) > 0)
    for name, made in kept.items():
        assert made["flops"][-1] == pytest.approx(kept["grown"]["flops"][-1], rel=0.06)
        last = [bits[-1] * np.log(2) for bits in made["bits_per_byte"]]
        assert last == pytest.approx(found[0]["numbers"]["losses"][name], rel=0.05)  # The ends of texts have no byte.


def test_commands_that_name_no_claim_are_refused(tmp_path):
    def refused(given, changes=(), **more):
        with pytest.raises(Refused) as caught:
            modes.run(flags(workdir=str(tmp_path / "w"), **given), list(changes))
        assert "\n" not in sentence(caught.value)
        return str(caught.value)

    def claim_of(check):
        (tmp_path / "c.py").write_text(
            f"def get_claim():\n    return {{'statement': 's', 'source': 's', 'published': 'p', {check}}}"
        )
        return {"mode": "claim", "config": str(tmp_path / "c.py")}

    assert "did you mean 'contrast'?" in refused(claim_of("'check': 'contrasts'"))
    assert "check=None must be text" in refused(claim_of(""))
    assert "--config.seed does not go with --mode=claim" in refused(claim_of(""), [("seed", "1")])
    assert "--smoke does not go" in refused(claim_of("") | {"smoke": True})
    assert "--config is missing" in refused({"mode": "claim"})
    assert f"--runs={tmp_path} holds no claim.json" in refused({"mode": "ledger", "runs": str(tmp_path)})
    assert not (tmp_path / "w").exists()
