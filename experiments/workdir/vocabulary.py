"""The tokenizer of a run is the one in its workdir; its corpus and chat template are those that it began with."""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from data import conversations
from data.saved_tokenizers import load_tokenizer
from experiments import workdir as files
from experiments.settings.errors import CheckpointError, ConfigError
from experiments.workdir import disk


def load(workdir: pathlib.Path) -> Any:
    """The tokenizer in a workdir; None where there is none. CheckpointError or WorkdirError where it cannot be read."""
    path = workdir / files.TOKENIZER
    if not os.path.lexists(path):
        return None
    try:
        disk.read_object(path)  # A plain file, and no link.
        return load_tokenizer(path)
    except disk.WorkdirError:
        raise
    except Exception as error:  # Of any type: a library reads what stands in the file.
        raise CheckpointError(
            f"--workdir={workdir}: {files.TOKENIZER} is damaged, and without it the model's ids mean nothing; restore "
            "it from a copy, or from another run on the same corpus."
        ) from error


def of_run(workdir: pathlib.Path, about: Mapping[str, Any] | None) -> str:
    """The path of a workdir's tokenizer where it is the one that a checkpoint was trained with; "" where it is not."""
    try:
        found = load(workdir) if about else None
    except (ValueError, OSError):
        return ""
    return str(workdir / files.TOKENIZER) if found is not None and about.get("tokenizer") == found.hash else ""


def check_tokenizer(about: Mapping[str, Any], tokenizer: Any, workdir: pathlib.Path) -> None:
    """Raises CheckpointError unless a model was trained with this tokenizer."""
    if about.get("tokenizer", tokenizer.hash) != tokenizer.hash:
        raise CheckpointError(
            f"--workdir={workdir}: {files.TOKENIZER} has the hash {tokenizer.hash[:12]}, and the model was trained "
            f"with {about['tokenizer'][:12]}; restore it from a copy, or from another run on the same corpus."
        )


def check_same_corpus(about: Mapping[str, Any], corpus: Any, workdir: pathlib.Path) -> None:
    """Raises ConfigError if the corpus at hand is not the one that the run began with."""
    for name, now in (("corpus", corpus.hash), ("tokenizer", corpus.tokenizer.hash)):
        if about.get(name, now) != now:
            raise ConfigError([
                f"the {name} of --workdir={workdir} had the hash {about[name][:12]} and has {now[:12]} now; "
                "bring the old files back, or start again in a new folder; --mode=evaluate measures other text with "
                "--config.eval.texts=NAME=PATH."
            ])  # fmt: skip


def template_hash(named: str) -> str:
    """The hash of the file that `data.template` names, "" where it names none. ValueError where it cannot be read."""
    text = conversations.template_of(named)
    return "" if text == named else hashlib.sha256(text.encode()).hexdigest()


def template_now(about: Mapping[str, Any], named: str, workdir: pathlib.Path) -> str:
    """`data.template` as it can be read: the path of the workdir's own copy where the file that it names is gone."""
    kept = workdir / files.TEMPLATE
    return str(kept) if about.get("template") and not os.path.exists(named) and disk.is_file(kept) else named


def check_template(about: Mapping[str, Any], named: str, workdir: pathlib.Path) -> None:
    """Raises ConfigError when the file of `data.template` says something else than it did to a model, or is gone."""
    was = about.get("template", "")
    try:
        now = template_hash(template_now(about, named, workdir)) if was else ""
    except ValueError:
        now = "nothing"
    if was != now:
        raise ConfigError([
            f"data.template={named!r} had the hash {was[:12]} when --workdir={workdir} began and has {now[:12]} now; "
            "bring the old file back, or start again in a new folder."
        ])  # fmt: skip
