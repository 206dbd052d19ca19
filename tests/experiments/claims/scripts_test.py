"""The check `scripts`: what it writes and counts, by other means."""

import collections
import json
import math

import numpy as np
import pytest

from configs.claims import scripts as claimed
from experiments.claims import scripts
from experiments.settings.errors import Refused
from experiments.training import train
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("one_device")
MESSAGES = [{"en": f"open file {k}", "el": f"άνοιγμα {k}", "ru": f"открыть файл {k}"} for k in range(61)]


def claim(monkeypatch, **more):
    monkeypatch.setattr(scripts.catalogues, "parallel", lambda *_: MESSAGES)
    return claimed.get_claim() | {"together": 2, "seeds": (0, 1), "looks": (2,)} | more


def test_texts_are_held_out_alike_and_priors_give_equally_many_segments(tmp_path, monkeypatch):
    made = scripts.prepare(claim(monkeypatch), tmp_path)
    read = lambda name: [json.loads(line)["text"] for line in (tmp_path / "texts" / name).open(encoding="utf-8")]  # noqa: E731
    assert made["base"].data.path == str(tmp_path / "texts" / "train.jsonl") and made["base"].data.source == "text"
    for name in ("en", "el", "ru"):
        assert read(f"{name}.jsonl") == [f"{MESSAGES[k][name]}\n{MESSAGES[k + 1][name]}\n" for k in (18, 38, 58)]
    trained = [k for k in range(61) if k % 20 not in (18, 19)]
    kept = "".join(read("train.jsonl"))
    assert sorted(kept.splitlines()) == sorted(MESSAGES[k][name] for k in trained for name in ("en", "el", "ru"))
    sizes = [sum(len(MESSAGES[k][name].encode()) + 1 for k in trained) for name in ("en", "el", "ru")]
    latin, greek, cyrillic, other = map(float, made["arms"]["magnet"]["model.segmented.magnet.priors"])
    one = made["arms"]["one predictor"]["model.segmented.magnet.prior"]
    assert latin == other == 0.2
    np.testing.assert_allclose(np.multiply((latin, greek, cyrillic), sizes), 0.2 * sizes[0], rtol=5e-4 / 0.1)
    assert one * sum(sizes) == pytest.approx(3 * 0.2 * sizes[0], rel=5e-4 / 0.1)
    with pytest.raises(Refused, match="61 common messages"):
        scripts.prepare(claim(monkeypatch, together=4), tmp_path / "few")
    with pytest.raises(Refused, match="'ja', whose script is not known"):
        scripts.prepare(claim(monkeypatch, languages=("el", "ja")), tmp_path / "other")


def test_measures_compare_languages_by_seed(tmp_path, monkeypatch):
    """Made-up counts: the row of each contrast is the difference of what they say."""
    found = {
        "magnet": {"en": (100, 700.0), "el": (120, 900.0), "ru": (110, 800.0)},
        "one predictor": {"en": (80, 720.0), "el": (160, 1000.0), "ru": (120, 810.0)},
        "bpe": {"en": (50, 500.0), "el": (150, 900.0), "ru": (100, 800.0)},
    }
    told = scripts.prepare(claim(monkeypatch), tmp_path)
    about = {"parameters": 1e5, "tokens": 1e6}
    rows = lambda arms: {arm: [about | {"workdir": (arm, k)} for k in range(2)] for arm in arms}  # noqa: E731
    monkeypatch.setattr(scripts.arms, "equalise", lambda *_: None)
    monkeypatch.setattr(scripts.arms, "train", lambda base, arms, *_, **__: rows(arms))
    monkeypatch.setattr(scripts.arms, "compare", lambda *_: None)
    monkeypatch.setattr(
        scripts, "measured",
        lambda workdir, texts: {n: {"segments": a, "bits": b + workdir[1]} for n, (a, b) in found[workdir[0]].items()},
    )  # fmt: skip
    made = scripts.run(told, tmp_path, jobs=1, quiet=True)
    assert [row.numbers["differences"][0] for row in made[:2]] == pytest.approx([80 / 360 - 20 / 330, 1 / 3 - 20 / 330])
    sizes = {name: [0, 0] for name in ("en", "el", "ru")}
    for k in (18, 19, 38, 39, 58, 59):
        for name, size in sizes.items():
            size[0] += len(MESSAGES[k][name]) + 1
            size[1] += len(MESSAGES[k][name].encode()) + 1
    others = (100 / sizes["el"][0] + 10 / sizes["ru"][0]) / 2
    assert [row.numbers["differences"][0] for row in made[2:]] == pytest.approx([others, 20 / sizes["en"][0]])
    law = made[0].numbers["pair_bits"]
    assert made[0].numbers["beyond_pairs"]["bpe"][1] == pytest.approx(2203 / sum(b for _, b in sizes.values()) - law)


def test_counts_of_pairs_give_a_law_of_the_next_byte():
    learned, text = [b"abab", b"ac"], b"abca"
    seen = collections.Counter(x for word in learned for x in zip(word, word[1:], strict=False))
    alone = collections.Counter(b"".join(word[1:] for word in learned))

    def single(b):
        return (alone[b] + 3 / 256) / (4 + 3)

    def law(a, b):
        total, kinds = sum(n for (x, _), n in seen.items() if x == a), len({y for x, y in seen if x == a})
        return (seen[a, b] + kinds * single(b)) / (total + kinds) if total else single(b)

    want = -math.log2(single(text[0])) - sum(math.log2(law(a, b)) for a, b in zip(text, text[1:], strict=False))
    assert scripts.pair_bits(learned, [text]) == pytest.approx(want / 4, rel=1e-12)
    assert sum(law(97, b) for b in range(256)) == pytest.approx(1.0)


def test_segments_and_bits_of_a_text_are_those_of_the_model(tmp_path):
    """Segments of four bytes: a row of n bytes with its start has ceil(n / 4), the first of which is not counted."""
    config = tiny.config(tmp_path, train__steps=1, data__length=24, eval__rows=4).unlock()
    config.model.kind, config.data.batch_size = "segmented", 2
    config.model.segmented.update({"segmenter": "stride", "least": 4, "width": 8, "heads": 2, "window": 8})
    train(config.copy_and_resolve_references().lock(), tmp_path / "run", quiet=True)
    texts = ["άνοιγμα αρχείου\n", "a text of more than forty-eight bytes, so of three rows\n"]
    path = tmp_path / "held.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    (found,) = scripts.measured(tmp_path / "run", {"held": path}).values()
    rows = []
    for text in texts:
        left = len(text.encode()) + 2  # with the start and the end of the document
        rows += [24] * (left // 24) + [left % 24] * (left % 24 > 0)
    assert len(rows) == 5 and found["segments"] == sum(-(-n // 4) - 1 for n in rows)
    assert 6 < found["bits"] / sum(len(text.encode()) + 1 for text in texts) < 10
