"""Cyrillic and Greek in Latin letters, letter by letter, as TransMI has vocabularies written in one script."""

import unicodedata

_CYRILLIC = (
    "а a б b в v г g д d е e ж zh з z и i к k л l м m н n о o п p р r с s т t у u ф f х kh ц ts ч ch ш sh щ shch "
    "ъ - ы y ь - э e ю yu я ya є ye і i ґ g ђ dj ј j љ lj њ nj ћ c џ dz ѕ dz"
)
_GREEK = "α a β v γ g δ d ε e ζ z η i θ th ι i κ k λ l μ m ν n ξ x ο o π p ρ r σ s ς s τ t υ y φ f χ ch ψ ps ω o"


def _table() -> dict[str, str]:
    words = f"{_CYRILLIC} {_GREEK}".split()
    small = dict(zip(words[::2], (to.replace("-", "") for to in words[1::2]), strict=True))
    return small | {letter.upper(): to.capitalize() for letter, to in small.items() if letter != "ς"}


LATIN = _table()  # Letter -> Latin letters; the two signs of Russian are nothing.


def romanised(text: str) -> str:
    """Text in Latin letters: marks are taken off, Cyrillic and Greek letters are replaced by `LATIN`, others stay.

    Hermjakob et al. 2018 (uroman) has all scripts, of which TransMI's code makes use; here are two, without context.
    """
    plain = (c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    return unicodedata.normalize("NFC", "".join(LATIN.get(c, c) for c in plain))
