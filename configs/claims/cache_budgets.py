"""Claim: what is worth keeping can be told, so that a cache of a few tokens loses less than one of as many by lot.

    python main.py --mode=claim --config=configs/claims/cache_budgets.py --workdir=runs/claims/cache_budgets

Zhang et al. 2023 (H2O, arXiv:2306.14048): a fifth of the cache is near full quality. Jo et al. 2024 (A2SF,
arXiv:2407.20485): +7.8 points over H2O at equal budgets. Adnan et al. 2024 (Keyformer, arXiv:2403.09054): 50 to 60% of
the cache within 99% of the accuracy. Wang et al. 2024 (PrefixKV, arXiv:2412.03409), Liu et al. 2024 (Elastic Cache,
arXiv:2407.18121), Li et al. 2024 (EMS, arXiv:2412.08521), Wu et al. 2024 (TokenSelect, arXiv:2411.02886).

A small Transformer learns the bytes of code, another one to copy a list of 24 symbols behind noise; rows of 128 tokens
are read with half of them as a prompt, then token by token. Every policy keeps 16 or 32 tokens a layer, an eighth and a
quarter of the row; `random` keeps the recent half and others by lot, the control that a score has to beat.
token_select and quest read as many tokens and keep all.

Expect, as seen: in code everything but token_select is within 0.06 bits of the full cache at 16 tokens a layer, since
the next byte is mostly told by the last dozens; a2sf, which forgets, is ahead of h2o, and h2o and keyformer are where
tokens by lot are. What is averaged into keys costs bits (ems, elastic). Of the list h2o keeps more than chance, and
pages that are chosen when it is asked for nearly all. token_select reads keys at their ranks among what is chosen: to
models that copy by distance, as this one does, and that never were trained so, the distances are wrong. Cost: 6 runs of
400 steps and 162 readings; 9 minutes of one CPU core.
"""

from configs.claims import small

POLICIES = (
    "streaming", "h2o", "a2sf", "keyformer", "scissorhands", "tova", "snap", "prefix_kv", "elastic", "ems",
    "token_select", "quest", "random",
)  # fmt: skip
CODE, COPYING = "code", "copying"


def get_claim():
    """The claim, for the check `memories`."""
    config = small(400, log_every=100, rows=32, width=64)
    copying = {"data.source": "task:copying", "data.name": "payload=24, symbols=16, noise=8"}

    def over(better, worse, statement, published, budget="16", arm=CODE):
        row = {
            "statement": statement, "published": published, "measure": "bits_per_byte" if arm == CODE else "accuracy",
            "better": (arm, better, budget), "worse": (arm, worse, budget),
        }  # fmt: skip
        right = {"says": "share of the list that the full cache copies", "least": 0.95}
        right["reads"] = ("accuracy", COPYING, "full", "32")
        return row if arm == CODE else row | {"effect": 0.05, "control": right}

    return {
        "source": "Zhang et al. 2023, arXiv:2306.14048; Jo et al. 2024, arXiv:2407.20485; Adnan et al. 2024, "
        "arXiv:2403.09054; Li et al. 2024, arXiv:2412.08521; Wu et al. 2024, arXiv:2411.02886",
        "family": "decoding",
        "check": "memories",
        "statement": "What is worth keeping of a cache can be told",
        "published": "a fifth of the cache is near full quality",
        "base": config,
        "arms": {CODE: {}, COPYING: copying},
        "policies": POLICIES,
        "budgets": (16, 32),
        "axis": "tokens a layer",
        "contrasts": [
            over("h2o", "random", "H2O loses fewer bits than tokens that are kept by lot", "near full quality"),
            over("a2sf", "h2o", "A2SF loses fewer bits than H2O", "+7.8 points at equal budgets"),
            over("keyformer", "h2o", "Keyformer loses fewer bits than H2O", "99% of the accuracy, 60% of the cache"),
            over("ems", "h2o", "EMS loses fewer bits than H2O", "+1.28 points on LongBench"),
            over("elastic", "prefix_kv", "Averaging what leaves a prompt loses fewer bits than dropping it",
                 "above eviction at equal budgets"),
            over("token_select", "random", "Tokens by vote lose fewer bits than as many by lot", "near full quality"),
            over("h2o", "random", "H2O recalls more of a list than tokens that are kept by lot", "near full quality",
                 "32", COPYING),
            over("token_select", "h2o", "Tokens chosen when a list is asked for recall more of it than H2O's",
                 "above eviction on retrieval", "32", COPYING),
            over("quest", "h2o", "Pages chosen when a list is asked for recall more of it than H2O's tokens",
                 "above eviction on retrieval", "32", COPYING),
        ],
        "effect": 0.01,
        "control": {
            "says": "bits per byte with the full cache",
            "reads": ("bits_per_byte", CODE, "full", "32"),
            "most": 4.0,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
