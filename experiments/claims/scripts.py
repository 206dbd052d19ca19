"""Check: what the same messages cost in several scripts, in segments and in bits.

The claim has `base`; `catalogues` (a folder of gettext catalogues), `languages` and `together` (messages of a
document); `arms`; `rate`, the share of bytes that end a segment in English, `by_script`, the arm of MAGNET that gets a
prior for each script such that all languages have as many segments, and `at_once`, the one that gets the one prior with
as many segments of all texts together; `contrasts`, each with `measure` (of `MEASURES`), `better` and `worse`.

Every tenth document is held out, in all languages. A segment is counted where a byte begins a new token of the
backbone, but for the first of a row; of a model of tokens, each token.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data import catalogues
from experiments import workdir as files
from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.program import global_batch, inputs
from experiments.settings.errors import Refused
from experiments.training import evaluate, other_texts
from experiments.workdir import trained
from experiments.workdir.saved import saved_config
from models.objectives import next_token
from models.segments import magnet

ENGLISH = catalogues.ENGLISH
TEXTS, TRAIN = "texts", "train.jsonl"
SCRIPTS = {"en": "latin", "el": "greek", "ru": "cyrillic"}  # of a language: where its priors stand in magnet.SCRIPTS
MEASURES = {  # What is less where it is better, in words.
    "disparity": "share of all segments in the language of most beyond that of fewest",
    "bits_english": "bits a character of English",
    "bits_others": "bits a character of the other languages, their mean",
}
_MAGNET = "model.segmented.magnet."


def prepare(claim: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
    """Writes the texts, and gives the claim their path and the priors that follow from them.

    Errors: Refused for a language whose script has no predictor, and where there are no or few catalogues.
    """
    if unknown := [name for name in claim["languages"] if name not in SCRIPTS]:
        raise Refused(f"languages has {unknown[0]!r}, whose script is not known here; use one of {', '.join(SCRIPTS)}.")
    try:
        messages = catalogues.parallel(claim["catalogues"], claim["languages"])
    except FileNotFoundError as error:
        raise Refused(f"catalogues: {error}") from None
    languages, size = (ENGLISH, *claim["languages"]), claim["together"]
    groups = [messages[k : k + size] for k in range(0, len(messages), size)]
    if len(groups) < 20:
        raise Refused(
            f"catalogues={claim['catalogues']!r} has {len(messages)} common messages; use one of 1,000 or more."
        )
    held, kept = groups[9::10], [group for k, group in enumerate(groups) if k % 10 != 9]
    folder = workdir / TEXTS
    written = {TRAIN: [_text(group, name) for group in kept for name in languages]}
    written |= {f"{name}.jsonl": [_text(group, name) for group in held] for name in languages}
    for file, texts in written.items():
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        if not (folder / file).exists():
            files.write_file(folder / file, lines.encode())
    sizes = {name: sum(len(_text(group, name).encode()) for group in kept) for name in languages}
    priors = {SCRIPTS[name]: claim["rate"] * sizes[ENGLISH] / sizes[name] for name in languages}
    one = len(languages) * claim["rate"] * sizes[ENGLISH] / sum(sizes.values())
    base, given = claim["base"].copy_and_resolve_references().unlock(), {k: dict(v) for k, v in claim["arms"].items()}
    base.data.source, base.data.path = "text", str(folder / TRAIN)
    given[claim["at_once"]][f"{_MAGNET}prior"] = round(one, 4)
    named = tuple(f"{priors.get(script, claim['rate']):.4f}" for script in magnet.SCRIPTS)
    given[claim["by_script"]][f"{_MAGNET}priors"] = named
    return {**claim, "base": base, "arms": given}


def _text(group: Sequence[Mapping[str, str]], language: str) -> str:
    return "\n".join(message[language] for message in group) + "\n"


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains every arm with every seed and reads the held-out texts of each language."""
    seeds, folder = claim["seeds"], workdir / TEXTS
    given = {arm: dict(values) for arm, values in claim["arms"].items()}
    if "equal_to" in claim:
        arms.equalise(claim["base"], given, claim["equal_to"])
    found = arms.train(claim["base"], given, seeds, workdir, jobs=jobs, quiet=quiet)
    arms.compare(found, workdir)
    languages = (ENGLISH, *claim["languages"])
    texts = {name: [json.loads(line)["text"] for line in _lines(folder / f"{name}.jsonl")] for name in languages}
    sizes = {name: (sum(map(len, some)), sum(len(text.encode()) for text in some)) for name, some in texts.items()}
    learned = [json.loads(line)["text"].encode() for line in _lines(folder / TRAIN)]
    pairs = pair_bits(learned, [text.encode() for some in texts.values() for text in some])
    numbers: dict[str, Any] = {"seeds": list(seeds), "priors": {}, "segments": {}, "bits": {}, "beyond_pairs": {}}
    for arm, rows in found.items():
        made = [measured(row["workdir"], {name: folder / f"{name}.jsonl" for name in languages}) for row in rows]
        for key in ("segments", "bits"):
            numbers[key][arm] = {name: [each[name][key] for each in made] for name in languages}
        numbers["beyond_pairs"][arm] = [
            sum(each[name]["bits"] for name in languages) / sum(size for _, size in sizes.values()) - pairs
            for each in made
        ]
        numbers["priors"][arm] = {k: v for k, v in claim["arms"][arm].items() if k.startswith(f"{_MAGNET}prior")}
    numbers |= {"characters": {n: size[0] for n, size in sizes.items()}, "pair_bits": pairs}
    numbers |= {"bytes": {n: size[1] for n, size in sizes.items()}}
    numbers |= {name: {arm: of_arm(name, numbers, arm) for arm in found} for name in MEASURES}
    numbers["parameters"] = {arm: [row["parameters"] for row in rows] for arm, rows in found.items()}
    scale = arms.scale(found, seeds)
    return [_row(claim, contrast, numbers, scale) for contrast in claim["contrasts"]]


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def of_arm(measure: str, numbers: Mapping[str, Any], arm: str) -> list[float]:
    """A measure of an arm by seed, from its segments and bits by language."""
    if measure == "disparity":
        counts = np.array([numbers["segments"][arm][name] for name in numbers["characters"]], float)
        return ((counts.max(0) - counts.min(0)) / np.maximum(counts.sum(0), 1)).tolist()
    others = [name for name in numbers["characters"] if (name == ENGLISH) == (measure == "bits_english")]
    each = [np.array(numbers["bits"][arm][name]) / numbers["characters"][name] for name in others]
    return np.mean(each, axis=0).tolist()


def measured(workdir: pathlib.Path, texts: Mapping[str, pathlib.Path]) -> dict[str, dict[str, float]]:
    """{name: {"bits", "segments"}} of each text under the model of a run."""
    config = saved_config(workdir).copy_and_resolve_references().unlock()
    config.eval.texts, config.eval.rows = tuple(f"{name}={path}" for name, path in texts.items()), 0
    model, result = trained.load(workdir, config), {}
    step = evaluate.make_step(model.program)
    marks = jax.jit(lambda params, batch: _marks(model.program, params, batch))
    for found in other_texts.evaluate(model, step):
        segments = found.each[:, 1].sum()
        if model.config.model.kind == "segmented":
            rows = -(-np.diff(found.corpus.train.starts, append=len(found.corpus.train.tokens)) // config.data.length)
            batches = inputs.text_batches(model.config, found.corpus, int(rows.sum()), model.program.rows)
            segments = sum(float(marks(model.params, global_batch(batch, model.program))) for batch in batches)
        result[found.name] = {"bits": float(found.each[:, 0].sum() / math.log(2)), "segments": float(segments)}
    return result


def _marks(program: Any, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Segments of a batch, but for the first of each row."""
    told = {name: batch[name] for name in ("positions", "segment_ids") if name in batch}
    report = program.merge(params)(batch["tokens"], mask=next_token.mask, **told).report
    return report["segments"].total[0] - (batch["segment_ids"] != 0).any(1).sum()


def pair_bits(learned: Sequence[bytes], texts: Sequence[bytes]) -> float:
    """Bits a byte of `texts` by counts of neighbouring bytes of `learned` (Witten and Bell 1991).

    p(b | a) = (c(ab) + n(a) p(b)) / (c(a) + n(a)), n(a) the bytes seen behind a; p(b) likewise, with 1/256 below it.
    """
    counts = np.zeros((256, 256))
    for text in learned:
        row = np.frombuffer(text, np.uint8)
        np.add.at(counts, (row[:-1], row[1:]), 1)
    alone = counts.sum(0)
    p = (alone + np.count_nonzero(alone) / 256) / (alone.sum() + np.count_nonzero(alone))
    kinds = np.count_nonzero(counts, axis=1)[:, None]
    total = counts.sum(1)[:, None] + kinds
    law = np.where(total > 0, (counts + kinds * p) / np.maximum(total, 1), p)
    rows = [np.frombuffer(text, np.uint8) for text in texts]
    nats = -sum(np.log(p[row[0]]) + np.log(law[row[:-1], row[1:]]).sum() for row in rows)
    return float(nats / math.log(2) / sum(map(len, rows)))


def _row(claim: Mapping[str, Any], contrast: Mapping[str, Any], numbers: Mapping[str, Any], scale: str) -> Evidence:
    name, better, worse = (contrast[key] for key in ("measure", "better", "worse"))
    values = numbers[name]
    judged = method.judge(claim, np.subtract(values[worse], values[better]).tolist(), pair=contrast)
    shown = "; ".join(f"{arm}: {np.mean(values[arm]):.3f}" for arm in (better, worse))
    return judged.row(contrast, f"{MEASURES[name]}: {shown}; the first less by {judged.text(3)}", scale, numbers)
