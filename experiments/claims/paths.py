"""Check: paths of tokens through layers of a few modules (Duo-LLM): the best ones, a trained router's, fixed ones.

The claim has `base`; `chance` ({dotted key: value}), the model that learns with modules drawn by chance; `router`, the
run that begins with it and trains its router; `texts`, how many held-out rows are read; `pairs`, each with `statement`,
`published`, `better` and `worse`, names in `FIGURES`; and `seeds`.

One token takes a path and all others the first module, so that the loss at that token depends on its path alone.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.program import inputs
from experiments.routing import paths
from experiments.settings.errors import Refused
from experiments.workdir import trained
from models.experts.options import Options
from models.mixers.context import EXPERTS

FIGURES = {
    "all big": "the first module in every layer",
    "all skip": "the last module in every layer",
    "one big": "the best path of each token with the first module in at most one layer",
    "router": "the paths of the trained router",
    "oracle": "the best path of each token at the cost of the router's",
    "fixed": "the best path for all tokens at the router's mean cost",
}


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains both models with every seed, tries every path of every token of some rows, and compares mean losses."""
    seeds, base, kw = claim["seeds"], claim["base"], {"jobs": jobs, "quiet": quiet}
    begun = arms.train(base, {"chance": claim["chance"]}, seeds, workdir, **kw)
    runs, read = {"chance": begun["chance"], "router": []}, []
    for seed, row in zip(seeds, begun["chance"], strict=True):
        changes = {**claim["router"], "init.warm_start": str(row["workdir"])}
        runs["router"] += arms.train(base, {"router": changes}, (seed,), workdir, **kw)["router"]
        read.append(figures(trained.load(runs["router"][-1]["workdir"]), claim["texts"]))
    arms.compare(runs, workdir)
    table = {name: [each[name] for each in read] for name in read[0]}
    table["gain"] = [skip - big for skip, big in zip(table["all skip"], table["all big"], strict=True)]
    scale = f"{arms.scale(runs, seeds)}; {claim['texts']} held-out rows"
    return [_row(claim, pair, table, scale) for pair in claim["pairs"]]


def _row(claim: Mapping[str, Any], pair: Mapping[str, Any], table: Mapping[str, list[float]], scale: str) -> Evidence:
    better, worse = pair["better"], pair["worse"]
    judged = method.judge(claim, np.subtract(table[worse], table[better]).tolist(), pair=pair)
    shown = ", ".join(f"{name} {np.mean(table[name]):.3f}" for name in FIGURES)
    measured = (
        f"nats a token: {shown}; {better} better than {worse} by {judged.text(3)}; the router has "
        f"{np.mean(table['big layers']):.2f} big layers a token"
    )
    return judged.row(pair, measured, scale, {"seeds": list(claim["seeds"]), **table})


def figures(model: Any, texts: int) -> dict[str, float]:
    """Mean losses of `FIGURES` over the tokens of `texts` held-out rows in nats, and what the router's paths cost.

    `spent` is in units of the first module, `big layers` how often that is taken.
    """
    options = Options.of(model.program.spec.options["moe"])
    modules, L = options.kinds.total, model.program.spec.L
    if sum(options.kinds[:2]) > 2 or modules > 3:
        raise Refused("the check paths tries every path of a model with one big module, one small and one that skips.")
    costs = (1.0, options.small_hidden / options.hidden_width(model.program.spec.D), 0.0)[:modules]
    losses, taken = _passes(model)
    rows = _texts(model, texts)
    tables = [paths.table(lambda index, row=row: losses(row, index), (0,) * L, row.shape[1], modules) for row in rows]
    found, own = np.concatenate(tables), np.concatenate([taken(row) for row in rows])
    spent, every = paths.cost(own, costs), paths.every(L, modules)
    open_ = paths.cost(every, costs) <= spent.mean() + 1e-9
    return {
        "all big": float(found[:, 0].mean()),
        "all skip": float(found[:, -1].mean()),
        "one big": float(paths.within(found, L, (1.0, 0.0, 0.0)[:modules], 1.0)[0].mean()),
        "router": float(paths.chosen(found, own, modules).mean()),
        "oracle": float(paths.within(found, L, costs, spent + 1e-9)[0].mean()),
        "fixed": float(found.mean(0)[open_].min()),
        "spent": float(spent.mean()),
        "big layers": float((own == 0).sum(-1).mean()),
    }


def _texts(model: Any, count: int) -> list[np.ndarray]:
    """Rows `[2, T]` of tokens and targets, without padding."""
    found: list[np.ndarray] = []
    for batch in inputs.eval_batches(model.config, model.corpus, model.program.rows):
        pairs = np.stack([batch["tokens"], batch["targets"]], axis=1)
        ids = batch.get("segment_ids")
        found += [*pairs[np.ones(len(pairs), bool) if ids is None else (np.asarray(ids) != 0).all(1)]]
        if len(found) >= count:
            return found[:count]
    raise Refused(f"texts={count} rows are more than the {len(found)} held out; use e.g. {max(1, len(found))}.")


def _passes(model: Any) -> tuple[Callable, Callable]:
    """`(row [2, T], index [L, R, T]) -> losses [R, T]`, and `row -> modules [T, L]` of the router."""
    program = model.program

    @jax.jit
    def losses(params: Any, row: jax.Array, index: jax.Array) -> jax.Array:
        lm = program.merge(params)
        tokens = jnp.broadcast_to(row[0], index.shape[1:])
        given = {EXPERTS: (index[..., None], jnp.ones((*index.shape, 1)))}
        out = lm(tokens, mask=program.objective.mask, layers=given)
        z = jax.nn.log_softmax(lm.logits(out.features).astype(jnp.float32), axis=-1)
        return -jnp.take_along_axis(z, jnp.broadcast_to(row[1], tokens.shape)[..., None], axis=-1)[..., 0]

    @jax.jit
    def taken(params: Any, row: jax.Array) -> jax.Array:
        report = program.merge(params)(row[:1], mask=program.objective.mask, taps=(EXPERTS,)).report
        return report[EXPERTS][:, 0, :, 0].T

    return (
        lambda row, index: np.asarray(losses(model.params, row, jnp.asarray(index))),
        lambda row: np.asarray(taken(model.params, row)),
    )
