"""What the preflight knows of mixers that learn along the row: the names they take, and what does not go together."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.preflight import mesh as preflight_mesh


def choices() -> dict[str, Sequence[str]]:
    """Key of the config -> the names it takes."""
    from kernels.lact.reference import NORMALIZE

    return {"model.lact.normalize": NORMALIZE}


def problems(config: Any) -> Iterator[str]:
    """Heads that these mixers cannot share or divide, and chunks in which nothing is ever learned."""
    model = config.model
    names = [name.strip() for name in model.mixer.split(",")]
    grouped = [name for name in names if name != "attention"]
    if grouped and model.num_kv_heads not in (0, model.num_heads):
        yield (
            f"model.num_kv_heads={model.num_kv_heads} is for attention, and model.mixer={grouped[0]!r} has keys for "
            "every head; use model.num_kv_heads=0."
        )
    if "lact" not in names:
        return
    lact, width = model.lact, model.num_heads * (model.head_dim or model.width // model.num_heads)
    tensor = config.mesh.tensor if "tensor" in config.sharding.heads else 1
    if width % lact.heads:
        fits = preflight_mesh.largest_divisor(width, lact.heads)
        yield f"model.lact.heads={lact.heads} must divide the {width} channels of q; use e.g. model.lact.heads={fits}."
    elif tensor > 1 and lact.heads % tensor:
        yield (
            f"model.lact.heads={lact.heads} does not divide over mesh.tensor={tensor}; "
            f"use e.g. model.lact.heads={-(-lact.heads // tensor) * tensor}."
        )
    context = config.mesh.context if config.sharding.sequence else 1
    if context > 1 and lact.chunk_size % context:
        yield (
            f"model.lact.chunk_size={lact.chunk_size} does not divide over mesh.context={context}, whose devices share "
            f"every chunk; use e.g. model.lact.chunk_size={-(-lact.chunk_size // context) * context}."
        )
    if lact.chunk_size >= config.data.length:
        yield (
            f"model.lact.chunk_size={lact.chunk_size} leaves no token of data.length={config.data.length} to read what "
            f"a chunk taught; use e.g. model.lact.chunk_size={max(1, config.data.length // 4)}."
        )
