"""`eval.bytes=exact`: the probability of held-out documents as bytes, under a model of whatever tokens.

Of each document the beginning that fits a row is read. P(x) is the sum over the covers of its bytes x
(`data.tokenizers.covers`): all encodings of texts that begin with x. They share all but their last words, so that the
model reads the shared part once, and then a short row for every beginning that some token covers to the end. The end of
a document is not predicted: bits per byte of models with different tokenizers count the same event.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import data
from data.tokenizers import covers, endings
from experiments.program import Program
from experiments.settings.errors import ConfigError
from experiments.training.evaluate import bits_a_byte, ratio_standard_error
from kernels import masks
from models.decoding import rows as lanes
from models.objectives import next_token, noise

_MULTIPLE = 64  # Of this are the sizes of what documents share.
DRAWS = 128  # Places of a document at which a token is drawn.
TOGETHER = 8  # Documents of one pass.
_ROOM = 16  # Tokens that an encoding of a beginning may be longer than that of the text.


@dataclasses.dataclass(frozen=True)
class Read:
    """One document: what the model reads for it, and what is summed."""

    size: int  # bytes of x
    ids: covers.Ids  # the encoding of x
    head: tuple[int, ...]  # read once: bos and what all rows share but their first token
    rows: tuple[tuple[int, ...], ...]  # read behind the head; all begin with the same token
    # Row, token in it, and the ids that may follow it as the last one: of `ids` first, then of all covers.
    asked: tuple[tuple[int, int, np.ndarray], ...]

    @property
    def places(self) -> list[int]:
        """The tokens of the head behind which one is drawn: all, or `DRAWS` evenly spaced."""
        n = len(self.head)
        return list(range(n)) if n <= DRAWS else [n * k // DRAWS for k in range(DRAWS)]


@dataclasses.dataclass(frozen=True)
class Found:
    """What was measured; arrays have one entry a document.

    Args:
      exact, canonical: -log P(x) and -log P(encoding of x), nats `[documents]`.
      sizes: bytes of x.
      drawn, strays: tokens drawn from the model behind beginnings of the encodings, and how many of them no text is
        encoded to; ends are not counted.
      read, plain: tokens that the model read, padding included, and those of the encodings.
      seconds: planned on the host, and in all; compiling is in it.
    """

    exact: np.ndarray
    canonical: np.ndarray
    sizes: np.ndarray
    drawn: np.ndarray
    strays: np.ndarray
    read: int
    plain: int
    seconds: tuple[float, float]


def check(config: Any, program: Program, tokenizer: Any) -> None:
    """Raises ConfigError where bytes have no exact law here."""
    if config.eval.bytes == "canonical":
        return
    wrong = ""
    if program.objective.generator != "autoregressive":
        wrong = f"objective={config.objective!r} has no law of the next token"
    elif not hasattr(tokenizer, "pieces"):
        wrong = f"data.source={config.data.source!r} has symbols of its own, which are no bytes"
    elif config.data.source == "chat":
        wrong = "data.source='chat' has marks between its bytes"
    elif jax.process_count() > 1:
        wrong = f"{jax.process_count()} processes evaluate, and one must"
    if wrong:
        raise ConfigError([f"eval.bytes={config.eval.bytes!r}: {wrong}; use eval.bytes='canonical'."])


def plan(tokenizer: Any, text: bytes, pieces: endings.Pieces) -> Read:
    """What is to be read for the exact probability of `text`, which is not empty and ends with a whole character."""
    found = endings.ending(tokenizer, text, pieces)
    whole = (tokenizer.bos, *found.ids)
    sequences = [(tokenizer.bos, *body) for body in found.bodies]
    cut = min(shared(whole, other) for other in sequences) - 1  # Rows begin with the last token that all share.
    rests = [each[cut:] for each in (whole[:-1], *sequences)]
    rows: list[tuple[int, ...]] = []
    for rest in sorted(set(rests), key=lambda rest: (-len(rest), rest)):
        if not any(row[: len(rest)] == rest for row in rows):
            rows.append(rest)
    place = lambda rest: next(k for k, row in enumerate(rows) if row[: len(rest)] == rest)  # noqa: E731
    asked = zip(rests, (np.array(whole[-1:]), *found.last), strict=True)
    return Read(
        len(text), found.ids, whole[:cut], tuple(rows), tuple((place(r), len(r) - 1, last) for r, last in asked)
    )


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Entries at the beginning that are the same in both."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def make_step(program: Program) -> Callable:
    """Jitted `(params, arrays) -> ([B] nats of the head's targets, [R, S] log-probabilities of the rows' own next
    tokens, [Q] log of what was asked, [B, P] tokens drawn)`; `arrays` are those of `packed`."""

    def step(params: Any, arrays: dict) -> tuple[jax.Array, ...]:
        model = program.decoder(params).for_decoding()
        head, rows = arrays["head"], arrays["rows"]
        places = lambda ids: jnp.where(ids >= 0, jnp.arange(ids.shape[1]), -1)  # noqa: E731
        state = model.init_state(len(head), head.shape[1] + rows.shape[1])
        at = places(head)
        out = model(jnp.maximum(head, 0), mask=masks.Causal(), positions=at, state=state, fresh=True)
        nll = next_token.target_nll(model, out.features, jnp.maximum(arrays["targets"], 0))
        nats = jnp.sum(jnp.where(arrays["targets"] >= 0, nll, 0), axis=-1)
        drawn = _drawn(model, out.features, arrays["places"], arrays["noise"])
        held = out.state["slots"].length[arrays["document"]]
        at = jnp.where(rows >= 0, held[:, None] + places(rows), -1)
        state = lanes.take(out.state, arrays["document"])
        out = model(jnp.maximum(rows, 0), mask=masks.Causal(), positions=at, state=state)
        log_p = jax.nn.log_softmax(model.logits(out.features), axis=-1)
        own = jnp.take_along_axis(log_p[:, :-1], jnp.maximum(rows[:, 1:, None], 0), axis=-1)[..., 0]
        row, token, last = arrays["row"], arrays["token"], arrays["last"]
        some = jnp.take_along_axis(log_p[row, token], jnp.maximum(last, 0), axis=-1)
        asked = jax.nn.logsumexp(jnp.where(last >= 0, some, -jnp.inf), axis=-1)
        return nats, jnp.pad(own, ((0, 0), (0, 1))), asked, drawn

    return program.jit(step)


def _drawn(model: Any, features: jax.Array, places: jax.Array, uniform: jax.Array) -> jax.Array:
    """A token drawn at each of `places [B, P]`, by the inverse of its distribution at `uniform [B, P]`."""

    def row(inputs: tuple) -> jax.Array:
        features, places, uniform = inputs
        p = jax.nn.softmax(model.logits(features[places]), axis=-1)
        below = jnp.cumsum(p, axis=-1) < uniform[:, None]
        return jnp.minimum(jnp.sum(below, axis=-1), p.shape[-1] - 1).astype(jnp.int32)

    return jax.lax.map(row, (features, places, uniform))


def packed(some: Sequence[Read], first: int, longest: int = 1) -> dict[str, np.ndarray]:
    """The arrays of `make_step` for up to `TOGETHER` documents, in sizes of which there are few; -1 is padding.

    A document draws by its number, `first` and so on, alone. `longest`: heads are padded to so many tokens at least.
    """
    B = power(len(some))
    filled = [*some, *[some[0]] * (B - len(some))]
    T = -(-max(longest, *(len(each.head) for each in filled)) // _MULTIPLE) * _MULTIPLE
    rows = [(k, row) for k, each in enumerate(some) for row in each.rows]
    starts = np.cumsum([0, *(len(each.rows) for each in some)])
    asked = [(starts[k] + row, token, last) for k, each in enumerate(some) for row, token, last in each.asked]
    R, S = B * power(-(-len(rows) // B), 4), power(max(4, *(len(row) for _, row in rows)))
    Q, M = (64 * power(-(-n // 64), 4) for n in (len(asked), max(len(last) for *_, last in asked)))
    keys = noise.row_keys(jax.random.key(0), jnp.int32(first), B)
    made = {
        "head": np.full((B, T), -1, np.int32), "targets": np.full((B, T), -1, np.int32),
        "places": np.zeros((B, DRAWS), np.int32),
        "noise": np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (DRAWS,)))(keys)),
        "rows": np.full((R, S), -1, np.int32), "document": np.zeros(R, np.int32),
        "row": np.zeros(Q, np.int32), "token": np.zeros(Q, np.int32), "last": np.full((Q, M), -1, np.int32),
    }  # fmt: skip
    for k, each in enumerate(filled):
        made["head"][k, : len(each.head)] = each.head
        made["targets"][k, : len(each.head)] = each.ids[: len(each.head)]
        chosen = each.places
        made["places"][k, : len(chosen)] = chosen
    for r, (document, row) in enumerate(rows):
        made["rows"][r, : len(row)] = row
        made["document"][r] = document
    for q, (row, token, last) in enumerate(asked):
        made["row"][q], made["token"][q] = row, token
        made["last"][q, : len(last)] = last
    return made


def power(n: int, base: int = 2) -> int:
    """The least power of `base` that is not below n, at least 1: sizes of which there are few."""
    found = 1
    while found < n:
        found *= base
    return found


def measured(step: Callable, params: Any, tokenizer: Any, texts: Sequence[bytes]) -> Found:
    """The exact law of each text.

    Args:
      step: from `make_step`.
      params: on the program's mesh.
      tokenizer: the model's.
      texts: not empty, each ends with a whole character.
    """
    began, planning = time.perf_counter(), 0.0
    pieces, each, read, plain = endings.Pieces(tokenizer), [], 0, 0
    plans = [plan(tokenizer, text, pieces) for text in texts]
    planning += time.perf_counter() - began
    longest = max(1, *(len(one.head) for one in plans))
    for first in range(0, len(plans), TOGETHER):
        start = time.perf_counter()
        some = plans[first : first + TOGETHER]
        arrays = packed(some, first, longest)
        planning += time.perf_counter() - start
        out = [np.asarray(x, np.float64) for x in jax.device_get(step(params, arrays))]
        start = time.perf_counter()
        each += [_summed(tokenizer, pieces, k, some, out) for k in range(len(some))]
        planning += time.perf_counter() - start
        read += arrays["head"].size + arrays["rows"].size
        plain += sum(len(one.ids) for one in some)
    columns = np.array(each, np.float64).reshape(-1, 5).T
    return Found(*columns, read, plain, (planning, time.perf_counter() - began))


def _summed(
    tokenizer: Any, pieces: endings.Pieces, k: int, some: Sequence[Read], out: Sequence[np.ndarray]
) -> tuple[float, ...]:
    """(exact nats, canonical nats, bytes, tokens drawn, strays) of document `k` of a pass; `out`: see `make_step`."""
    one, (nats, own, asked, drawn) = some[k], out
    row, question = (sum(len(getattr(other, name)) for other in some[:k]) for name in ("rows", "asked"))
    log_p = [own[row + r, :token].sum() + asked[question + q] for q, (r, token, _) in enumerate(one.asked)]
    draws = drawn[k, : len(one.places)].astype(int).tolist()
    valid = endings.continuations(tokenizer, one.ids, one.places, draws, pieces)
    kept = [ok for ok, token in zip(valid, draws, strict=True) if tokenizer.pieces[token]]
    return nats[k] - np.logaddexp.reduce(log_p[1:]), nats[k] - log_p[0], one.size, len(kept), kept.count(False)


def beginnings(model: Any) -> Iterator[bytes]:
    """What fits a row of each held-out document of a trained model, at most `eval.rows` (0: all) behind `eval.skip`."""
    valid, tokenizer, options = model.corpus.valid, model.tokenizer, model.config.eval
    room = max(model.config.data.length - 1 - _ROOM, 1)
    parts = valid.parts if isinstance(valid, data.Mixture) else (valid,)
    documents = (
        part.tokens[a:b]
        for part in parts
        for a, b in itertools.pairwise([*part.starts.tolist(), len(part.tokens)])
    )  # fmt: skip
    last = options.skip + options.rows if options.rows else None
    for ids in itertools.islice(documents, options.skip, last):
        text = tokenizer.decode_bytes(ids[: 1 + room])
        text = text[: len(text) - covers.unfinished(text)]
        if text:
            yield text


def no_text(how: str) -> ConfigError:
    """The error where nothing can be read."""
    return ConfigError([f"eval.bytes={how!r}: no held-out document has text; use eval.bytes='canonical'."])


def line(model: Any) -> str:
    """The exact law of the held-out documents of a trained model, in words, beside that of their encodings."""
    texts = list(beginnings(model))
    if not texts:
        raise no_text("exact")
    found = measured(make_step(model.program), model.params, model.tokenizer, texts)
    share = found.strays.sum() / max(found.drawn.sum(), 1)
    error = 100 * ratio_standard_error(found.strays, found.drawn)
    told = "" if math.isnan(error) else f"standard error {error:.2f}, "
    planned, seconds = found.seconds
    return (
        f"exact bits per byte = {bits_a_byte(found.exact, found.sizes)}: all "
        f"encodings that begin with the first {int(found.sizes.sum()):,} bytes of {len(texts):,} held-out "
        f"document{'s' * (len(texts) != 1)}; of their own encodings alone {bits_a_byte(found.canonical, found.sizes)}\n"
        f"mass of the next token on what no text is encoded to: {100 * share:.2f} % ({told}"
        f"{int(found.drawn.sum()):,} tokens drawn)\n"
        f"cost: {found.read / found.plain:.2f} x the tokens of the encodings, {seconds:.1f} s with compiling, "
        f"{planned:.1f} s of it on the host"
    )
