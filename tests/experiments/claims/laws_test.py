"""The table of exact laws: every one holds, none holds of a part that is wrong, and a claim shows them."""

import numpy as np
import pytest

from configs.claims import laws as claim_file
from experiments.claims import law as check
from experiments.claims import laws
from experiments.claims.laws import (
    LAWS,
    Law,
    control,
    decoding,
    diffusion,
    drafts,
    growth,
    mixers,
    parallel,
    scaling,
    stated,
    tokenizers,
)
from experiments.settings.errors import Refused

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("name", LAWS)
def test_a_law_holds_and_states_itself(name):
    found = LAWS[name]()
    assert found.holds, found
    assert found.cases >= 4 and found.tolerance < 1e-10
    statement, source = stated(LAWS[name])
    assert len(statement) < 160 and "20" in source


def off(function, change):
    """`function` with its result changed."""
    return lambda *args, **kw: change(function(*args, **kw))


def wrong_laws(ways):
    """Drafts drawn without replacement, said to come from the law as it was before the first."""
    for chosen, weight, laws_ in ways:
        yield chosen, weight, np.broadcast_to(laws_[0], laws_.shape)


WRONG = {  # name: (module, attribute, what is wrong with it)
    "control.budget": (control.budgets, "stops_within", lambda within: within[::-1]),
    "control.constraint": (control.conditional, "log_mass", lambda mass: 0 * mass),
    "control.guided": (control.gedi, "log_posterior", lambda log_p: log_p / 4),
    "control.nested": (control.depth, "layers_at", lambda n: n[::-1]),
    "control.unordered": (control.sets, "layout", lambda laid: laid._replace(mask=np.tril(np.ones_like(laid.mask)))),
    "control.verified": (control.semantic, "contextual_law", lambda law: law[::-1]),
    "decoding.any_subset": (decoding.assd, "exact_law", lambda found: (found[0][::-1], found[1])),
    "diffusion.schedule_free_bound": (
        diffusion.masked_diffusion, "set_weights", lambda weights: weights * np.arange(len(weights)),
    ),
    "drafts.best_first": (drafts.trees, "best_first", lambda found: found._replace(value=found.value * (1 + 1e-12))),
    "drafts.expected_tokens": (drafts.clock, "tokens_per_round", lambda tokens: tokens * (1 + 1e-12)),
    "drafts.gaussians": (drafts.continuous, "residual_chance", lambda chance: chance * (1 + 1e-9)),
    "drafts.realignment": (
        drafts.realign, "eqspec", lambda found: found._replace(source=[row[::-1] for row in found.source]),
    ),
    "drafts.kseq": (drafts.coefficients, "smallest_rho", lambda rho: 1 + 0.99 * (rho - 1)),
    "drafts.pearl": (drafts.clock, "pearl_trace", lambda steps: steps[1:]),
    "drafts.recursive": (drafts.verify, "drawn", lambda ways: wrong_laws(ways)),
    "drafts.sequoia": (drafts.dynamic, "table", lambda found: (found[0] * (1 + 1e-12), found[1])),
    "growth.parameter_tokens": (growth.growth, "extend", lambda array: array.at[-1].add(0.01)),
    "mixers.delta_rule_chunks": (
        mixers.linear_attention, "gated_delta_rule", lambda found: (found[0] * (1 + 1e-9), found[1]),
    ),
    "parallel.ring_bytes": (parallel, "sent", lambda found: found._replace(across=found.across // 2)),
    "parallel.token_ring_bytes": (parallel, "sent", lambda found: found._replace(back=found.back[::-1])),
    "scaling.compute_optimal": (
        scaling.laws, "compute_optimal", lambda best: best | {"parameters": best["parameters"] * 1.000001},
    ),
    "scaling.overtraining": (type(scaling.laws.OVERTRAINING), "predict", lambda loss: loss * (1 + 1e-12)),
    "tokenizers.blocks": (tokenizers.theory, "block_rate", lambda nats: nats * (1 + 1e-9)),
    "tokenizers.byte_law": (tokenizers.covers, "_log_sum", lambda found: found * (1 + 1e-9)),
    "tokenizers.dictionaries": (tokenizers.theory, "stationary", lambda pi: pi + 1e-9),
    "tokenizers.digit_groups": (tokenizers.digits, "groups", lambda sizes: sizes[::-1]),
    "tokenizers.words_mass": (tokenizers.words, "total_mass", lambda masses: (masses[0], masses[1] * 1.0001)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_a_law_does_not_hold_of_a_part_that_is_wrong(name, monkeypatch):
    module, attribute, change = WRONG[name]
    monkeypatch.setattr(module, attribute, off(getattr(module, attribute), change))
    assert not LAWS[name]().holds


def test_an_error_that_is_no_number_does_not_hold():
    assert not Law(float("nan"), 1.0, 3).holds and not Law(0.0, 1.0, 0).holds and Law(1.0, 1.0, 3).holds


def test_a_claim_of_laws_gives_a_row_for_each(monkeypatch, tmp_path):
    def half(cases=4):
        """One is one half.

        Source: nobody
        """
        return Law(0.5, 1e-9, cases)

    def one():
        """One is one.

        Source: everybody
        """
        return Law(0.0, 1e-9, 4)

    monkeypatch.setattr(check, "LAWS", {"a.half": half, "a.one": one})
    rows = check.run({"laws": ("a.one", "a.half")}, tmp_path, jobs=1, quiet=True)
    assert [row.verdict for row in rows] == ["exact", "does not"]
    assert (rows[1].statement, rows[1].published) == ("One is one half", "nobody")
    assert rows[1].numbers == {"law": "a.half", "error": 0.5, "tolerance": 1e-9, "cases": 4}
    with pytest.raises(Refused, match="laws: 'a.on' is unknown; did you mean 'a.one'"):
        check.run({"laws": ("a.on",)}, tmp_path, jobs=1, quiet=True)


def test_the_claim_of_the_house_names_every_law():
    assert set(claim_file.LAWS) == set(laws.LAWS)


def test_a_law_without_its_statement_or_source_is_refused():
    for text in ("", "A law.", "Source: nobody"):
        law = lambda: None  # noqa: E731
        law.__doc__ = text
        with pytest.raises(ValueError, match="must state itself first"):
            stated(law)
