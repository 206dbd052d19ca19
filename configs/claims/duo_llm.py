"""Claim: paths through big and small layers that know the answer beat a model of big layers, and no router finds them.

    python main.py --mode=claim --config=configs/claims/duo_llm.py --workdir=runs/claims/duo_llm

Alizadeh et al. 2024 (Duo-LLM, arXiv:2410.10846): a model learns with a big or a small feed-forward layer, or none,
drawn by chance for each token and layer. The best path of each token, by trying all of them, beats all-big with one big
layer of twelve; routers that are trained on the same model stay near fixed patterns.

Here: bytes of the standard library's source, four layers of width 64, modules of width 512 and 16 and one that skips. A
second run begins with that model, holds all but the router, and trains it with a straight-through gate and a budget of
one big layer in two. All 81 paths of every token of a few held-out rows are tried, while all other tokens have big
layers. The oracle knows the next byte: it is a bound for routers, not one of them.

The control: big layers beat skipped ones by 0.1 nats, so that the choice of a path matters.

Tried before these settings, the control in nats: big modules of width 128 after 400 steps 0.091 and after 800 steps
0.095 (three seeds each, 8 rows), after 2400 steps 0.104 (one seed), and of width 256 after 800 steps 0.115 (the seed
that had 0.109 with width 128).

Expect, as seen: with at most one big layer the best paths are 0.22 nats below big layers, the oracle is 0.24 below the
router at its cost, and the router is as good as one path for all. Cost: 6 runs of 800 and 200 steps of 16 x 64 bytes,
and 81 passes over 16 rows a seed; 11 CPU minutes.
"""

from configs.claims import small

MODULES = {
    "model.channel": "moe", "model.moe.router": "duo_chance", "model.moe.experts": 1, "model.moe.k": 1,
    "model.moe.hidden": 512, "model.moe.small": 1, "model.moe.small_hidden": 16, "model.moe.zero": 1,
    "model.moe.balance": 0.0, "model.moe.z_loss": 0.0, "model.moe.budget": 1.0,
}  # fmt: skip


def get_claim():
    """The claim, for the check `paths`."""
    config = small(800, log_every=100, rows=320)
    config.data.length = 64
    config.model.update({"init": "fan_in", "num_layers": 4})
    config.optimizer.learning_rate = 1e-2
    return {
        "source": "Alizadeh et al. 2024, arXiv:2410.10846",
        "family": "experts",
        "check": "paths",
        "statement": "Paths that know the answer beat a model of big layers, and no router finds them",
        "published": "an oracle with one big layer of twelve beats all-big; routers stay near fixed patterns",
        "base": config,
        "chance": MODULES | {"model.moe.budget": 0.0},
        "router": MODULES | {
            "model.moe.chance": 0.0, "optimizer.freeze": ("*", "!*/channel/router"), "train.steps": 200,
            "optimizer.weight_decay": 0.0,
        },
        "texts": 16,
        "pairs": [
            {
                "statement": "The best path of each token with one big layer loses less than big layers alone",
                "published": "with one big layer of 12 the oracle is below all-big", "better": "one big",
                "worse": "all big",
            },
            {
                "statement": "The best path of each token loses less than a trained router's at the same cost",
                "published": "a wide gap between oracle and routers", "better": "oracle", "worse": "router",
            },
            {
                "statement": "A trained router loses less than the best fixed path of its mean cost",
                "published": "trained routers stay near fixed patterns", "better": "router", "worse": "fixed",
            },
        ],
        "effect": 0.05,
        "control": {
            "says": "nats a token that big layers gain on skipped ones", "reads": ("gain",), "least": 0.1,
        },
        "looks": (3,),
        "hours": 1.0,
        "seeds": (0, 1, 2),
    }  # fmt: skip
