"""Policies of what attention keeps while text is drawn: the Transformer of configs/transformer.py:tiny, read otherwise.

    python main.py --config=configs/memory.py:h2o --workdir=runs/kept
    python main.py --workdir=runs/kept --mode=evaluate                      # bits per byte under the policy
    python main.py --workdir=runs/kept --mode=evaluate --config.generate.h2o.budget=32
    python main.py --workdir=runs/kept --mode=report                        # what each layer kept

Training is that of `tiny` whatever the preset: a policy is of drawing and evaluation, and any trained run can be read
with any of them. Budgets are 64 tokens a layer; formulas, options and what differs from released code: docs/cache.md.

Expected: more bits than the full cache, and of policies that evict at equal budgets `random` loses most. Seen on the
run of configs/quickstart.py (64 rows, prompts of 64 tokens, 32 tokens kept, 16 of them recent): full 2.113 bits per
byte, h2o 2.132, random 2.141 (standard errors of the differences to full 0.005 and 0.006).
"""

from configs import base, transformer
from configs.presets import preset as made

PRESETS = {  # changes: options of the policy, generate.NAME (of `random`: generate.lot)
    "streaming": made(
        {"sinks": 4},
        says="Keeps the first 4 tokens and the last 60, placed as they lie in the cache",
        source="Xiao et al. 2023, arXiv:2309.17453",
    ),
    "h2o": made(
        {},
        says="Keeps recent tokens and those that got the most attention so far",
        source="Zhang et al. 2023, arXiv:2306.14048",
    ),
    "a2sf": made(
        {},
        says="Keeps recent tokens and those that got the most attention of late, by a forgetting factor",
        source="Jo et al. 2024, arXiv:2407.20485",
    ),
    "keyformer": made(
        {},
        says="Keeps recent tokens and those of the largest noisy softmax at a rising temperature",
        source="Adnan et al. 2024, arXiv:2403.09054",
    ),
    "scissorhands": made(
        {},
        says="Keeps recent tokens and those that few of the last queries found unimportant",
        source="Liu et al. 2023, arXiv:2305.17118",
    ),
    "tova": made(
        {},
        says="Keeps what the newest query looked at, the same tokens in all heads",
        source="Oren et al. 2024, arXiv:2401.06104",
    ),
    "snap": made(
        {},
        says="Keeps of the prompt what its end looked at, and all that is drawn",
        source="Li et al. 2024, arXiv:2404.14469",
    ),
    "pyramid": made(
        {},
        says="As snap, with a budget that falls with depth",
        source="Cai et al. 2024, arXiv:2406.02069",
    ),
    "prefix_kv": made(
        {},
        says="Keeps the best of each layer's prompt; then one place leaves a step",
        source="Wang et al. 2024, arXiv:2412.03409",
    ),
    "elastic": made(
        {},
        says="Averages what leaves a prompt into what stays of it",
        source="Liu et al. 2024, arXiv:2407.18121",
    ),
    "ems": made(
        {},
        says="Keeps by global and local attention, and merges what leaves into the most similar key",
        source="Li et al. 2024, arXiv:2412.08521",
    ),
    "token_select": made(
        {},
        says="Keeps all; a query reads the first, the last and the tokens that its heads vote for",
        source="Wu et al. 2024, arXiv:2411.02886",
    ),
    "quest": made(
        {},
        says="Keeps all; a query head reads the pages whose bound on its scores is the largest",
        source="Tang et al. 2024, arXiv:2406.10774",
    ),
    "random": made(
        {},
        says="The control: recent tokens stay, and others by lot",
        source="this house",
    ),
}


def get_config(preset: str = "h2o"):
    """The Transformer of configs/transformer.py:tiny whose text is drawn under the policy `preset`: a name above."""
    config = transformer.get_config("tiny")
    changes = base.choose("preset", preset, PRESETS).changes
    config.generate.memory = preset
    config.generate["lot" if preset == "random" else preset].update(changes)
    return config
