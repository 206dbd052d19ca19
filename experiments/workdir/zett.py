"""A hypernetwork of embeddings, trained on a frozen model for its move to another tokenizer (`transplant_rule=zett`).

At each step a tokenizer is drawn around the newest text of the run (`data.tokenizers.sampled`), `models.hypernetwork`
says its rows of the embedding and of the head, and the model reads the text with them; loss: nats a token + `lexical`
times the distance from the old rows of pieces that are one old id. Before, `identity_steps` reproduce all old rows.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

import data
from data import packing
from data.tokenizers import sampled
from experiments.program import Program, build, inputs
from experiments.settings.errors import ConfigError
from models import hypernetwork, reports
from models.objectives import OBJECTIVES

PAD, SPECIALS, CLIP, SAID = -1, 3, 0.1, 50
AT_ONCE = 4096  # pieces whose rows are made together, once it is trained
Drawn = tuple[np.ndarray, dict[str, np.ndarray]]  # forms [n, S], a batch


def predicted(old: Program, params: Any, tokenizer: Any, encode: Callable, run: tuple[Any, Any]) -> Callable:
    """`(pieces in old ids [n, S]) -> {table: rows [n, D]}` for each table of `params`, by a network trained here.

    Args:
      old: the program of the trained model.
      params: of it; they are not changed.
      tokenizer: the old one.
      encode: bytes -> ids of it.
      run: config and corpus of the new run, whose text is read and whose `init.zett` and seed say how.

    Errors: ConfigError where the text has too few substrings for so many pieces.
    """
    config, corpus = run
    options = config.init.zett
    names = [name for name in ("embedding", "head") if params.get(name) is not None]
    source = np.concatenate([np.asarray(params[name], np.float64) for name in names], axis=1)
    size = options.pieces or len(corpus.tokenizer.pieces) - SPECIALS
    model, draws = frozen(old, params, size, tokenizer), drawn(config, corpus, encode, size)
    p = train(model, source, draws, options, int(config.seed))
    run_once = jax.jit(functools.partial(hypernetwork.predict, pad=PAD, p=p, heads=options.heads))

    def rows(forms: np.ndarray) -> dict[str, np.ndarray]:
        parts = (forms[k : k + AT_ONCE] for k in range(0, len(forms), AT_ONCE))
        wide = np.concatenate([np.asarray(run_once(part, jnp.float32(source)), np.float64) for part in parts])
        return dict(zip(names, np.split(wide, len(names), axis=1), strict=True))

    return rows


def frozen(old: Program, params: Any, size: int, tokenizer: Any) -> Callable[[jax.Array, dict, jax.Array], jax.Array]:
    """`(rows [size, D_out], batch, key) -> nats a target` of the trained model with these rows in its tables.

    Behind them are its own start, end and padding, and the ids of its objective beyond the tokenizer's. A causal model
    is read as a model of next tokens, whatever it was trained by.
    """
    config = old.config.copy_and_resolve_references().unlock()
    config.model.vocab_size, config.model.vocab_multiple = 0, 1
    if OBJECTIVES[config.objective].causal:
        config.objective = "next_token"
    program = build(config.lock(), vocab_size=size + SPECIALS, mesh=old.mesh)
    ids = np.array([tokenizer.bos, tokenizer.eos, tokenizer.pad])
    ids = np.append(ids, tokenizer.vocab_size + np.arange(program.spec.V - size - SPECIALS))
    own = {name: params[name] for name in program.abstract["params"]}
    tables = [name for name in ("embedding", "head") if own.get(name) is not None]

    def nats(rows: jax.Array, batch: dict, key: jax.Array) -> jax.Array:
        parts = jnp.split(rows, len(tables), axis=1)
        made = {
            name: jnp.concatenate([part.astype(own[name].dtype), own[name][ids]])
            for name, part in zip(tables, parts, strict=True)
        }
        batch = program.objective.corrupt(batch, key)
        out = program.objective.loss(program.merge(own | made), batch, key)
        return reports.with_losses(out.total, out.report) / jnp.maximum(jnp.sum(batch["scored"]), 1)

    return nats


def loss(
    p: Mapping, nats: Callable, source: jax.Array, drawn: tuple, key: jax.Array, *, heads: int, lexical: float
) -> jax.Array:  # fmt: skip
    """nats(rows) + lexical * `lexical_loss`(rows), rows = `hypernetwork.predict`(forms).

    Args:
      p: for `predict`.
      nats: `(rows [n, D_out], batch, key) -> nats a target`; None: 0.
      source: `[V, D_out]` old rows.
      drawn: forms `[n, S]` and a batch.
    """
    forms, batch = drawn
    rows = hypernetwork.predict(forms, source, PAD, p, heads)
    said = lexical * hypernetwork.lexical_loss(rows, source, forms, PAD)
    return said if nats is None else nats(rows, batch, key) + said


def train(nats: Callable, source: np.ndarray, draws: Iterator[Drawn], options: Any, seed: int) -> dict:
    """Parameters for `hypernetwork.predict` after `identity_steps` and `steps` updates of Adam, clipped at 0.1; the
    rate falls by a cosine over the latter."""
    D, key = source.shape[1], jax.random.key(seed)
    width = options.width or D
    held = jax.tree.map(jnp.float32, hypernetwork.scales(source))
    p, source = hypernetwork.initial(key, D, D, width, options.layers), jnp.float32(source)
    falling = optax.cosine_decay_schedule(options.learning_rate, max(1, options.steps))
    rates = optax.join_schedules([optax.constant_schedule(options.learning_rate), falling], [options.identity_steps])
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(rates))
    moments = optimizer.init(p)

    def update(nats: Callable | None, p: dict, moments: Any, drawn: tuple, key: jax.Array) -> tuple:
        def of(p: dict) -> jax.Array:
            lexical = 1.0 if nats is None else options.lexical
            return loss(p | held, nats, source, drawn, key, heads=options.heads, lexical=lexical)

        value, gradient = jax.value_and_grad(of)(p)
        change, new = optimizer.update(gradient, moments, p)
        return optax.apply_updates(p, change), new, value

    same = np.stack([np.arange(len(source)), np.full(len(source), PAD)], axis=1)
    first, then = (jax.jit(functools.partial(update, each)) for each in (None, nats))
    for step in range(options.identity_steps + options.steps):
        early = step < options.identity_steps
        told = (same, {}) if early else next(draws)
        p, moments, value = (first if early else then)(p, moments, told, jax.random.fold_in(key, step))
        if step % SAID == 0 or step == options.identity_steps + options.steps - 1:
            logging.info("hypernetwork: step %d, %s %.4f", step, "distance" if early else "loss", float(value))
    return p | held


def drawn(config: Any, corpus: data.Corpus, encode: Callable, size: int) -> Iterator[Drawn]:
    """For each step the forms of a tokenizer of `size` pieces, drawn around the newest `init.zett.pool` batches, and a
    batch of the run's text in its ids."""
    options, rng = config.init.zett, np.random.default_rng(int(config.seed))
    loader, step = inputs.train_loader(config, corpus), 0
    pool: collections.deque = collections.deque(maxlen=options.pool)
    forms: dict[bytes, np.ndarray] = {}
    while True:
        for _ in range(1 if pool else options.pool):
            texts = documents(loader.batch(step), corpus.tokenizer)
            pool.append(collections.Counter(word for text, _ in texts for word in sampled.words(text)))
            step += 1
        counts = sum(pool, collections.Counter())
        try:
            log_p = sampled.draw(counts, size, sampled.noise_scale(rng, options.noise, options.spread), rng)
        except ValueError as error:
            raise ConfigError([f"init.zett.pieces={options.pieces}: {error}"]) from None
        new = [piece for piece in log_p if piece not in forms]
        forms.update(zip(new, hypernetwork.surface_forms(new, encode, PAD), strict=True))
        yield np.stack([forms[piece] for piece in log_p]), batch(texts, sampled.Encoder(log_p), size, config)


def documents(rows: Mapping[str, np.ndarray], tokenizer: Any) -> list[tuple[bytes, tuple[bool, bool]]]:
    """The stretches of a batch that are of one document: bytes, and whether start and end of it are there."""
    found = []
    for tokens, segments in zip(rows["tokens"], rows["segment_ids"], strict=True):
        for k in range(1, segments.max() + 1):
            ids = tokens[segments == k]
            if len(ids):
                text = tokenizer.decode_bytes(ids)
                found.append((text, (bool(ids[0] == tokenizer.bos), bool(ids[-1] == tokenizer.eos))))
    return found


def batch(texts: Sequence[tuple[bytes, tuple[bool, bool]]], encode: Callable, size: int, config: Any) -> dict:
    """These texts, one behind the other, in ids of `encode`, start `size`, end `size` + 1, padding `size` + 2: as many
    rows as `config.data` says, the last ones padding where the text ends."""
    rows = [[*([size] * a), *encode(text), *([size + 1] * b)] for text, (a, b) in texts]
    starts = np.cumsum([0, *map(len, rows)])[:-1]
    flat = data.Tokens(np.concatenate(rows).astype(np.int32), starts, sum(len(text) for text, _ in texts))
    found = packing.Stream(flat, config.data.length).rows(np.arange(config.data.batch_size))
    return packing.finish(found, pad=size + 2, isolate=config.data.isolate)
