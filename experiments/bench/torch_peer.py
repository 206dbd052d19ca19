"""nanoGPT's training step in torch (eager), timed beside ours where torch happens to be installed.

Source: Karpathy, nanoGPT, `model.py` and `train.py`: LayerNorm without bias, learned positions, one product for q, k,
v, scaled_dot_product_attention, exact GELU, tied head, AdamW that decays matrices only. No dropout and no clipping, as
in the steps beside it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F_


class Block(nn.Module):
    """Pre-norm causal attention and a GELU MLP; `[B, T, D]`."""

    def __init__(self, D: int, N: int, F: int):
        super().__init__()
        self.N = N
        self.norm1, self.norm2 = nn.LayerNorm(D, bias=False), nn.LayerNorm(D, bias=False)
        self.qkv, self.o = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down = nn.Linear(D, F, bias=False), nn.Linear(F, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.N, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(D, dim=2))
        out = F_.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(out.transpose(1, 2).contiguous().view(B, T, D))
        return x + self.down(F_.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    """Tokens `[B, T]` to logits `[B, T, V]`."""

    def __init__(self, V: int, D: int, L: int, N: int, F: int, T: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks = nn.ModuleList(Block(D, N, F) for _ in range(L))
        self.norm = nn.LayerNorm(D, bias=False)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def train_step(tokens: np.ndarray, *, V: int, D: int, L: int, N: int, F: int) -> Callable[[], float]:
    """A call that makes one AdamW step on `tokens [B, T + 1]`."""
    model = Model(V, D, L, N, F, tokens.shape[1] - 1)
    groups = [
        {"params": [p for p in model.parameters() if (p.dim() >= 2) == decays], "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    data = torch.from_numpy(tokens).long()

    def step() -> float:
        logits = model(data[:, :-1])
        loss = F_.cross_entropy(logits.reshape(-1, V), data[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step
