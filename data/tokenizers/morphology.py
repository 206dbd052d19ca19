"""A hybrid of morphemes and bytes: roots by longest match, then affixes of which variants share an id.

A token stands for a MORPHEME; which surface form stood in the text is restored by the language's rules, and where the
rules give another form, the span is written in bytes. Decoding is therefore exact on every byte string.
(Bayram et al. 2025, arXiv:2508.14292, for Turkish; there decoding is not exact.)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Morphology:
    """A language with simple rules.

    `surface(stem, affix)` gives the form in which the affix follows the stem; both are text.
    """

    roots: Sequence[str]
    affixes: Mapping[str, Sequence[str]]  # name -> its surface forms, e.g. "PLURAL" -> ("lar", "ler")
    surface: Callable[[str, str], str]

    def analyse(self, word: str) -> list[tuple[str, str]] | None:
        """[("root", root), ("affix", name), ...] of a lower-case word, or None: longest root first, then affixes.

        Only readings whose affixes have the form that `surface` gives count; the first found is taken.
        """
        for root in sorted((r for r in self.roots if r and word.startswith(r)), key=len, reverse=True):
            names = self._affixes(root, word[len(root) :])
            if names is not None:
                return [("root", root), *(("affix", name) for name in names)]
        return None

    def _affixes(self, stem: str, rest: str) -> list[str] | None:
        if not rest:
            return []
        fitting = [
            (form, name)
            for name, forms in self.affixes.items()
            for form in forms
            if form and rest.startswith(form) and self.surface(stem, name) == form
        ]
        for form, name in sorted(fitting, key=lambda pair: -len(pair[0])):
            names = self._affixes(stem + form, rest[len(form) :])
            if names is not None:
                return [name, *names]
        return None

    def join(self, morphemes: Sequence[tuple[str, str]]) -> str:
        """The word of `analyse`, by the rules."""
        word = ""
        for kind, name in morphemes:
            word += name if kind == "root" else self.surface(word, name)
        return word


_FRONT, _BACK, _VOICELESS = "eiöü", "aıou", "fstkçşhp"


def turkish_surface(stem: str, affix: str) -> str:
    """The form of an affix by vowel harmony and assimilation: A = a/e, I = ı/i/u/ü, D = d/t; "" without a vowel."""
    vowels = [c for c in stem if c in _FRONT + _BACK]
    if not vowels:
        return ""
    last = vowels[-1]
    narrow = {"a": "ı", "ı": "ı", "o": "u", "u": "u", "e": "i", "i": "i", "ö": "ü", "ü": "ü"}
    form, seen = "", last
    for c in TURKISH[affix]:
        if c == "A":
            c = "a" if seen in _BACK else "e"
        elif c == "I":
            c = narrow[seen]
        elif c == "D":
            c = "t" if (form or stem)[-1] in _VOICELESS else "d"
        seen = c if c in narrow else seen
        form += c
    return form


# Abstract forms of common affixes; variants of one name share one id.
TURKISH = {"PLURAL": "lAr", "LOCATIVE": "DA", "ABLATIVE": "DAn", "POSSESSIVE": "Im", "WITH": "lI", "WITHOUT": "sIz"}


def turkish(roots: Sequence[str]) -> Morphology:
    """Turkish nouns: the affixes of `TURKISH` with all their forms."""
    stems = ("kat", "ev", "kız", "okul", "göz", "dağ", "ip", "yol", "süt", "kuş", "kol", "ül", "el", "al", "ıl", "il")
    forms = {name: tuple(sorted({turkish_surface(stem, name) for stem in stems})) for name in TURKISH}
    return Morphology(tuple(roots), forms, turkish_surface)
