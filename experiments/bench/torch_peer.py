"""The same Transformer and AdamW in torch (eager, SDPA), timed beside ours when torch happens to be installed."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F_


class Block(nn.Module):
    """Pre-norm attention with rotary positions and a GELU MLP; `[B, T, D]`."""

    def __init__(self, D: int, N: int, F: int):
        super().__init__()
        self.N = N
        self.norm1, self.norm2 = nn.RMSNorm(D, eps=1e-6), nn.RMSNorm(D, eps=1e-6)
        self.qkv, self.o = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down = nn.Linear(D, F, bias=False), nn.Linear(F, D, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.N, -1).permute(2, 0, 3, 1, 4)
        out = F_.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True)
        x = x + self.o(out.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F_.gelu(self.up(self.norm2(x)), approximate="tanh"))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Model(nn.Module):
    """Tied head."""

    def __init__(self, V: int, D: int, L: int, N: int, F: int):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(D, N, F) for _ in range(L))
        self.norm, self.H = nn.RMSNorm(D, eps=1e-6), D // N

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        angle = torch.arange(tokens.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, self.H, 2) / self.H)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, angle.cos(), angle.sin())
        return self.norm(x) @ self.embedding.weight.T


def train_step(tokens: np.ndarray, *, V: int, D: int, L: int, N: int, F: int) -> Callable[[], float]:
    """A call that makes one AdamW step on `tokens [B, T + 1]`."""
    model = Model(V, D, L, N, F)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    data = torch.from_numpy(tokens).long()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(data[:, :-1])
        loss = F_.cross_entropy(logits.reshape(-1, V), data[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
