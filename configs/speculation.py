"""Transformers of seconds whose text is drafted, several tokens a pass: how each drafter is asked for.

    python main.py --config=configs/speculation.py:recycling --workdir=runs/recycling
    python main.py --mode=evaluate --workdir=runs/recycling
    python main.py --mode=generate --workdir=runs/recycling --prompt="def " --config.generate.drafter=trie

| preset    | drafts come from                                    | expected                                   |
|-----------|-----------------------------------------------------|--------------------------------------------|
| recycling | each token's latest likeliest successors, as a tree | 2.29 tokens a call on code: docs/claims    |
| trie      | what followed in the prompt and in outputs          | 3.29 tokens a call on code: docs/claims    |
| exit      | the model's own first layer                         | 2.72 tokens a call on code: docs/claims    |
| heads     | the model's heads of tokens ahead (multi_token)     | not run                                    |
| eagle     | a head that predicts the features of a frozen model | not run                                    |
| ppd       | prompt tokens that learn beside a frozen model      | not run                                    |
| sorted    | the first layer, which learns beside the whole      | not run                                    |

Drafts change no text at temperature 0, and none at all with `generate.verifier=same_draw`; `--mode=evaluate` measures
them behind held-out prompts, and `docs/speculation.md` has all drafters and verifiers. A drafter that reads a smaller
run (`model_draft`, `model_tree`) is given its workdir: --config.generate.model_tree.workdir=runs/small. The head of
`eagle` and the prompt tokens of `ppd` learn beside a trained model: --config.init.warm_start=runs/tiny.
"""

from configs import base, multi_token, transformer
from configs.presets import preset as made

PRESETS = {
    "recycling": made(
        {"drafter": "recycling"},
        says="Drafts a tree from a table of each token's latest likeliest successors, without a draft model",
        source="Luo et al. 2024, arXiv:2408.08696",
        claim="speculation",
    ),
    "trie": made(
        {"drafter": "trie"},
        says="Drafts what followed the last tokens before, from a trie of prompts and outputs on the host",
        source="Zhao et al. 2023, arXiv:2312.12728",
        claim="speculation",
    ),
    "exit": made(
        {"drafter": "exit"},
        says="Drafts with the model's own first layers, and verifies with all of them",
        source="Zhang et al. 2023, arXiv:2309.08168; Elhoushi et al. 2024, arXiv:2404.16710",
        claim="speculation",
    ),
    "heads": made(
        {"drafter": "heads"},
        says="Drafts with the heads of tokens ahead that the model was trained with, all in one pass",
        source="Stern et al. 2018, arXiv:1811.03115; Gloeckle et al. 2024, arXiv:2404.19737",
    ),
    "eagle": made(
        {"drafter": "eagle"},
        says="Trains a head of one layer on the features of a frozen model, and drafts with it",
        source="Li et al. 2024, arXiv:2401.15077",
    ),
    "ppd": made(
        {"drafter": "ppd"},
        says="Trains prompt tokens on a frozen model, which guess what follows in the pass that verifies",
        source="Chen et al. 2024, arXiv:2405.18628",
    ),
    "sorted": made(
        {"drafter": "exit"},
        says="Trains the first layer as a model of its own beside the whole, and drafts with it",
        source="Kavehzadeh et al. 2024, arXiv:2407.01955",
    ),
}
HEADS_ALONE = ("*", "!heads/*")  # of `optimizer.freeze`: what an objective adds learns, the model is held


def get_config(preset: str = "recycling"):
    """configs/transformer.py:tiny (of `heads`: configs/multi_token.py:tiny) with the drafter of `preset`."""
    changes = base.choose("preset", preset, PRESETS).changes
    config = multi_token.get_config() if preset == "heads" else transformer.get_config("tiny")
    config.generate.update(changes)
    if preset in (learn := {"eagle": "eagle", "ppd": "prompt_tokens"}):
        config.objective, config.optimizer.freeze = learn[preset], HEADS_ALONE
    if preset == "ppd":
        config.optimizer.learning_rate = 1e-2
    if preset == "sorted":
        config.objective = "sorted"
    if preset in ("exit", "sorted"):
        config.generate.exit.layers = 1
    return config
