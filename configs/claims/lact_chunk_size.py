"""Claim: fast weights updated in large chunks use the machine far better than in small ones, at no cost in quality.

    python main.py --mode=claim --config=configs/claims/lact_chunk_size.py --workdir=runs/claims/lact_chunk --jobs=2

Zhang et al. 2025, "Test-Time Training Done Right": test-time training in chunks of 16 to 64 tokens stays below 5% of
the peak of an A100, in chunks of 2048 and more it reaches up to 70% with plain matmuls. Here: two layers of LaCT (width
128, four fast networks of width 32, momentum and Newton-Schulz) on bytes of the standard library's source, rows of
1024 tokens. Only the chunk changes, 16 to 256: the window stays at 256, so that every token is seen by someone. Share:
FLOPs of a training step, as `--mode=plan` counts them, over the matmul rate of float32 measured beside it; steps of all
chunks take turns. Three seeds, paired by seed, 95% intervals (Student t).

Expect: a share that grows with the chunk. Small chunks also learn more often, with 16 times as many updates, so quality
may go either way. Cost: nine runs of 120 steps of 2 x 1024 bytes; took 7.5 minutes on two CPU cores.
"""

from configs import lact

CHUNKS = (16, 64, 256)


def get_claim():
    """The claim, for the check `table`."""
    config = lact.get_config("tiny")
    config.model.lact.window = 256
    config.data.update({"length": 1024, "batch_size": 2})
    config.train.update({"steps": 120, "log_every": 20})
    config.eval.update({"every": 0, "rows": 40, "sample_prompt": ""})
    config.checkpoint.every = 0
    cells = {"better": ("LaCT", str(CHUNKS[-1])), "worse": ("LaCT", str(CHUNKS[0]))}
    return {
        "source": "Zhang et al. 2025, Test-Time Training Done Right",
        "family": "mixers and memory",
        "check": "table",
        "statement": "Large chunks use the machine better than small ones and cost no quality",
        "published": "up to 70% of the peak of an A100 in large chunks, below 5% in chunks of 16 to 64",
        "base": config,
        "lines": {"LaCT": {}},
        "points": {str(chunk): {"model.lact.chunk_size": chunk} for chunk in CHUNKS},
        "axis": "tokens a chunk",
        "contrasts": [
            {
                "statement": "LaCT in chunks of 256 tokens uses more of the machine than in chunks of 16",
                "published": "up to 70% of the peak of an A100 in large chunks, below 5% in chunks of 16 to 64",
                "measure": "share",
                **cells,
            },
            {
                "statement": "LaCT in chunks of 256 tokens ends at a lower loss than in chunks of 16, at equal steps",
                "published": "not given for the language model",
                "measure": "loss",
                **cells,
            },
        ],
        "seeds": (0, 1, 2),
    }
