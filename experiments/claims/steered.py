"""Check: what a trained model writes, or says of held-out text, under settings of `generate.control`.

The claim has `base`; `arms` ({name: {dotted key: value}}, each trained); `lines` ({name: {point: changes of
`config.generate`}}, points being numbers as text); `axis` (what points are); `reads` ({arm: lines}, may be missing);
`contrasts`, each with `statement`, `published`, `measure` (a name in MEASURES), `better` and `worse` (arm, line and
point each); and `seeds`. `prompt`: so many tokens of a held-out row are read, the others are scored as they stand; 0: a
task's answers are written. A contrast may say `at`, another measure: `worse` is then (arm, line), whose points are a
curve, read where it costs what `better` does (between points by a straight line). `gain`: {name: ((measure, cell),
(measure, cell))}, by how much the first is ahead, which a control may read; `draws`: {line: texts of a row}, else 1.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import arms, method
from experiments.claims.curve import merged
from experiments.claims.evidence import Evidence
from experiments.claims.memories import Cell, nested
from experiments.generation import between, requests
from experiments.generation.decoder import Decoder, key_data
from experiments.program import inputs
from experiments.workdir import trained
from models.decoding import parts as sockets
from models.decoding.control import Control
from models.decoding.drafts import Seen, Tree

MEASURES = {  # name: (what it is, 1 or -1 where less is better)
    "exact": ("share of answers that are right", 1),
    "any_of": ("share of rows of which some draw is right", 1),
    "calls": ("passes of the model an answer", -1),
    "loss": ("held-out nats a token", -1),
    "layers": ("layers computed a token", -1),
}


@dataclasses.dataclass(frozen=True)
class Scored(Control):
    """The text goes on as it stands, `target [B, R]`; `nats [B]` is -log of what `counts [B, R]` by the law behind all
    other controls, temperature among them."""

    alone = True

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`."""
        zeros = jnp.zeros((batch, capacity), jnp.int32)
        return {"target": zeros, "counts": zeros, "nats": jnp.zeros((batch,))}

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        token, counts = (jnp.take_along_axis(side[key], p.length[:, None], axis=1) for key in ("target", "counts"))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits[:, 0], axis=-1), token, axis=-1)
        only = jnp.arange(logits.shape[-1]) == token
        return jnp.where(only[:, None], 0.0, -jnp.inf), jnp.where(counts > 0, log_p, 0)[:, 0]

    def commit(self, models: Mapping[str, Any], side: Any, made: Any, seen: Seen) -> Any:
        """See `Control.commit`."""
        return side | {"nats": side["nats"] - jnp.where(seen.count > 0, made, 0)}


class Rows(NamedTuple):
    """Prompts of held-out rows `ids`, what follows them, `wanted`, and what of it `counts`: a list of `[n]` each."""

    ids: list[np.ndarray]
    wanted: list[np.ndarray]
    counts: list[np.ndarray]


def held_out(model: Any, prompt: int) -> Rows:
    """The eval rows of a run, cut behind `prompt` tokens, or (0) before the first token of the answer."""
    ids, wanted, counts = [], [], []
    for batch in inputs.eval_batches(model.config, model.corpus):
        for tokens, targets, scored in zip(
            *(np.asarray(batch[k]) for k in ("tokens", "targets", "scored")), strict=True
        ):
            if not scored.any():
                continue
            cut = prompt or int(np.argmax(scored)) + 1
            ids.append(tokens[:cut])
            wanted.append(tokens[cut:] if prompt else targets[scored])
            counts.append(scored[cut - 1 : -1] if prompt else np.ones(len(wanted[-1]), bool))
    return Rows(ids, wanted, counts)


class Reader:
    """A trained model that writes or scores the same held-out rows under any settings, all rows in one batch."""

    def __init__(self, model: Any, prompt: int):
        self.model, self.prompt, self.rows = model, prompt, held_out(model, prompt)
        tokenizer = copy.copy(model.tokenizer)
        tokenizer.eos = getattr(getattr(model.corpus.valid, "task", None), "end", tokenizer.eos)
        self.decoder = Decoder(model.program, tokenizer)

    def progress(self, options: Mapping[str, Any], draw: int = 0) -> Any:
        """The rows when they have ended."""
        decoder, rows = self.decoder, self.rows
        parts = decoder.parts([options])
        if self.prompt:
            parts = dataclasses.replace(parts, control=(*parts.control, ("scored", Scored())), eos=-1)
        more = max(len(row) for row in rows.wanted)
        text, length = requests.padded(rows.ids, more, 0)
        width, size = text.shape[1], int(length.max()) - 1
        target = {"target": text.copy(), "counts": np.zeros_like(text)}
        for at, (row, wanted, some) in enumerate(zip(*rows, strict=True) if self.prompt else ()):
            behind = slice(len(row), len(row) + len(wanted))
            target["target"][at, behind], target["counts"][at, behind] = wanted, some
        weights = decoder.weights(self.model.params, parts)
        dials = sockets.dials([options] * len(length), parts)
        key = key_data([f"{draw} {at}" for at in range(len(length))], self.model.config.seed)
        limit = length + more
        p = decoder.start(
            weights,
            text,
            length,
            limit,
            key,
            dials,
            parts=parts,
            size=0,
            capacity=width,
        )
        own = between.given(
            parts, {**options, "max_tokens": more}, decoder.tokenizer, decoder.sides(weights, parts, width)
        )
        own = between.together(between.by_row([own] * len(length)), {"scored": target} if self.prompt else {})
        p = decoder.read(weights, between.started(p, own), parts=parts, size=size, fresh=True)
        return decoder.extend(weights, p, jnp.int32(more), jnp.int32(len(length) + 1), parts=parts)

    def figures(self, options: Mapping[str, Any], draws: int = 1) -> dict[str, float]:
        """MEASURES of the rows; `any_of` is that of so many draws."""
        if self.prompt:
            p = self.progress(options)
            drawn, counted = sum(map(len, self.rows.wanted)), sum(int(some.sum()) for some in self.rows.counts)
            side = next((p.side[name] for name in ("skip", "early_exit") if name in p.side), None)
            layers = float(self.model.program.spec.L)
            if side is not None:  # Prompts take all layers.
                took = np.asarray(side["took"]).sum() - layers * (np.asarray(p.prompt) - 1).sum()
                layers = float(took / drawn)
            return {"loss": float(np.asarray(p.side["scored"]["nats"], np.float64).sum() / counted), "layers": layers}
        right, calls = [], []
        for draw in range(draws):
            p = self.progress(options, draw)
            text, start, end = (np.asarray(x) for x in (p.text, p.prompt, p.length))
            right.append([np.array_equal(text[i, start[i] : end[i]], self.rows.wanted[i]) for i in range(len(text))])
            calls.append(np.asarray(p.calls))
        found = {"exact": np.mean(right), "any_of": np.mean(np.any(right, axis=0)), "calls": np.mean(calls)}
        return {name: float(value) for name, value in found.items()}


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains every arm with every seed, reads the same rows under every setting, and compares by seed."""
    seeds = claim["seeds"]
    found = arms.train(claim["base"], claim["arms"], seeds, workdir, jobs=jobs, quiet=quiet)
    values: dict[Cell, list[dict[str, float]]] = {}
    for arm, runs in found.items():
        for row in runs:
            model = trained.load(row["workdir"])
            reader = Reader(model, claim.get("prompt", 0))
            for line, points in claim["lines"].items():
                if line not in claim.get("reads", {}).get(arm, claim["lines"]):
                    continue
                for point, changes in points.items():
                    options = merged(model.config.generate.to_dict(), changes)
                    read = reader.figures(options, claim.get("draws", {}).get(line, 1))
                    values.setdefault((arm, line, point), []).append(read)
    table = {
        name: {cell: [read[name] for read in reads] for cell, reads in values.items() if name in reads[0]}
        for name in MEASURES
    }
    numbers = {"seeds": list(seeds), **{name: nested(cells) for name, cells in table.items() if cells}}
    numbers["gain"] = {
        name: (MEASURES[one][1] * np.subtract(table[one][tuple(cell)], table[other][tuple(than)])).tolist()
        for name, ((one, cell), (other, than)) in claim.get("gain", {}).items()
    }
    scale = f"{arms.scale(found, seeds)}; {claim['base'].eval.rows} held-out rows"
    return [judged(claim, contrast, table, numbers, scale) for contrast in claim["contrasts"]]


def judged(
    claim: Mapping[str, Any], contrast: Mapping[str, Any], table: Mapping[str, Mapping[Cell, Sequence[float]]],
    numbers: Mapping[str, Any], scale: str,
) -> Evidence:  # fmt: skip
    """The row of a contrast."""
    (label, sign), cells = MEASURES[contrast["measure"]], table[contrast["measure"]]
    better, worse = tuple(contrast["better"]), tuple(contrast["worse"])
    shown = {", ".join(filter(None, better)): cells[better]}
    if "at" in contrast:
        cost = table[contrast["at"]]
        other = at_cost([*curve(cost, worse)], [*curve(cells, worse)], cost[better])
        label += f" at {np.mean(cost[better]):.2f} {MEASURES[contrast['at']][0]}"
    else:
        other = cells[worse]
    shown[", ".join(filter(None, worse))] = other
    found = method.judge(claim, (sign * np.subtract(cells[better], other)).tolist(), pair=contrast)
    said = "; ".join(f"{name}: {np.mean(value):.4f}" for name, value in shown.items())
    return found.row(contrast, f"{label}: {said}; the first ahead by {found.text(4)}", scale, dict(numbers))


def curve(cells: Mapping[Cell, Sequence[float]], line: tuple[str, ...]) -> list[Sequence[float]]:
    """The values by seed of every point of a line (arm, line)."""
    return [value for cell, value in cells.items() if cell[: len(line)] == line]


def at_cost(cost: Sequence[Sequence[float]], value: Sequence[Sequence[float]], asked: Sequence[float]) -> list[float]:
    """By seed, the value of a curve where it costs `asked [S]`: points `[P, S]`, straight lines, level beyond them."""
    found = []
    for seed, want in enumerate(asked):
        pairs = sorted((c[seed], v[seed]) for c, v in zip(cost, value, strict=True))
        found.append(float(np.interp(want, *zip(*pairs, strict=True))))
    return found
