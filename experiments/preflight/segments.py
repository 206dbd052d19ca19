"""What does not go with models whose steps are of several tokens, each with a value that works."""

from collections.abc import Iterator
from typing import Any

from models.facts import listed, nearest_multiple

STEPPED = ("segmented", "hamburger")  # Kinds whose steps are of several tokens.


def problems(config: Any) -> Iterator[str]:
    """Sentences about a segmented model of bytes."""
    if config.model.kind != "segmented":
        return
    from models.segments.segmenters import SEGMENTERS

    options, why = config.model.segmented, "model.kind='segmented'"
    if options.width % (2 * options.heads):
        works = nearest_multiple(options.width, 2 * options.heads)
        yield (
            f"model.segmented.width={options.width} does not divide into model.segmented.heads={options.heads} heads "
            f"of even width; use e.g. model.segmented.width={works}."
        )
    if SEGMENTERS[options.segmenter].of_bytes and config.data.tokenizer != "bytes":
        yield (
            f"model.segmented.segmenter={options.segmenter!r} looks at bytes and data.tokenizer="
            f"{config.data.tokenizer!r} has other ids; use data.tokenizer='bytes'."
        )
    if SEGMENTERS[options.segmenter].pool == "at" and options.pool != "mean":
        yield (
            f"model.segmented.pool={options.pool!r} goes over the bytes of a segment, and model.segmented.segmenter="
            f"{options.segmenter!r} takes one of them; use model.segmented.pool='mean'."
        )
    priors = options.magnet.priors
    if options.segmenter == "magnet" and priors and not (len(priors) == 4 and all(map(_is_share, priors))):
        yield (
            f"model.segmented.magnet.priors={tuple(priors)!r} must be four numbers between 0 and 1; use e.g. "
            "model.segmented.magnet.priors=('0.2','0.1','0.1','0.1')."
        )
    if SEGMENTERS[options.segmenter].softens:
        why_soft = f"model.segmented.segmenter={options.segmenter!r}, which adds to the scores of keys"
        if set(listed(config.model.mixer)) != {"attention"}:
            yield f"model.mixer={config.model.mixer!r} does not go with {why_soft}; use model.mixer='attention'."
        if config.model.attention.softcap:
            yield (
                f"model.attention.softcap={config.model.attention.softcap} does not go with {why_soft}; use "
                "model.attention.softcap=0.0."
            )
    yield from refused(config)
    for key in ("logit_scale", "embedding_scale"):
        if not config.model[key]:
            yield f"model.{key}=0 follows the width of all layers, and {why} has two widths; use model.{key}=1.0."


def of_hamburger(config: Any) -> Iterator[str]:
    """Sentences about HAMburger."""
    if config.model.kind != "hamburger":
        return
    options, model = config.model.hamburger, config.model
    if options.least > options.most:
        yield (
            f"model.hamburger.least={options.least} tokens a group do not go with at most model.hamburger.most="
            f"{options.most}; use model.hamburger.least={options.most}."
        )
    if model.width % (2 * model.num_heads):
        works = nearest_multiple(model.width, 2 * model.num_heads)
        yield (
            f"model.width={model.width} does not divide into the model.num_heads={model.num_heads} heads of a merger "
            f"with half as many numbers of a place; use model.width={works}."
        )
    yield from refused(config)


def refused(config: Any) -> Iterator[str]:
    """What goes with no model that makes steps of several tokens of a row."""
    why = f"model.kind={config.model.kind!r}"
    for key, value, works in (
        ("objective", config.objective, "next_token"),
        ("model.parametrization", config.model.parametrization, "standard"),
        ("model.positions", config.model.positions, 0),
        ("model.time_features", config.model.time_features, 0),
        ("model.self_condition", config.model.self_condition, False),
        ("model.roles", config.model.roles, 0),
        ("init.grow_from", config.init.grow_from, ""),
        ("init.transplant", config.init.transplant, ""),
        ("init.pretrained", config.init.pretrained, ""),
    ):
        if value != works:
            yield f"{key}={value!r} does not go with {why}; use {key}={works!r}."
    generate = config.generate
    yield from decoding_problems(config.model.kind, generate.drafter, generate.memory, generate.prefill)
    if config.model.channel == "moe" or len(listed(config.model.channel)) > 1:
        yield f"model.channel={config.model.channel!r} does not go with {why}; use model.channel='swiglu'."
    if config.mesh.context != 1:
        yield f"mesh.context={config.mesh.context} cuts rows, which {why} cuts itself; use mesh.context=1."


def _is_share(text: str) -> bool:
    """Whether a text is a number between 0 and 1."""
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def decoding_problems(kind: str, drafter: str, memory: str, prefill: str = "dense") -> Iterator[str]:
    """What of `generate` reads a stack of layers, where the model of `model.kind` has several."""
    if kind in STEPPED and drafter not in ("none", "lookup"):
        yield f"generate.drafter={drafter!r} does not go with model.kind={kind!r}; use generate.drafter='lookup'."
    if kind in STEPPED and memory != "full":
        yield f"generate.memory={memory!r} does not go with model.kind={kind!r}; use generate.memory='full'."
    if kind in STEPPED and prefill != "dense":
        yield f"generate.prefill={prefill!r} does not go with model.kind={kind!r}; use generate.prefill='dense'."
