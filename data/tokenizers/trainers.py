"""Trainers by name: `TRAINERS[name](texts, vocab_size)` learns a tokenizer from texts of bytes.

`vocab_size` counts the 256 bytes and the three specials. The same texts give the same tokenizer on any number of
threads: counts are whole numbers, and sums of floats have one order.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from data import tokenizer
from data.tokenizer import bounded, utf8_runs
from data.tokenizers import lib, lzw, morphology, pairs, unigram
from data.tokenizers.kinds import BytesLibraryTokenizer, GreedyTokenizer, characters, merges_of

_SPECIALS = 3
_LINE = 1 << 9  # bytes of the longest stretch that merges across words are learned from
_SUPER_SAMPLE = 1 << 20  # bytes that the second stage of SuperBPE learns from
_UNIGRAM_SAMPLE = 1 << 18
_WORDS = re.compile(rb" {2,16}| ?[^ \n]{1,64}| |\n{1,16}")
_LIB_SAMPLE = 1 << 18  # bytes that LiB reads: it moves units of a list at every step
_LIB_ARTICLE = 1 << 12
_BLANK, _NEW_LINE = characters(b" "), characters(b"\n")


def superbpe(texts: Iterable[bytes], vocab_size: int) -> tokenizer.BPETokenizer:
    """SuperBPE (Liu et al. 2025, arXiv:2503.13423): four fifths of the merges within words, the rest across blanks.

    The second stage learns from lines of at most 512 bytes, from the first MiB. It merges across words, not lines.
    """
    kept = list(texts)
    first = tokenizer.train_bpe(kept, max(260, 256 + _SPECIALS + (vocab_size - 256 - _SPECIALS) * 4 // 5))
    merges = merges_of(first.definition)
    ready = tokenizer.BPETokenizer(_bpe_definition(merges, _across_words()))
    lines, read = Counter(), 0
    for line in _lines(kept):
        lines[line] += 1
        read += len(line)
        if read >= _SUPER_SAMPLE:
            break
    known = [[ready.pieces[i] for i in ids] for ids in ready.encode_batch(list(lines))]
    more = pairs.train_pieces(known, list(lines.values()), vocab_size - _SPECIALS - 256 - len(merges), merges)
    return tokenizer.BPETokenizer(_bpe_definition([*merges, *more], _across_words()))


def supertokens(texts: Iterable[bytes], vocab_size: int) -> tokenizer.BPETokenizer:
    """Supertokens (TokenAdapt, arXiv:2505.09738): one stage of BPE whose words are stretches of up to four words."""
    stretch = r"(?: ?[^\s]+){1,4}|\s+"
    return _trained(texts, vocab_size, [_cut(stretch), _bytes_of_utf8()])


def digits(direction: str) -> Callable[[Iterable[bytes], int], tokenizer.BPETokenizer]:
    """A trainer of BPE whose numbers are cut into groups of three digits from "left" or "right" first."""
    pattern = r"[0-9]{1,3}" if direction == "left" else r"[0-9]{1,3}(?=(?:[0-9]{3})*(?![0-9]))"

    def train(texts: Iterable[bytes], vocab_size: int) -> tokenizer.BPETokenizer:
        return _trained(texts, vocab_size, [_cut(pattern), _gpt2()])

    return train


def byte_bpe(texts: Iterable[bytes], vocab_size: int) -> BytesLibraryTokenizer:
    """BPE over bytes without words (Binary BPE, arXiv:2511.17573): merges cross everything within 512 bytes."""
    import tokenizers
    from tokenizers import models

    library = tokenizers.Tokenizer(models.BPE())
    parts = (text[k : k + _LINE] for text in texts for k in range(0, len(text), _LINE))
    library.train_from_iterator(map(characters, parts), trainer=_bpe_trainer(vocab_size))
    return BytesLibraryTokenizer("byte_bpe", library.to_str())


def unigram_pieces(texts: Iterable[bytes], vocab_size: int) -> BytesLibraryTokenizer:
    """A unigram model (see `data.tokenizers.unigram`) of words that begin at blanks, from the first 256 KiB.

    The library cuts by it; bytes that the text lacks are as likely as exp(-10) of its least likely piece.
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers

    words, read = Counter(), 0
    for line in _lines(texts):
        words.update(_WORDS.findall(line))
        read += len(line)
        if read >= _UNIGRAM_SAMPLE:
            break
    seen = len({byte for word in words for byte in word})
    log_p = unigram.train(words, vocab_size - _SPECIALS - (256 - seen)) if words else {}
    least = min(log_p.values(), default=0.0) - 10
    log_p = {bytes([b]): least for b in range(256)} | log_p
    entries = sorted(log_p.items(), key=lambda entry: (-entry[1], entry[0]))
    library = tokenizers.Tokenizer(models.Unigram([(characters(piece), value) for piece, value in entries]))
    pattern = f"{_BLANK}{{2,16}}|{_BLANK}?[^{_BLANK}{_NEW_LINE}]{{1,64}}|{_BLANK}|{_NEW_LINE}{{1,16}}"
    library.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return BytesLibraryTokenizer("unigram", library.to_str())


def lzw_pieces(texts: Iterable[bytes], vocab_size: int) -> GreedyTokenizer:
    """An LZW dictionary, read greedily (see `data.tokenizers.lzw`)."""
    return _greedy("lzw", lzw.train(texts, vocab_size - _SPECIALS))


def lib_pieces(texts: Iterable[bytes], vocab_size: int) -> GreedyTokenizer:
    """LiB's lexicon (see `data.tokenizers.lib`): its best ranks, and all bytes, after the first 256 KiB in its order.

    Articles are 4 KiB of lines; its random numbers are those of seed 0.
    """
    memory, draw = lib.Memory.of_symbols([bytes([b]) for b in range(256)]), random.Random(0).random
    article, size, read = [], 0, 0
    for line in _lines(texts):
        article.append(line)
        size += len(line)
        if size >= _LIB_ARTICLE:
            lib.read_article(memory, article, draw)
            article, read, size = [], read + size, 0
        if read >= _LIB_SAMPLE:
            break
    if article:
        lib.read_article(memory, article, draw)
    longer = [unit for unit in memory.lexicon.units if len(unit) > 1]
    return _greedy("lib", [bytes([b]) for b in range(256)] + longer[: vocab_size - _SPECIALS - 256])


def morphology_pieces(texts: Iterable[bytes], vocab_size: int) -> GreedyTokenizer:
    """Bytes, the forms of Turkish affixes, and the most frequent roots: words of letters without affixes that the rules
    of `data.tokenizers.morphology` know, each also behind a blank. Longest match reads root, then affixes."""
    words = Counter()
    for text in texts:
        words.update(w for w in text.decode("utf-8", "ignore").lower().split() if w.isalpha())
    turkish = morphology.turkish(sorted(words))
    forms = sorted({form for some in turkish.affixes.values() for form in some})
    roots: Counter = Counter()
    for word, count in words.items():
        shorter = [stem for stem in (word[:k] for k in range(len(word) - 1, 1, -1)) if stem in words]
        read = next((s for s in reversed(shorter) if turkish._affixes(s, word[len(s) :])), None)
        roots[read or word] += count
    best = sorted(roots, key=lambda root: (-roots[root], root))
    pieces = [bytes([b]) for b in range(256)]
    pieces += [form.encode() for form in forms if len(form.encode()) > 1]
    for root in best:
        pieces += [piece for piece in (root.encode(), b" " + root.encode()) if len(piece) > 1 and piece not in pieces]
    return _greedy("morphology", list(dict.fromkeys(pieces))[: vocab_size - _SPECIALS])


# By name of `data.tokenizer`. `bpe` itself is `data.tokenizer.train_bpe`.
TRAINERS: dict[str, Callable[[Iterable[bytes], int], tokenizer.Tokenizer]] = {
    "unigram": unigram_pieces,
    "lzw": lzw_pieces,
    "lib": lib_pieces,
    "digits_left": digits("left"),
    "digits_right": digits("right"),
    "superbpe": superbpe,
    "supertokens": supertokens,
    "byte_bpe": byte_bpe,
    "morphology": morphology_pieces,
}


def _greedy(name: str, pieces: list[bytes]) -> GreedyTokenizer:
    return GreedyTokenizer(name, [piece.decode("latin-1") for piece in pieces])


def _lines(texts: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their ends, in stretches of at most 512 bytes."""
    for text in texts:
        for line in text.splitlines(keepends=True):
            yield from (line[k : k + _LINE] for k in range(0, len(line), _LINE))


def _bpe_trainer(vocab_size: int):
    from tokenizers import pre_tokenizers, trainers

    return trainers.BpeTrainer(
        vocab_size=vocab_size - _SPECIALS,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )


def _trained(texts: Iterable[bytes], vocab_size: int, cuts: list) -> tokenizer.BPETokenizer:
    """BPE of the library within the parts that `cuts` give one after another."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    runs = (run for text in texts for run in utf8_runs(text) if isinstance(run, str))
    parts = (part for run in runs for part in bounded(run, _gpt2()))
    library.train_from_iterator(parts, trainer=_bpe_trainer(vocab_size))
    return tokenizer.BPETokenizer(library.to_str())


def _cut(pattern: str):
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), "isolated")


def _gpt2():
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _bytes_of_utf8():
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _across_words() -> list:
    return [_cut(r"[^\n]+\n?|\n"), _bytes_of_utf8()]


def _bpe_definition(merges: list[pairs.Pair], cuts: list) -> str:
    """A BPE of the library with the alphabet, then the merges in their order, as ids."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    rank = pairs.alphabet_rank()
    alphabet = [characters(bytes([b])) for b in sorted(range(256), key=rank.__getitem__)]
    told = [(characters(a), characters(b)) for a, b in merges]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*alphabet, *(a + b for a, b in told)]))}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, told))
    library.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return library.to_str()
