"""Records of tables: JSON lines, CSV, parquet and Arrow files, each record a dict by column, read a few at a time."""

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from data import conversations

LINES, COMMAS, PARQUET, ARROW = (".jsonl", ".ndjson"), (".csv", ".tsv"), (".parquet",), (".arrow", ".feather")
_ROWS = 256  # of a parquet file that are in memory at once
_FIELD = 1 << 30  # bytes of one field of a CSV file


class Pick(NamedTuple):
    """What is taken of a record.

    columns: those that are read; () for all.
    of: (record, where it stands) -> the bytes of a document, b"" for none; ValueError where it holds none.
    """

    columns: tuple[str, ...]
    of: Callable[[dict[str, Any], str], bytes]


def text(columns: Sequence[str]) -> Pick:
    """The texts in these columns, an empty line between two of them; () is `text`. What is null or "" is left out."""
    names = tuple(columns) or ("text",)

    def of(record: dict[str, Any], where: str) -> bytes:
        found = []
        for name in names:
            value = record.get(name) if isinstance(record, dict) else None
            null = bool(columns) and isinstance(record, dict) and name in record and value is None
            if not isinstance(value, str) and not null:
                raise ValueError(_without(record, name, names, where))
            found.append(value)
        return "\n\n".join(filter(None, found)).encode("utf-8", "replace")

    return Pick(names, of)


def _without(record: Any, name: str, names: tuple[str, ...], where: str) -> str:
    usual = names == ("text",)
    form = '{"text": "..."}' if usual else "{" + ", ".join(f'"{each}": "..."' for each in names) + "}"
    said = f'path={where!r} is not an object with a string in "{name}"; use lines like {form}'
    has = [key for key, value in record.items() if isinstance(value, str)] if isinstance(record, dict) else []
    return f"{said}, or columns=({has[0]!r},)." if usual and has else f"{said}."


def talk(columns: Sequence[str]) -> Pick:
    """The conversation of a record, as `data.conversations` writes one; `columns` may name where its messages stand."""
    return Pick(tuple(columns), lambda record, where: conversations.canonical(record, tuple(columns), where))


def lines(file: BinaryIO, path: str, pick: Pick) -> Iterator[bytes]:
    """Of JSON, an object a line."""
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except RecursionError:
                raise ValueError(f"path={where!r} nests too deep to be read; use an object of texts.") from None
            except ValueError:
                record = None
            yield pick.of(record, where)


def commas(file: BinaryIO, path: str, pick: Pick, separator: str) -> Iterator[bytes]:
    """Of a CSV file, whose first line names the columns."""
    with _long_fields(), io.TextIOWrapper(file, "utf-8-sig", "replace", newline="") as read:
        rows = csv.DictReader(read, delimiter=separator)
        try:
            _check(path, pick, rows.fieldnames or ())
            for row in rows:
                yield pick.of(row, f"{path}:{rows.line_num}")
        except csv.Error as error:
            raise ValueError(f"path={path!r} is not a whole CSV file ({error}); write it again.") from None


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Fields as long as documents, which the csv module refuses by default."""
    before = csv.field_size_limit(_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def parquet(file: BinaryIO, path: str, pick: Pick) -> Iterator[bytes]:
    """Of a parquet file, `_ROWS` rows at a time."""
    arrow = _arrow(path)
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        _check(path, pick, table.schema_arrow.names)
        batches = table.iter_batches(_ROWS, columns=list(pick.columns) or None)
        yield from _records(batches, path, pick)
    except (arrow.ArrowException, OSError) as error:
        raise _damaged(path, "parquet", error) from None


def arrow(file: BinaryIO, path: str, pick: Pick) -> Iterator[bytes]:
    """Of an Arrow file, or of an Arrow stream as the datasets library keeps them."""
    library = _arrow(path)
    import pyarrow.ipc

    try:
        whole = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pyarrow.ipc.open_file(file) if whole else pyarrow.ipc.open_stream(file)
        _check(path, pick, reader.schema.names)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else reader
        yield from _records(batches, path, pick)
    except (library.ArrowException, OSError) as error:
        raise _damaged(path, "Arrow", error) from None


def _records(batches: Any, path: str, pick: Pick) -> Iterator[bytes]:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # Arrow believes what a file says of places and characters: damage may read anything.
        chosen = batch.select(list(pick.columns)) if pick.columns else batch
        for first in range(0, chosen.num_rows, _ROWS):
            for record in chosen.slice(first, _ROWS).to_pylist():
                number += 1
                yield pick.of({k: "" if v is None else v for k, v in record.items()}, f"{path}:{number}")


def _check(path: str, pick: Pick, names: Sequence[str]) -> None:
    for name in pick.columns:
        if name not in names:
            raise ValueError(
                f"path={path!r} has no column {name!r}; it has {', '.join(map(repr, names)) or 'none'}: name one in "
                "columns."
            )


def unpacked(file: BinaryIO, path: str) -> BinaryIO:
    """What a Zstandard file holds."""
    return io.BufferedReader(_arrow(path).CompressedInputStream(file, "zstd"), 1 << 20)


def _arrow(path: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ValueError(f"path={path!r} needs pyarrow; pip install -r requirements-data.txt.") from None
    return pyarrow


def _damaged(path: str, kind: str, why: Exception) -> Exception:
    if getattr(why, "errno", None) is not None:  # of the disk, and not of what stands on it
        return why
    return ValueError(f"path={path!r} is not a whole {kind} file ({' '.join(str(why).split())[:200]}); write it again.")
