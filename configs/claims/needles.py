"""Claim: which pairs of a haystack will be asked for is not told by attention before the question, but by the question.

    python main.py --mode=claim --config=configs/claims/needles.py --workdir=runs/claims/needles

Policies are measured by needles and by pairs that are recalled: EMS (Li et al. 2024, arXiv:2412.08521) 95% of needles
with less than 2% of the cache, TokenSelect (Wu et al. 2024, arXiv:2411.02886), which keeps all and chooses when it is
asked, near the full cache. Zhang et al. 2023 (H2O, arXiv:2306.14048): a fifth of the cache is near full quality.

A small Transformer learns needle threading of one hop: 8 pairs (key, value) of symbols that are all different, then
four of the keys, each to be answered by its value, so that four of the pairs are recalled. Its first layer sees two
tokens, its second layer has no positions: so a pilot learned it in 300 steps. (Of rows of 48 tokens a pilot did not
learn it in 500 steps without these two, nor another in 400 with them.) The pairs are read as the prompt, the questions
token by token. Every policy keeps, or reads, 8 or 12 of the 32 tokens a layer; `random` keeps the recent half and
others by lot. Until a key is asked for, all pairs are alike. quest is left out: which pages it reads does not follow
the window of the first layer.

Expect, as seen: what is chosen when asked answers all, as the full cache, of which it drops nothing. At 8 tokens h2o,
which evicts before the question, answers 24% beside 29% by lot, which three seeds do not tell apart, and ems less than
h2o. snap answers half of them, but what is read behind the prompt stays, too: at the row's end it has 24 tokens where
the others have 8. Cost: 3 runs of 600 steps and 57 readings; 8 minutes on busy cores.
"""

from configs.claims import small

POLICIES = ("h2o", "a2sf", "keyformer", "snap", "prefix_kv", "elastic", "ems", "token_select", "random")
ARM = "needles"


def get_claim():
    """The claim, for the check `memories`."""
    config = small(600, log_every=100, rows=128, width=64)
    near, far = {"attention": {"window": 2}}, {"attention": {"rope_fraction": 0.0}}
    config.model.update({"init": "fan_in", "mixer": "attention,attention", "by_position": (near, far)})
    config.optimizer.update({"schedule": "linear", "weight_decay": 0.0, "learning_rate": 3e-3})
    config.data.update({"source": "task:threading", "name": "hops=1, threads=4, symbols=24, width=1"})
    config.data.update({"length": 32, "batch_size": 32})

    def over(better, worse, statement, published, budget="8", measure="accuracy"):
        return {
            "statement": statement, "published": published, "measure": measure, "better": (ARM, better, budget),
            "worse": (ARM, worse, budget),
        }  # fmt: skip

    return {
        "source": "Roberts et al. 2024, arXiv:2411.05000; Zhang et al. 2023, arXiv:2306.14048; Li et al. 2024, "
        "arXiv:2412.08521; Wu et al. 2024, arXiv:2411.02886; Li et al. 2024, arXiv:2404.14469",
        "family": "decoding",
        "check": "memories",
        "statement": "Needles are found by policies that choose when they are asked",
        "published": "95% of needles with less than 2% of the cache",
        "base": config,
        "arms": {ARM: {}},
        "policies": POLICIES,
        "budgets": (8, 12),
        "prompt": 16,
        "axis": "tokens a layer",
        "contrasts": [
            over("token_select", "random", "Tokens chosen when a key is asked for answer more than tokens kept by lot",
                 "near the full cache"),
            over("h2o", "random", "H2O, which evicts before the question, answers more than tokens kept by lot",
                 "a fifth of the cache is near full quality"),
            over("snap", "random",
                 "SnapKV, which evicts nothing behind its prompt, answers more than tokens kept by lot",
                 "near the full cache at 1024 tokens"),
            over("ems", "h2o", "EMS answers more than H2O", "95% of needles with less than 2% of the cache"),
            over("h2o", "random", "Of the full cache's attention more falls on what H2O keeps than on tokens by lot",
                 "not given", measure="kept_mass"),
        ],
        "effect": 0.05,
        "control": {
            "says": "share of needles that the full cache answers",
            "reads": ("accuracy", ARM, "full", "12"),
            "least": 0.95,
        },
        "looks": (3,),
        "hours": 0.5,
        "seeds": (0, 1, 2),
    }  # fmt: skip
