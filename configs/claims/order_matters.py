"""Claim: in which order a set is written decides how well writing it is learned, though all orders say the same.

    python main.py --mode=claim --config=configs/claims/order_matters.py --workdir=runs/claims/order_matters --jobs=2

Vinyals et al. 2016, "Order Matters: Sequence to sequence for sets" (arXiv:1511.06391): the order in which input or
output is arranged matters significantly when learning a model. The paper shows it with recurrent networks on parsing,
language modelling, sorting and graphical models; here a transformer writes out a set of 8 of 32 symbols, in ascending
order or from the middle outwards. Both orders hold the same information and cost the same compute.

Expect: ascending wins, since the smallest of what is left is easier than the median. Cost: six runs of 1500 steps of
64 rows of 16 tokens; planned for 4 minutes with --jobs=2.
"""

from configs.claims import small


def get_claim():
    """The claim, for the check `contrast`."""
    config = small(1500, log_every=50, every=150, rows=1024, save=500)
    config.data.update({"source": "task:sorting", "length": 16, "batch_size": 64})
    return {
        "statement": "A set is learned better written in ascending order than from its middle outwards",
        "source": "Vinyals et al. 2016, arXiv:1511.06391",
        "published": "output order matters significantly (recurrent networks; no figure for this pair)",
        "family": "order and format of data",
        "check": "contrast",
        "base": config,
        "arms": {
            "ascending": {"data.name": "items=8, symbols=32, order=ascending"},
            "middle first": {"data.name": "items=8, symbols=32, order=median"},
        },
        "better": "ascending",
        "worse": "middle first",
        "seeds": (0, 1, 2),
    }
