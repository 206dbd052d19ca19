"""What the preflight says about a run that starts from pretrained weights; it reads the front of their files alone."""

from collections.abc import Iterator
from typing import Any

from configs import families
from configs.families.fields import TRAINING
from experiments.settings.keys import flatten, short

FREE = ("vocab_size", *TRAINING)  # The first may be larger: more rows, which are zero.


def problems(config: Any) -> Iterator[str]:
    """Two starts, files that cannot be read, a model that is not theirs, a tokenizer that cannot be."""
    path, init = config.init.pretrained, config.init
    if not path:
        return
    for key in ("warm_start", "grow_from"):
        if init[key]:
            yield f"init.pretrained={short(path)} and init.{key} both start the run; use init.{key}=''."
    try:
        family, told = families.describe(path)
    except families.Unreadable as error:
        yield f"init.pretrained: {error}"
        return
    flat = flatten(config.model.to_dict())
    for key, value in told.items():
        if key not in FREE and _plain(flat.get(key)) != _plain(value):
            yield (
                f"model.{key}={short(flat.get(key))} is {short(value)} in the {family} at init.pretrained="
                f"{short(path)}; use --config=configs/pretrained.py:{path}, or model.{key}={short(value)}."
            )
    if config.data.tokenizer in ("bytes", "bpe") and not config.data.source.startswith("task"):
        yield (
            f"data.tokenizer={config.data.tokenizer!r} has other ids than init.pretrained={short(path)} was trained "
            f"on; use data.tokenizer={short(path)}."
        )


def _plain(value: Any) -> Any:
    """Equal for tuples and lists of equal elements, and for equal numbers."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
