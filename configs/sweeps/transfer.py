"""Does the best learning rate carry over from a narrow model to a wider one? In mup it should, in standard it moves.

    python main.py --mode=sweep --config=configs/sweeps/transfer.py --workdir=runs/transfer --jobs=2

Yang et al. 2022, "Tensor Programs V" (arXiv:2203.03466, figure 1): under maximal updates the optimum of the learning
rate stays where a small model has it. Here: two layers, heads of 16, widths 32, 64 and 128 (base 32), four rates a
factor of 2.8 apart, both parametrizations, 150 steps of 16 x 64 bytes of the standard library's source, no warm-up
but 5%.

Expect: the best rate of `standard` falls with the width, that of `mup` stays within one place of the grid. Not run; the
claim learning_rate_transfer decides it between widths 16 and 128.
Cost: 24 runs, 1.1e12 FLOPs; planned for 5 minutes with --jobs=2, most of it starting and compiling.
"""

from configs import transformer
from configs.presets import preset

WIDTHS = (32, 64, 128)
RATES = (2e-3, 5.6e-3, 1.6e-2, 4.5e-2)
PRESETS = {
    "": preset(
        {},
        says="Whether the best learning rate carries over from a narrow model to a wider one, in mup and in standard",
        source="Yang et al. 2022, arXiv:2203.03466, figure 1",
        claim="learning_rate_transfer",
    )
}


def get_sweep():
    """The grid: rule, width, rate."""
    config = transformer.get_config("tiny")
    config.data.update({"length": 64, "batch_size": 16, "max_files": 400})
    config.model.mup.base_width = WIDTHS[0]
    config.train.update({"steps": 150, "log_every": 25})
    config.eval.update({"every": 0, "rows": 640, "sample_prompt": ""})
    config.checkpoint.every = 0
    return {
        "base": config,
        "trials": [{"model.width": width, "model.num_heads": width // 16} for width in WIDTHS],
        "grid": {"model.parametrization": ["standard", "mup"], "optimizer.learning_rate": list(RATES)},
    }
