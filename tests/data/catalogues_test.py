"""Gettext catalogues that are written here, byte by byte, and read as parallel texts."""

import struct

import pytest

from data import catalogues

HEADER = "Content-Type: text/plain; charset={}\n"


def catalogue(messages, order="<", charset="utf-8"):
    """The bytes of a .mo file: magic, revision, count, two tables of (size, place), and the strings."""
    pairs = sorted({"": HEADER.format(charset), **messages}.items())
    raw, tables, place = b"", ([], []), 28 + 16 * len(pairs)
    for column in range(2):
        for pair in pairs:
            text = pair[column].encode(charset)
            tables[column].append((len(text), place + len(raw)))
            raw += text + b"\0"
    head = struct.pack(order + "7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + b"".join(struct.pack(order + "2I", *entry) for table in tables for entry in table) + raw


@pytest.mark.parametrize(("order", "charset"), [("<", "utf-8"), (">", "koi8-r")])
def test_a_catalogue_is_read_in_its_own_encoding_without_plurals_and_contexts(order, charset):
    told = {"one file": "один файл", "menu\4Open": "Открыть", "a file\0files": "файл\0файлы", "empty": ""}
    assert catalogues.read(catalogue(told, order, charset)) == {"one file": "один файл"}


@pytest.mark.parametrize("raw", [b"", b"PK\3\4", catalogue({"a": "b"})[:30], catalogue({"a": "é"}, charset="latin-1")
                                 .replace(b"latin-1", b"utf-8\n ")])  # fmt: skip
def test_what_is_no_catalogue_is_refused(raw):
    with pytest.raises(ValueError, match="catalogue"):
        catalogues.read(raw)


def test_messages_are_parallel_where_all_languages_have_them_in_their_script(tmp_path):
    long = "This message has more than twenty-four letters"
    texts = {
        "el": {"b": {long: "Ελληνικά", long + " 2": "Δύο", "short": "Μικρό"},
               "c": {long: "Πάλι", long + " 3": "Only Latin ε", long + " 4": "τέσσερα", long + " 5": "πέντε",
                     long + " 6": "Ελλη abc где"}},
        "ru": {"b": {long: "Русский", long + " 2": "Два"},
               "c": {long: "Снова", long + " 3": "три", long + " 5": "12 - %s", long + " 6": "шесть"}},
    }  # fmt: skip
    for language, programs in texts.items():
        folder = tmp_path / language / "LC_MESSAGES"
        folder.mkdir(parents=True)
        for name, messages in programs.items():
            (folder / f"{name}.mo").write_bytes(catalogue(messages))
        (folder / "a.mo").write_bytes(b"damaged")
    assert catalogues.parallel(tmp_path, ("el", "ru")) == [
        {"en": long, "el": "Ελληνικά", "ru": "Русский"}, {"en": long + " 2", "el": "Δύο", "ru": "Два"}
    ]  # fmt: skip
    assert len(catalogues.parallel(tmp_path, ("el",), least=5)) == 5
    with pytest.raises(FileNotFoundError, match="'de'; use one such as 'ru'"):
        catalogues.parallel(tmp_path, ("el", "de"))
