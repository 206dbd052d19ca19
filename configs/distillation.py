"""A small Transformer that learns from a larger one: the next byte as the text has it, and as a trained model would.

    python main.py --config=configs/transformer.py:tiny --workdir=runs/tiny
    python main.py --config=configs/distillation.py:tiny --workdir=runs/student

The teacher is any trained causal run with the same tokenizer: companions.teacher.workdir, runs/tiny here. It is read
when a run starts, lies on the run's mesh, and costs one forward pass a step. A run that goes on refuses another one.
Loss: (1 - w) nll + w S^2 KL(teacher || student), both at temperature S; see models/objectives/distillation.py.

| preset | student: L, D, N | teacher: L, D, N | w   | S | expected                                                    |
|--------|------------------|------------------|-----|---|-------------------------------------------------------------|
| tiny   | 1, 64, 2         | 2, 128, 4        | 0.5 | 2 | not run; to beat, the student alone: distillation.weight=0  |

`train/nll` is the text's own term, `train/kl` the divergence at the temperature, in nats a token. What is evaluated is
the exact likelihood of the student, so that bits per byte compare with those of every other run.
"""

from configs import base, transformer
from configs.presets import preset as made

PRESETS = {
    "tiny": made(
        {"num_layers": 1, "width": 64, "num_heads": 2},
        says="A Transformer of one layer learns from the tiny one, whose predictions it sees beside the text",
        source="Hinton et al. 2015, arXiv:1503.02531",
        needs="python main.py --config=configs/transformer.py:tiny --workdir=runs/tiny",
    ),
}


def get_config(preset: str = "tiny"):
    """The student of `preset`: tiny."""
    config = transformer.get_config("tiny")
    config.model.update(base.choose("preset", preset, PRESETS).changes)
    config.objective = "distillation"
    config.companions.teacher.workdir = "runs/tiny"
    return config
