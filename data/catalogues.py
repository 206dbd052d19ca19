"""Messages of programs in several languages, from the gettext catalogues that systems install: parallel texts.

A catalogue is ROOT/LANGUAGE/LC_MESSAGES/PROGRAM.mo; its messages are named by the English text of the program.
"""

import collections
import pathlib
import re
import struct
from collections.abc import Sequence

from data.tokenizers import measures

ENGLISH = "en"
_LITTLE, _BIG = b"\xde\x12\x04\x95", b"\x95\x04\x12\xde"
_MARKS = ("\0", "\4")  # Between the forms of a plural, behind a context.


def read(raw: bytes) -> dict[str, str]:
    """English message -> translation of one catalogue, without plurals, contexts and the header.

    Args:
      raw: the bytes of a .mo file (GNU gettext, "The Format of GNU MO Files").

    Errors: ValueError where it is none, or its text is not in the encoding that it names.
    """
    order = {_LITTLE: "<", _BIG: ">"}.get(raw[:4])
    if order is None:
        raise ValueError("the bytes are no gettext catalogue; use those of a .mo file")

    def at(table: int, k: int) -> bytes:
        size, begin = struct.unpack_from(order + "2I", raw, table + 8 * k)
        return raw[begin : begin + size]

    try:
        count, names, texts = struct.unpack_from(order + "3I", raw, 8)
        pairs = [(at(names, k), at(texts, k)) for k in range(count)]
        named = re.search(rb"charset=([\w.-]+)", dict(pairs).get(b"", b""))
        charset = named[1].decode() if named else "utf-8"
        found = {name.decode(charset): text.decode(charset) for name, text in pairs if name and text}
    except (struct.error, UnicodeDecodeError, LookupError):
        raise ValueError("the catalogue is damaged; use a whole .mo file") from None
    return {name: text for name, text in found.items() if not any(mark in name + text for mark in _MARKS)}


def parallel(root: str | pathlib.Path, languages: Sequence[str], *, least: int = 24) -> list[dict[str, str]]:
    """The messages that all `languages` have, each a dict by language with English under "en".

    Args:
      root: the folder of catalogues, e.g. /usr/share/locale.
      languages: e.g. ("el", "ru"), names of its folders.
      least: characters of the English message.

    Returns: in the order of programs and messages; of equal English texts the first. A message is left out where not
      most of a translation's letters are of the script that most translations of its language are in: names of things
      and commands stay as they are.

    Errors: FileNotFoundError for a language that has no catalogue.
    """
    found: dict[str, dict[tuple[str, str], str]] = {}
    for language in languages:
        files = sorted(pathlib.Path(root, language, "LC_MESSAGES").glob("*.mo"))
        if not files:
            raise FileNotFoundError(f"{root} has no gettext catalogues of {language!r}; use one such as 'ru'.")
        found[language] = {}
        for file in files:
            try:
                messages = read(file.read_bytes())
            except ValueError:
                continue
            found[language] |= {(file.name, name): text for name, text in messages.items() if len(name) >= least}
    scripts = {language: {key: _script(text) for key, text in texts.items()} for language, texts in found.items()}
    usual = {language: collections.Counter(each.values()).most_common(1)[0][0] for language, each in scripts.items()}
    shared = set.intersection(*(set(texts) for texts in found.values()))
    kept = [key for key in sorted(shared) if all(scripts[name][key] == usual[name] for name in languages)]
    first = {english: (file, english) for file, english in reversed(kept)}
    return [
        {ENGLISH: key[1], **{language: found[language][key] for language in languages}}
        for key in kept
        if first[key[1]] == key
    ]


def _script(text: str) -> str:
    """The script of more than half of the letters, else ""."""
    letters = collections.Counter(measures.script(c.encode()) for c in text if c.isalpha())
    script, count = letters.most_common(1)[0] if letters else ("", 0)
    return script if 2 * count > letters.total() else ""
