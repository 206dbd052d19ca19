"""Three minutes on two CPU cores: a byte-level Transformer learns to write Python.

    make quickstart
    python main.py --config=configs/quickstart.py --workdir=runs/quickstart

Corpus: the Python standard library's own source on this machine. 2 layers, width 128, rotary positions, sequences of
128 bytes. Expect: below 2.6 bits per byte on held-out files (a model that knows only byte frequencies has 4.56).
"""

from configs import transformer
from configs.presets import preset

PRESETS = {
    "": preset(
        {},
        says="A byte-level Transformer learns to write Python in three minutes on two CPU cores",
        source="Vaswani et al. 2017, arXiv:1706.03762",
    )
}


def get_config():
    """The quickstart run."""
    config = transformer.get_config("tiny")
    config.data.batch_size = 8
    config.train.steps = 2400
    config.train.log_every = 20
    config.optimizer.learning_rate = 4e-3
    config.eval.every = 400
    config.eval.rows = 480
    config.checkpoint.every = 400
    return config
