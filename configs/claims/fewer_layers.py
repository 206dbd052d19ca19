"""Claim: tokens late in a text need fewer layers.

    python main.py --mode=claim --config=configs/claims/fewer_layers.py --workdir=runs/claims/fewer_layers

Del Corro et al. 2023 (SkipDecode, arXiv:2307.02628): the number of layers falls along the text, from all of them to a
few, the same for every row; the first layer and the last ones are those that run. Beside it, at as many layers computed
a token: exits by trained classifiers (Sun et al. 2024, arXiv:2401.09964), and a model that never had more layers.

A model of six layers learns the default corpus, which is code, byte by byte, with the classifiers and the early layers'
own predictions (`objective=exits`), so that states of early layers can be read; it is not trained with layers left
out. The first half of each held-out row is a prompt, the second is scored token by token under each setting, keys and
values as the setting leaves them.

The control: all six layers are ahead of the schedule that falls to one by at least 0.05 nats, so that layers are worth
something to the model. (First it was a model of one layer, with other seeds: six were not ahead of it, -0.005 nats; the
text and the model are so small. Those runs are not in the verdict.)

Expect: as published. Seen: leaving two of six layers out costs 0.10 nats (a schedule down to one 0.12): a model that
did not learn to skip pays for it, and one of four layers is as good as all six here. Exits by classifiers are ahead of
the schedule in each seed, by no decided margin. Cost: 6 runs of 400 steps, some 5 CPU minutes with the reading.
"""

from configs.claims import small


def get_claim():
    """The claim, for the check `steered`."""
    config = small(400, log_every=100, rows=64)
    config.data.batch_size, config.generate.temperature = 8, 1.0
    skip = {str(n): {"control": "skip", "skip": {"least": n}} for n in (1, 2, 4)}
    leave = {
        str(bar): {"control": "early_exit", "early_exit": {"threshold": bar, "stops": False}}
        for bar in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    }
    half = ("deep", "skip", "2")
    row = {"measure": "loss", "better": half}
    return {
        "statement": "Tokens late in a text need fewer layers",
        "source": "Del Corro et al. 2023, arXiv:2307.02628; Sun et al. 2024, arXiv:2401.09964",
        "published": "2 to 5 times less computing with little loss, ahead of exits",
        "family": "decoding",
        "check": "steered",
        "base": config,
        "arms": {
            "deep": {"model.num_layers": 6, "objective": "exits"},
            "four": {"model.num_layers": 4},
        },
        "prompt": config.data.length // 2,
        "lines": {"full": {"6": {}}, "skip": skip, "exits": leave},
        "reads": {"four": ("full",)},
        "axis": "least layers, or threshold",
        "gain": {"depth": (("loss", ("deep", "full", "6")), ("loss", ("deep", "skip", "1")))},
        "contrasts": [
            row | {
                "worse": ("deep", "full", "6"), "effect": 0.05,
                "statement": "A schedule that falls from six layers to two costs nothing against all six",
                "published": "little loss at 2 times less computing (SkipDecode)",
            },
            row | {
                "better": ("deep", "skip", "4"), "worse": ("deep", "exits"), "at": "layers",
                "statement": "One that falls to four is ahead of exits by classifiers at as many layers a token",
                "published": "ahead of early exits (SkipDecode)",
            },
            row | {
                "worse": ("four", "full", "6"),
                "statement": "The one down to two is ahead of a model of four layers, as many as it computes a token",
                "published": "a row of this house",
            },
        ],
        "effect": 0.02,
        "control": {
            "says": "six layers ahead of a schedule down to one, nats", "reads": ("gain", "depth"), "least": 0.05,
        },
        "looks": (3,),
        "hours": 0.4,
        "seeds": (3, 4, 5),
    }  # fmt: skip
