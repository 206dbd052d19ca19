"""What a claim measures of experts: the load of a finished run over its held-out rows."""

import functools
import os

import numpy as np

from experiments.program import inputs
from experiments.routing import traces
from experiments.training import traced
from experiments.workdir import trained
from models.experts import balance, sparsity
from models.experts.options import Options

DEVICES = 4  # that experts are thought to lie on, neighbours together
WINDOW = 8  # tokens of a chunk, as BlockFFN states its sparsity


def figures(workdir: str | os.PathLike) -> dict[str, float]:
    """Means over the layers of a run of experts, over its held-out rows.

    specialisation: I(row; expert), nats; what an even router of the same rows has by chance is within it.
    imbalance: (largest - smallest load of four devices) / tokens; 0 where four devices do not divide the experts.
    costly: experts of a token that cost something.
    token_sparsity, chunk_sparsity: the share of the costly experts that a token, or 8 neighbours together, do not have.
    """
    return dict(_figures(str(workdir)))


@functools.lru_cache(maxsize=64)
def _figures(workdir: str) -> tuple[tuple[str, float], ...]:
    model = trained.load(workdir)
    kinds = Options.of(model.program.spec.options["moe"]).kinds
    batches = inputs.eval_batches(model.config, model.corpus, model.program.rows)
    read = [*traced.by_row(model.program, model.params, batches)]
    index, there, _ = (np.concatenate(parts) for parts in zip(*read, strict=True))
    found = [
        of_layer(index[:, :, layer], there, kinds.total, kinds.first("constant")) for layer in range(index.shape[2])
    ]
    return tuple((name, float(np.mean([each[name] for each in found]))) for name in found[0])


def of_layer(index: np.ndarray, there: np.ndarray, experts: int, costly: int) -> dict[str, float]:
    """The figures of one layer: index `[R, T, K]`, there `[R, T]` bool; the first `costly` experts cost something."""
    R, T, _ = index.shape
    chosen = (index[..., None] == np.arange(experts)).any(2) & there[..., None]  # [R, T, E]
    counted, tokens = chosen.sum(1), int(there.sum())
    active = chosen[..., :costly]
    whole = T // WINDOW * WINDOW
    chunks = active[:, :whole].reshape(-1, WINDOW, costly)
    full = there[:, :whole].reshape(-1, WINDOW).all(1)
    even = costly % DEVICES == 0
    return {
        "specialisation": traces.information(counted),
        "imbalance": float(balance.imbalance(counted.sum(0)[:costly], DEVICES, tokens)) if even else 0.0,
        "costly": float(active.sum() / tokens),
        "token_sparsity": float(sparsity.token_sparsity(active[there])),
        "chunk_sparsity": float(sparsity.chunk_sparsity(chunks[full].reshape(-1, costly), WINDOW)),
    }
