"""SwiftKV: a trained Transformer whose later layers read an early one, distilled from itself.

    python main.py --config=configs/transformer.py:tiny --workdir=runs/tiny
    python main.py --config=configs/swiftkv.py --workdir=runs/swift

A prompt passes the first l layers alone: later layers need keys and values of it, which are made of what leaves layer l
(docs/cache.md). The run starts as its teacher (companions.teacher.workdir, runs/tiny here), rewired: any trained run
with model.kind="lm" and model.mixer="attention", whose model settings it then has. Queries, keys and values of the
later layers and the norm before them train, all else is held. With four layers in both runs,
`--config.model.swiftkv.share=2` lets the two later ones read one cache.

| preset | layers, l, g | caches | prompt, linear maps | expected                                                    |
|--------|--------------|--------|---------------------|-------------------------------------------------------------|
|        | 2, 1, 1      | 2      | 0.58                | of four layers, distilled and not: docs/claims/swiftkv.md   |

l = L / 2, g = 1, S = 2 and a rate of 2e-4 are published for models of 8 billion parameters.
"""

from configs import transformer
from configs.presets import preset

TRAINED = ("*", "!stack/late/*/q/*", "!stack/late/keys/*", "!stack/norm/*")  # of the parameters, what trains

PRESETS = {
    "": preset(
        {"layer": 0, "share": 1},
        says="Prompts pass half of the layers; the others read keys that are made of what leaves them",
        source="Qiao et al. 2024, arXiv:2410.03960",
        needs="python main.py --config=configs/transformer.py:tiny --workdir=runs/tiny",
    )
}


def get_config():
    """The rewired student of runs/tiny."""
    config = transformer.get_config("tiny")
    config.model.kind = "swiftkv"
    config.model.swiftkv.update(PRESETS[""].changes)
    config.companions.teacher.workdir, config.init.rewire_from = "runs/tiny", "teacher"
    config.objective = "swiftkv"
    config.optimizer.freeze = TRAINED
    return config
