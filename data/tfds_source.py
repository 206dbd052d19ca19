"""Text sets prepared by TensorFlow Datasets, read as array_record files by random access; TensorFlow is not needed.

A set is found by its folders (`data_dir/name[/config]/version`), not by the registry, so a custom set reads like a
published one and nothing is ever downloaded. Preparing is a step of its own, which for many published sets needs
TensorFlow once; every error below names it.
"""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from data import documents

_TEXT_FIELDS = ("text", "document", "content", "article", "sentence")
_VALID_SPLITS = ("validation", "valid", "dev", "test")
_CHUNK = 1024  # records per read


def texts(request: documents.Request) -> documents.Texts:
    """Documents of the set `name` ("name", "name/config", "name:1.0.0") under `path` (default: TFDS_DATA_DIR).

    `path` may also be the folder of one prepared version. The set's own validation (else dev, else test) split is
    kept apart; a set that has only `train` is split by the hash of its documents. The text is the field `text`, or the
    only text field.

    Errors: FileNotFoundError when it is not prepared, ValueError when it is not array_record or holds no text.
    """
    folder = _find(request)
    record = _info(folder, request)
    if record.get("fileFormat") != "array_record":
        raise ValueError(
            f"name={request.name!r} is prepared as {record.get('fileFormat', 'tfrecord')} in {str(folder)!r}, "
            f"which needs TensorFlow to read; {_prepare(request)}."
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    field = _text_field(builder.info.features, request.name)
    splits = builder.info.splits
    if "train" not in splits:
        raise ValueError(f"name={request.name!r} has splits {sorted(splits)} but no 'train'; use a set that has one.")
    valid = next((s for s in _VALID_SPLITS if s in splits), None)

    def read(left_out: list[documents.LeftOut]) -> Iterator[documents.Document]:
        for split, role in (("train", "train" if valid else None), (valid, "valid")):
            if split:
                records = builder.as_data_source(split)
                for start in range(0, len(records), _CHUNK):
                    stop = min(start + _CHUNK, len(records))
                    for example in records.__getitems__(list(range(start, stop))):
                        yield bytes(example[field]), role

    files = sorted((p.name, p.stat()) for p in folder.iterdir() if p.is_file())
    return documents.Texts(documents.stat_fingerprint(f"tfds {field} {valid}", files), len(files), read)


def _prepare(request: documents.Request) -> str:
    """The step that makes the set readable, as a command."""
    name = request.name or "NAME"
    where = f", data_dir={request.path!r}" if request.path else ""
    return (
        'prepare it once with: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}, file_format='array_record'{where}).download_and_prepare()\" "
        "(published sets may need TensorFlow installed for this step only)"
    )


def _find(request: documents.Request) -> pathlib.Path:
    """The folder of the newest prepared version that the request names."""
    root = pathlib.Path(request.path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if (root / "dataset_info.json").is_file():
        return root
    if not request.name:
        raise ValueError(f"name='' is missing for source='tfds'; {_prepare(request)}.")
    name, _, version = request.name.partition(":")
    found = [p.parent for p in (root / name).glob("*/dataset_info.json")]
    configs = {p.parent.parent.name: p.parent for p in (root / name).glob("*/*/dataset_info.json")} if not found else {}
    if len(configs) > 1:
        example = f"{name}/{sorted(configs)[0]}"
        raise ValueError(f"name={request.name!r} has configs {sorted(configs)}; use one of them, such as {example!r}.")
    if configs:
        found = [p.parent for p in (root / name).glob("*/*/dataset_info.json")]
    if version:
        found = [p for p in found if p.name == version]
    if not found:
        raise FileNotFoundError(f"name={request.name!r} is not prepared under {str(root)!r}; {_prepare(request)}.")
    return max(found, key=lambda p: [int(n) if n.isdigit() else -1 for n in p.name.split(".")])


def _info(folder: pathlib.Path, request: documents.Request) -> dict[str, Any]:
    """The content of `dataset_info.json`. Errors: ValueError if it is no JSON object."""
    try:
        record = json.loads((folder / "dataset_info.json").read_text("utf-8"))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        path = str(folder / "dataset_info.json")
        raise ValueError(f"name={request.name!r} has a damaged {path!r}; {_prepare(request)}.")
    return record


def _text_field(features: object, name: str) -> str:
    """The feature that holds the text of an example."""
    from tensorflow_datasets import features as kinds

    text = [key for key, kind in features.items() if isinstance(kind, kinds.Text)]
    for key in (*_TEXT_FIELDS, *(text if len(text) == 1 else ())):
        if key in text:
            return key
    raise ValueError(f"name={name!r} has text fields {text} of {sorted(features)}; use a set with a field 'text'.")
