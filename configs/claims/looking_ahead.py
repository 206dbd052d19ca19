"""Claim: looking ahead where a model is unsure finds better answers.

    python main.py --mode=claim --config=configs/claims/looking_ahead.py --workdir=runs/claims/looking_ahead

He et al. 2025 (AdaDec, arXiv:2506.08980): where the entropy is high, the likeliest candidates are tried with greedy
roll-outs and the one of the best mean log-probability is written. Wang et al. 2025 (CNTP, arXiv:2507.03038): the higher
the entropy, the more trials to the next punctuation, of which the least perplexing stays.

Two tasks, a model each: sums of two numbers of one or two digits, written with the highest digit first, so that a carry
must be foreseen; and programs of three assignments with the value of each behind them, which running them decides (a
trial ends at the end of a value). Training ends while about half of the answers are right. All settings read the
same held-out prompts.

AdaDec is beside greedy decoding (look-ahead of 5 tokens, 3 candidates, from 0.3 nats on); CNTP (at most 8 trials)
beside plain sampling, and beside the likeliest of n texts at as many passes of the model (between n = 1, 2 and 4 by
straight lines).

The control: of four draws one is right more often than one draw, by at least 0.1, so that choosing can gain something.

Expect: as published. Seen: trials beat plain sampling on sums by 12 points, and are within a point of the likeliest
of n texts at as many passes; on programs so, too, and there they are ahead of plain sampling by 4 points with an
interval that holds 0. Looking ahead writes what greedy decoding writes: a model so small is unsure where its greedy
roll-outs are too. Three seeds had left two rows open; the second look, with nine, was added after they were seen, and
decided one of them. Models of programs differ (0.02 bits where one learned them whole), so that the other asks for
123 seeds. Cost: 18 runs of 600 steps, some 15 CPU minutes with the reading.
"""

from configs.claims import small


def get_claim():
    """The claim, for the check `steered`."""
    config = small(600, log_every=100, rows=1024)
    config.model.init, config.optimizer.learning_rate = "fan_in", 0.01
    config.data.batch_size = 64
    contrasts, ahead, tasks = [], ("adadec", "0.3"), {"sums": "arithmetic", "programs": "code"}
    for arm, what in tasks.items():
        control = {"says": f"one of four draws ahead of one, {arm}", "reads": ("gain", arm), "least": 0.1}
        row = {"measure": "exact", "control": control}
        contrasts += [
            row | {
                "statement": f"Looking ahead at unsure steps is ahead of greedy decoding ({what})",
                "published": "Pass@1 up to 15.5 points above greedy decoding (AdaDec, code)",
                "better": (arm, *ahead), "worse": (arm, "greedy", "1"),
            },
            row | {
                "statement": f"Trials to the next punctuation are ahead of plain sampling ({what})",
                "published": "ahead of sampling on GSM8K and MATH (CNTP)",
                "better": (arm, f"cntp_{arm}", "8"), "worse": (arm, "best_of_n", "1"),
            },
            row | {
                "statement": f"So they are of the likeliest of n texts at as many passes ({what})",
                "published": "as good as self-consistency of more tokens (CNTP)",
                "better": (arm, f"cntp_{arm}", "8"), "worse": (arm, "best_of_n"), "at": "calls",
            },
        ]  # fmt: skip
    hot, stops = {"temperature": 1.0}, {"sums": "12", "programs": "15"}
    others = ("greedy", "adadec", "best_of_n", "drawn")
    several = {str(n): hot | {"control": "best_of_n", "best_of_n": {"n": n}} for n in (2, 4)}
    return {
        "statement": "Looking ahead where a model is unsure finds better answers",
        "source": "He et al. 2025, arXiv:2506.08980; Wang et al. 2025, arXiv:2507.03038",
        "published": "ahead of greedy decoding, of sampling, and of more samples",
        "family": "decoding",
        "check": "steered",
        "base": config,
        "arms": {
            "sums": {
                "data.source": "task:arithmetic", "data.name": "digits=2", "data.length": 12,
            },
            "programs": {
                "data.source": "task:programs", "data.name": "statements=3", "data.length": 24,
            },
        },
        "lines": {
            "greedy": {"1": {"temperature": 0.0}},
            "adadec": {
                str(bar): {"temperature": 0.0, "control": "adadec", "adadec": {"threshold": bar}}
                for bar in (0.1, 0.3, 1.0)
            },
            **{
                f"cntp_{arm}": {"8": hot | {"control": "cntp", "cntp": {"most": 8, "stops": stop}}}
                for arm, stop in stops.items()
            },
            "best_of_n": {"1": hot} | several,
            "drawn": {"4": hot},
        },
        "reads": {arm: (*others, f"cntp_{arm}") for arm in tasks},
        "draws": {"drawn": 4},
        "axis": "threshold, trials or texts",
        "gain": {arm: (("any_of", (arm, "drawn", "4")), ("exact", (arm, "drawn", "4"))) for arm in tasks},
        "contrasts": contrasts,
        "effect": 0.02,
        "control": contrasts[0]["control"],
        "looks": (3, 9),
        "hours": 0.8,
        "seeds": tuple(range(9)),
    }  # fmt: skip
