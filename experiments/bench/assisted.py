"""transformers' assisted generation of a pair of ours, timed beside ours where torch and transformers are installed.

The models are Llamas with our MLP in place of the gated one, and our parameters.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.pretrained import names, reading, writing


class Mlp(nn.Module):
    """up, GELU (its tanh form), down; `[..., D]`."""

    def __init__(self, D: int, F: int):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(D, F, bias=False), nn.Linear(F, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.gelu(self.up_proj(x), approximate="tanh"))


def theirs(model: Any) -> LlamaForCausalLM:
    """A trained Transformer of ours (`configs/transformer.py`) in torch.

    Errors: RuntimeError for parameters that such a model has not.
    """
    spec, told = model.program.spec, model.config.model
    tensors = writing.theirs(spec, reading.flatten(model.params), names.HUGGING_FACE["llama"])
    F = tensors["model.layers.0.mlp.up_proj.weight"].shape[0]
    config = LlamaConfig(
        vocab_size=spec.V, hidden_size=spec.D, intermediate_size=F, num_hidden_layers=told.num_layers,
        num_attention_heads=spec.N, max_position_embeddings=4096, rms_norm_eps=told.norm_eps,
        rope_theta=told.attention.rope_theta, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    for layer in made.model.layers:
        layer.mlp = Mlp(spec.D, F)
    missing = made.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in tensors.items()}, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
        raise RuntimeError(f"parameters that are not a Llama's: {missing}")
    made.tie_weights()
    generation = made.generation_config
    generation.bos_token_id = generation.eos_token_id = None
    generation.pad_token_id = 0
    return made


class Assisted:
    """Greedy texts by transformers, plain or with a draft, behind prompts' ids.

    Args:
      target, draft: of `theirs`; draft None: plain.
      prompts: ids `[n]` of each.
      tokens: of each text.
      length: drafts of a round.
    """

    def __init__(self, target: Any, draft: Any, prompts: Sequence[np.ndarray], tokens: int, length: int):
        self.target, self.draft, self.tokens = target, draft, tokens
        self.prompts = [torch.from_numpy(np.asarray(ids, np.int64))[None] for ids in prompts]
        self.texts: list[list[int]] = []
        self.calls = 0
        target.register_forward_hook(lambda *_: setattr(self, "calls", self.calls + 1))
        if draft is not None:
            told = draft.generation_config
            told.num_assistant_tokens, told.num_assistant_tokens_schedule = length, "constant"
            told.assistant_confidence_threshold = 0.0

    def __call__(self) -> tuple[float, float]:
        """(CPU, wall) seconds of all texts but for their first tokens, which the prompts' passes give."""
        self.texts, self.calls, seconds = [], 0, np.zeros(2)
        for ids in self.prompts:
            first, _ = self._seconds(ids, 1)
            self.calls -= 1
            spent, text = self._seconds(ids, self.tokens)
            seconds += spent - first
            self.texts.append(text)
        return float(seconds[0]), float(seconds[1])

    def _seconds(self, ids: torch.Tensor, tokens: int) -> tuple[np.ndarray, list[int]]:
        begun = np.array([time.process_time(), time.perf_counter()])
        more = {} if self.draft is None or tokens == 1 else {"assistant_model": self.draft}
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": tokens, "do_sample": False}
        with torch.no_grad():
            made = self.target.generate(ids, **given, **more)
        spent = np.array([time.process_time(), time.perf_counter()]) - begun
        return spent, made[0, ids.shape[1] :].tolist()
