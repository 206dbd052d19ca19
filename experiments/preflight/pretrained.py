"""What the preflight says about a run that starts from pretrained weights; it reads the front of their files alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from configs import families
from configs.families.fields import TRAINING
from experiments.settings.keys import flatten, short
from experiments.workdir.saved import holds_checkpoint

FREE = ("vocab_size", *TRAINING)  # The first may be larger: more rows, which are zero.


def problems(config: Any) -> Iterator[str]:
    """Two starts, files that cannot be read, a model that is not theirs, a tokenizer that cannot be."""
    path, init = config.init.pretrained, config.init
    if init.transplant and not holds_checkpoint(init.transplant):
        yield from _of_transplant(init.transplant, config)
    if init.transplant_rule == "zett":
        yield from _of_network(init.zett, config.model.width * (1 if config.model.tied else 2))
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
    yield from _unlike("pretrained", path, family, told, config)
    if config.data.tokenizer in ("bytes", "bpe") and not config.data.source.startswith("task"):
        yield (
            f"data.tokenizer={config.data.tokenizer!r} has other ids than init.pretrained={short(path)} was trained "
            f"on; use data.tokenizer={short(path)}."
        )


def _of_network(zett: Any, output: int) -> Iterator[str]:
    """Sizes of a hypernetwork that cannot be; `output`: the numbers that it writes for a piece."""
    width = zett.width or output
    if width % zett.heads:
        yield (
            f"init.zett.heads={zett.heads} does not divide the {width} numbers of init.zett.width; use "
            f"init.zett.width={zett.heads * max(1, width // zett.heads)}."
        )
    if 0 < zett.pieces <= 256:
        yield f"init.zett.pieces={zett.pieces} leaves no piece beside the 256 bytes; use e.g. init.zett.pieces=1024."


def _of_transplant(path: str, config: Any) -> Iterator[str]:
    """What is no run, and no pretrained model of these settings."""
    try:
        family, told = families.describe(path)
    except (families.Unreadable, OSError, RuntimeError, ValueError):
        yield f"init.transplant={short(path)} holds no finished checkpoint; give the --workdir of a trained model."
        return
    yield from _unlike("transplant", path, family, told, config)


def _unlike(start: str, path: str, family: str, told: Mapping[str, Any], config: Any) -> Iterator[str]:
    """Settings of the model other than those of the files."""
    flat = flatten(config.model.to_dict())
    for key, value in told.items():
        if key not in FREE and _plain(flat.get(key)) != _plain(value):
            yield (
                f"model.{key}={short(flat.get(key))} is {short(value)} in the {family} at init.{start}="
                f"{short(path)}; use --config=configs/pretrained.py:{path}, or model.{key}={short(value)}."
            )


def _plain(value: Any) -> Any:
    """Equal for tuples and lists of equal elements, and for equal numbers."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
