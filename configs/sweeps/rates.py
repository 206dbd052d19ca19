"""A search for the learning rate and the weight decay of the tiny Transformer, by Optuna's TPE (pip install optuna).

    python main.py --mode=sweep --config=configs/sweeps/rates.py --workdir=runs/rates --jobs=2

Twelve trials of 200 steps of 8 x 128 bytes, four at a time: what is asked next follows from the batches before.
Optuna's own plots (history, slices, contour, parallel coordinates) go to `search/` of the workdir. Bergstra et al.
2011, "Algorithms for Hyper-Parameter Optimization".

Expect: a best rate between 3e-3 and 2e-2; weight decay matters little in so few steps. Not run to its end here.
Cost: 12 runs; planned for 3 minutes with --jobs=2 on two idle cores.
"""

from configs import transformer
from configs.presets import preset

PRESETS = {
    "": preset(
        {},
        says="A Bayesian search for the learning rate and weight decay of the tiny Transformer, with Optuna's plots",
        source="Bergstra et al. 2011, NeurIPS, Algorithms for Hyper-Parameter Optimization",
    )
}


def get_sweep():
    """The search."""
    config = transformer.get_config("tiny")
    config.data.batch_size = 8
    config.train.update({"steps": 200, "log_every": 20})
    config.eval.update({"every": 0, "rows": 160, "sample_prompt": ""})
    config.checkpoint.every = 0
    space = {"optimizer.learning_rate": ("log", 5e-4, 5e-2), "optimizer.weight_decay": ("log", 1e-3, 1.0)}
    return {"base": config, "search": {"method": "tpe", "space": space, "trials": 12, "batch": 4}}
