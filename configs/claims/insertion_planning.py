"""Claim: models that write in any order find paths that a left-to-right model cannot, and insertion finds most.

    python main.py --mode=claim --config=configs/claims/insertion_planning.py \\
        --workdir=runs/claims/insertion_planning --jobs=2

Patel et al. 2025, "Insertion Language Models" (arXiv:2505.05755): on star graphs with arms of unequal length insertion
answers 100% (medium) and 99.1% (hard), masked diffusion 36.5% and 21.0%, an autoregressive model 23.0% (hard). The
first node of the path can only be found from the goal, backwards, edge by edge (Bachmann and Nagarajan 2024).
Here: two arms of two or three nodes with shuffled names, paths of unknown length; two layers, width 64, equal FLOPs.
The masked model fills four places, END as padding, the surest first; the others stop by themselves. All are greedy.

Expect: the paper's order, if the models learn to follow edges at all: a masked one began to after 700 steps at equal
arms. Cost: nine runs of 2400 steps of 32 rows of 22 tokens; took 7.5 minutes with --jobs=2.
"""

from configs.claims import small

SETTINGS = "arms=2, least=2, most=3, nodes=7"


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(2400, log_every=50, every=400, rows=1024)
    config.data.update({"source": "task:star_graph", "name": SETTINGS, "length": 21, "batch_size": 32})
    config.optimizer.learning_rate = 8e-3
    config.eval.batch_size = 64
    config.generate.temperature = 0.0
    config.generate.insertion.update({"stop": "threshold", "threshold": 0.5})
    rivals = {
        "masked": ("masked diffusion", "100 against 36.5% (medium), 99.1 against 21.0% (hard)"),
        "autoregressive": ("next-token prediction", "99.1 against 23.0% (hard)"),
    }
    return {
        "statement": "Insertion finds paths in star graphs that other models do not",
        "source": "Patel et al. 2025, arXiv:2505.05755",
        "published": "hard: insertion 99.1%, masked diffusion 21.0%, autoregressive 23.0%",
        "family": "objectives",
        "check": "contrast",
        "base": config,
        "arms": {
            "insertion": {"objective": "insertion", "data.isolate": False},
            "masked": {
                "objective": "masked_diffusion",
                "data.name": f"{SETTINGS}, room=4",
                "generate.diffusion.method": "max_prob",
            },
            "autoregressive": {"objective": "next_token"},
        },
        "equal_to": "insertion",
        "pairs": [
            {
                "statement": f"Insertion finds paths in star graphs more often than {name}, at equal compute",
                "published": published,
                "better": "insertion",
                "worse": worse,
            }
            for worse, (name, published) in rivals.items()
        ],
        "effect": 0.05,
        "control": {"says": "insertion answers, share", "reads": ("exact", "insertion"), "least": 0.9},
        "looks": (3, 6),
        "hours": 1.0,
        "seeds": tuple(range(12)),
    }
