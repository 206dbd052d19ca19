"""Claim: the loss of over-trained models of more compute follows from a law fitted to small runs.

    python main.py --mode=claim --config=configs/claims/overtraining.py --workdir=runs/claims/overtraining --jobs=2

Gadre et al. 2024, "Language models scale reliably with over-training and on downstream tasks" (arXiv:2403.08540): L = E
+ (a M^eta + b M^-eta) C^-eta, M tokens per parameter, C FLOPs, predicts the loss of a 1.4B-parameter, 900B-token run (32
times over-trained) from runs of 300 times less compute. Here: bytes of the standard library's source, three sizes at M =
5, 10, 20, 40 for the fit, and two runs of at least 8 times the compute at M = 40 and 160 to be predicted.

Expect: an error of a few per cent at best: a law of four parameters on twelve tiny runs. It counts as reliable within 2%.
Cost: 28 runs, 2.6e13 FLOPs; planned for 10 minutes with --jobs=2.
"""

from configs import transformer

# L, D, N and about how many parameters: what tokens per parameter are counted with.
SIZES = {"a": (2, 32, 1, 33_024), "b": (2, 48, 2, 67_968), "c": (2, 64, 2, 115_200)}


def get_claim():
    """The claim, for the check `overtraining`."""
    config = transformer.get_config("tiny")
    config.data.batch_size = 4
    config.train.log_every = 50
    config.eval.update({"every": 0, "batches": 200, "sample_prompt": ""})
    config.checkpoint.every = 1000
    return {
        "statement": "The loss of over-trained runs follows from a law fitted to runs of an eighth of their compute",
        "source": "Gadre et al. 2024, arXiv:2403.08540, section 3",
        "published": "1.4B at 640 tokens per parameter predicted from 300 times less compute",
        "check": "overtraining",
        "base": config,
        "small": [_run(config, name, ratio) for name in SIZES for ratio in (5, 10, 20, 40)],
        "large": [_run(config, "b", 800), _run(config, "c", 320)],
        "law": "overtraining",
        "within": 0.02,
        "seeds": (0, 1),
    }


def _run(config, name: str, ratio: int):
    layers, width, heads, parameters = SIZES[name]
    return {
        "model.num_layers": layers,
        "model.width": width,
        "model.num_heads": heads,
        "optimizer.learning_rate": 4e-3 * (128 / width) ** 0.5,
        "train.steps": round(ratio * parameters / (config.data.batch_size * config.data.length)),
    }
