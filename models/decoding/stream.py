"""Text token by token, each row at its own pace: prompts are read in pieces, then one pass of the model is a round.

    p = begin(models, parts, text, length, limit, key, dials)
    p = read(models, p, parts, 512)                  # of each row the next tokens of its prompt, as often as needed
    p = extend(models, p, parts, rounds, ends)       # one `while_loop` of rounds

The parts of a round are sockets: what the layers keep (`models.mixers.memory`), what is proposed
(`models.decoding.drafts`), what of it stays (`models.decoding.verify`) and what the logits become
(`models.decoding.control`). Which rows read what and when is the schedule's business: a row's text depends on its own
key, prompt and settings alone.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels import masks
from models.block import Pass
from models.decoding import keys
from models.decoding.commit import commit
from models.decoding.control import Control, Feed
from models.decoding.drafts import Drafter, Seen, Tree
from models.decoding.rows import single
from models.decoding.verify import Verifier
from models.mixers.context import Asked, Edit
from models.mixers.memory import Policy, settled
from models.mixers.prefill import Prefill
from models.mixers.slots import depths, put
from models.mixers.together import Rows

Models = Mapping[str, Any]  # "model": the one whose text it is; others by the names of the parts that read them


@dataclasses.dataclass(frozen=True)
class Parts:
    """One entry of each socket: static under jit. Drafter and controls stand beside the names of their sides.

    `eos`: the token that ends a row; -1: none does. `prefill`: what heads see of a prompt; None: all of it.
    """

    memory: Policy
    drafter: tuple[str, Drafter]
    verifier: Verifier
    control: tuple[tuple[str, Control], ...]
    eos: int = -1
    prefill: Prefill | None = None

    @property
    def sides(self) -> tuple[tuple[str, Any], ...]:
        """What keeps a side, by name."""
        return (self.drafter, *self.control)

    @property
    def taps(self) -> tuple[str, ...]:
        """Sites of the model that some part is shown."""
        return tuple(dict.fromkeys(site for _, part in self.sides for site in part.taps))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """Rows under way; every leaf has the batch in front, so that `models.decoding.rows` works on all of it.

    The model's state holds the tokens of a row before the one that its next pass reads: all but the last, once the
    prompt is read. `state["slots"].length` counts them.
    """

    text: jax.Array  # [B, R + D] ids, prompt and what was drawn; beyond `length` there is rubbish; D: drafter.depth
    length: jax.Array  # [B] tokens of the text
    prompt: jax.Array  # [B] how many of them are the prompt
    limit: jax.Array  # [B] tokens that it may come to have, at most R
    done: jax.Array  # [B] ended by `eos`, the limit or a failure, or no request at all
    failed: jax.Array  # [B] ended because no logit was finite
    calls: jax.Array  # [B] passes of the model that drew for this row
    wrote: jax.Array  # [B, D] rounds that wrote 1, 2, ..., D tokens
    key: jax.Array  # [B, 2] uint32: the key of each request
    state: Any  # the model's decoding state
    feed: Feed | None  # what is read in place of each row's last token; None: no control feeds
    side: dict[str, Any]  # drafter's and controls' own, by name
    dials: dict[str, jax.Array]  # [B] float32 numbers of sampling that the controls read

    @property
    def unread(self) -> jax.Array:
        """`[B]` tokens that the state lacks before the row's next round."""
        return self.length - 1 - self.state["slots"].length

    @property
    def live(self) -> jax.Array:
        """`[B]` rows that a round can extend."""
        return ~self.done & (self.unread == 0)


def begin(
    models: Models,
    parts: Parts,
    text: jax.Array,
    length: jax.Array,
    limit: jax.Array,
    key: jax.Array,
    dials: Mapping[str, jax.Array],
    *,
    capacity: int = 0,
) -> Progress:
    """Rows with their prompts, of which nothing is read.

    Args:
      models: inside a trace.
      parts: the sockets' entries.
      text: `[B, R]` ids of the prompts, each padded at its end; R is the longest text that fits.
      length: `[B]` tokens of each prompt, at least 1; 0: an empty row, which is done.
      limit: `[B]` tokens of the whole text at most.
      key: `[B, 2]` data of the requests' keys.
      dials: numbers of sampling, `[B]` each.
      capacity: tokens that the decoding state holds now, with the padding of a last piece of the prompt; 0: R. Rows are
        moved to a larger state by `models.decoding.rows.fit`.
    """
    model, drafter = models["model"], parts.drafter[1]
    B, R = text.shape
    more = drafter.nodes - 1
    side = {name: part.init(models, B, R + more) for name, part in parts.sides}
    length, limit = length.astype(jnp.int32), limit.astype(jnp.int32)
    memory = dataclasses.replace(parts.memory, slots=(capacity or R) + more)
    state = model.init_state(B, R + more, memory)
    text = jnp.pad(text.astype(jnp.int32), ((0, 0), (0, drafter.depth)))
    dials = {name: jnp.asarray(value, jnp.float32) for name, value in dials.items()}
    zeros, no = jnp.zeros((B,), jnp.int32), jnp.zeros((B,), bool)
    feed, wrote = None, jnp.zeros((B, drafter.depth), jnp.int32)
    if any(part.feeds for _, part in parts.control):
        feed = Feed(jnp.zeros((B, model.spec.D), model.spec.dtype), no)
    return Progress(text, length, length, limit, length >= limit, no, zeros, wrote, key, state, feed, side, dials)


def pass_(models: Models, p: Progress, parts: Parts, tokens: jax.Array, positions: jax.Array, **kw: Any) -> Pass:
    """The model's pass over new tokens of the rows of `p`, with what controls hand it; `kw` as of `LM.__call__`.

    positions: `[B, T]` of the tokens in their texts, -1 = padding; controls may place them elsewhere.
    """
    more: dict[str, Any] = {"asked": Asked(p.prompt, p.key)}
    text = positions
    for name, part in parts.control:
        side = p.side[name]
        positions = part.placed(side, positions)
        for key, values in part.enters(models, side, p).items():
            if not isinstance(values, Mapping):
                more[key] = values
                continue
            there = more.setdefault(key, {})
            for site, value in values.items():
                there[site] = behind(there[site], value) if key == "edits" and site in there else value
    if parts.taps:
        more["taps"] = parts.taps
    if (roles := more.pop("roles", None)) is not None:
        more["roles"] = roles(text)
    if (among := more.pop("among", None)) is not None and kw.get("fresh"):
        more["among"] = among(tokens.shape[1])
    return models["model"](tokens, mask=masks.Causal(), positions=positions, **more, **kw)


def behind(first: Edit, second: Edit) -> Edit:
    """Two edits of one site, one after the other."""
    return lambda x, layers: second(first(x, layers), layers)


def read(models: Models, p: Progress, parts: Parts, size: int, *, fresh: bool = False) -> Progress:
    """Reads up to `size` more tokens of every row that has unread ones; nothing is drawn.

    Args:
      models: inside a trace.
      p: rows; those that are done read nothing.
      parts: the sockets' entries.
      size: tokens of the widest row in this pass; shorter rests are padded.
      fresh: nothing of any row was read before.
    """
    tokens, position = piece(p, size)
    sparse = {"prefill": parts.prefill} if parts.prefill is not None and fresh else {}
    made = pass_(models, p, parts, tokens, position, state=p.state, fresh=fresh, **sparse)
    return with_piece(models, p, parts, tokens, position, made)


def piece(p: Progress, size: int) -> tuple[jax.Array, jax.Array]:
    """The next `size` unread tokens of every row and their positions, `[B, size]` each; -1: there is none."""
    at = p.state["slots"].length[:, None] + jnp.arange(size)
    wanted = (at < (p.length - 1)[:, None]) & ~p.done[:, None]
    tokens = jnp.take_along_axis(p.text, jnp.minimum(at, p.text.shape[1] - 1), axis=1)
    return tokens, jnp.where(wanted, at, -1)


def with_piece(
    models: Models, p: Progress, parts: Parts, tokens: jax.Array, position: jax.Array, made: Pass
) -> Progress:
    """`p` when the model has read a piece of its prompts."""
    side = p.side | {name: part.read(models, p.side[name], tokens, position, made) for name, part in parts.sides}
    ended = jnp.any(position >= 0, axis=1) & (made.state["slots"].length == p.prompt - 1)
    state = made.state | {"layers": settled(parts.memory, made.state["layers"], ended)}
    return dataclasses.replace(p, state=state, side=side)


def beside(
    models: Models, p: Progress, parts: Parts, live: jax.Array, others: Progress, whole: Parts, size: int
) -> tuple[Progress, Progress]:
    """`round_(models, p, parts, live)` and `read(models, others, whole, size)` in one pass of the model.

    It reads the weights once (Agrawal et al. 2024, Sarathi-Serve, arXiv:2403.02310). Both parts must be `plain`.
    """
    asked = _asked(models, p, parts, live)
    tokens, position = piece(others, size)
    rows = [
        Rows(asked.tokens, asked.position, asked.state, asked.parents, Asked(p.prompt, p.key)),
        Rows(tokens, position, others.state, None, Asked(others.prompt, others.key)),
    ]
    made, other = models["model"].together(rows, masks.Causal())
    return _judged(models, p, parts, live, asked, made), with_piece(models, others, whole, tokens, position, other)


def plain(parts: Parts) -> bool:
    """Whether a round is one pass of the model that is given tokens alone, and of which no site is tapped."""
    own = [part for _, part in parts.control]
    hooks = ("step", "enters", "placed")
    return not parts.taps and all(getattr(type(part), hook) is getattr(Control, hook) for part in own for hook in hooks)


class _Asked(NamedTuple):
    """What a round reads."""

    tree: Tree
    side: Any  # the drafter's, as it proposed
    tokens: jax.Array  # [B, N + P] ids, or vectors [B, N + P, D]: the nodes and what is read beside them
    position: jax.Array  # [B, N + P], -1 where it is not read
    parents: jax.Array | None
    state: Any  # the model's, behind which it reads them


def round_(models: Models, p: Progress, parts: Parts, live: jax.Array) -> Progress:
    """One pass of the model: each live row gets one token or more; a row that is not live stays as it is.

    Args:
      models: inside a trace.
      p: rows; live ones have read all but their last token.
      parts: the sockets' entries.
      live: `[B]` bool.
    """
    asked = _asked(models, p, parts, live)
    made = pass_(models, p, parts, asked.tokens, asked.position, state=asked.state, parents=asked.parents)
    return _judged(models, p, parts, live, asked, made)


def _asked(models: Models, p: Progress, parts: Parts, live: jax.Array) -> _Asked:
    """Last tokens and drafts."""
    drafter = parts.drafter[1]
    tree, side = drafter.propose(models, p, parts)
    state, side = drafter.left(p.state, side)
    tokens, parents, valid = tree.token, tree.parent, tree.valid
    if p.feed is not None:
        tokens = fed(models["model"], p.feed, tokens)
    if tree.probes is not None:
        tokens, parents, valid = with_probes(models["model"], tree, tokens)
    depth = depths(parents) if drafter.branches else jnp.arange(drafter.nodes)[None]
    valid = valid & (depth <= (p.limit - p.length - 1)[:, None]) | (depth == 0)
    tree = tree._replace(valid=valid[:, : tree.token.shape[1]])
    position = jnp.where(valid & live[:, None], (p.length - 1)[:, None] + depth, -1)
    return _Asked(tree, side, tokens, position, parents if drafter.branches else None, state)


def _judged(models: Models, p: Progress, parts: Parts, live: jax.Array, asked: _Asked, made: Pass) -> Progress:
    """`p` when the model has read what a round asked it to."""
    name, drafter = parts.drafter
    tree, side, tokens, every, *_ = asked
    N = tree.token.shape[1]
    position, nodes = every[:, :N], made._replace(features=made.features[:, :N])
    logits, processed = _controlled(models, p, parts, nodes, tree, position)
    row_keys = jax.random.wrap_key_data(p.key)
    path, count, following = parts.verifier(row_keys, logits, tree, p.length - 1, drafter.depth)
    # What was drawn from numbers that are not finite is no token: the row ends before it.
    failed = live & ~jnp.all(jnp.isfinite(jnp.max(logits, axis=-1)) | (position < 0), axis=1)
    token = following_tokens(tree.token, path, count, following)
    count, ended = cut_at(token, jnp.where(live & ~failed, count, 0), parts.eos)
    if drafter.nodes == 1:
        state, more = made.state, 0
    else:
        accepted = path if drafter.branches else None
        kept = {"tokens": tokens, "position": every, "path": accepted, "count": count}
        state, more = commit(functools.partial(pass_, models, p, parts), p.state, made.state, **kept)
    seen = Seen(tree, position, logits, path, count, token, p, made)
    sides = p.side | {name: drafter.observe(models, side, seen)}
    sides |= {key: part.commit(models, p.side[key], processed[key], seen) for key, part in parts.control}
    length = p.length + count
    return dataclasses.replace(
        p,
        text=put(p.text, token, p.length),
        length=length,
        done=p.done | failed | (live & (ended | (length >= p.limit))),
        failed=p.failed | failed,
        calls=p.calls + jnp.where(live, 1 + more, 0),
        wrote=p.wrote + (jnp.arange(1, drafter.depth + 1) == count[:, None]),
        state=state,
        feed=p.feed if p.feed is None else _soft(models, p.feed, parts, sides, seen),
        side=sides,
    )


def _soft(models: Models, old: Feed, parts: Parts, sides: dict, seen: Seen) -> Feed:
    """What the next round reads; rows that were not live keep what they had."""
    vector, on = old.vector, jnp.zeros_like(old.on)
    for name, part in parts.control:
        if part.feeds:
            new = part.soft(models, sides[name], seen)
            vector = jnp.where(new.on[:, None], new.vector.astype(vector.dtype), vector)
            on = on | new.on
    live = seen.count > 0
    return Feed(jnp.where(live[:, None], vector, old.vector), jnp.where(live, on, old.on))


def _controlled(models: Models, p: Progress, parts: Parts, made: Pass, tree: Tree, position) -> tuple[jax.Array, dict]:
    """Logits after all controls, and what each of them made."""
    by_name, logits = {}, models["model"].logits(made.features)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    for name, part in parts.control:
        side = part.shown(models, p.side[name], made)
        logits, by_name[name] = part.process(models, side, logits, p, tree, position)
    return logits, by_name


def extend(
    models: Models,
    p: Progress,
    parts: Parts,
    rounds: jax.Array | int,
    ends: jax.Array | int = 2**31 - 1,
    among: jax.Array | None = None,
) -> Progress:
    """Rounds of all live rows until no row is live: one `while_loop`.

    Args:
      models: inside a trace.
      p: rows under way.
      parts: the sockets' entries.
      rounds: at most so many.
      ends: stops where so many rows have ended in it, so that others may take their places.
      among: `[B]` the rows that may be extended; None: all.
    """
    live = lambda p: p.live if among is None else p.live & among  # noqa: E731
    step = functools.reduce(lambda inner, part: part[1].step(inner), reversed(parts.control), round_)
    before = jnp.sum(p.done)

    carried, rows = single(p)

    def goes_on(carry: tuple) -> jax.Array:
        turn, p = carry[0], rows(carry[1])
        return (turn < rounds) & jnp.any(live(p)) & (jnp.sum(p.done) - before < ends)

    def turned(carry: tuple) -> tuple:
        turn, p = carry[0], rows(carry[1])
        return turn + 1, single(step(models, p, parts, live(p)))[0]

    return rows(jax.lax.while_loop(goes_on, turned, (jnp.int32(0), carried))[1])


def following_tokens(token: jax.Array, path: jax.Array, count: jax.Array, following: jax.Array) -> jax.Array:
    """What the text gets: the accepted drafts, then the token behind them, `[B, D]`; beyond `count` anything.

    Args:
      token: `[B, N]` of the nodes; path: `[B, D]` accepted ones, node 0 first; count: `[B]`; following: `[B]`.
    """
    own = jnp.take_along_axis(token, jnp.concatenate([path[:, 1:], path[:, :1]], axis=1), axis=1)
    last = jnp.arange(path.shape[1]) == count[:, None] - 1
    return jnp.where(last, following[:, None], own).astype(jnp.int32)


def cut_at(token: jax.Array, count: jax.Array, eos: int) -> tuple[jax.Array, jax.Array]:
    """`count [B]` of tokens `[B, D]` up to the first `eos`, that one included, and whether there is one, `[B]`."""
    ends = (token == eos) & (jnp.arange(token.shape[1]) < count[:, None])
    ended = jnp.any(ends, axis=1)
    return jnp.where(ended, jnp.argmax(ends, axis=1).astype(count.dtype) + 1, count), ended


def with_probes(model: Any, tree: Tree, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(vectors `[B, N + P, D]`, parents `[B, N + P]`, valid `[B, N + P]`) of the nodes and the probes behind them.

    Args:
      model: an `LM`; tree: with `probes`.
      tokens: of the nodes, ids `[B, N]` or vectors `[B, N, D]`.
    """
    vectors, probes = model.embed(tokens) if tokens.ndim == 2 else tokens, tree.probes
    parent = jnp.broadcast_to(tree.parent, tree.token.shape)
    pairs = (vectors, probes.vector.astype(vectors.dtype)), (parent, probes.parent), (tree.valid, probes.valid)
    return tuple(jnp.concatenate(pair, axis=1) for pair in pairs)


def fed(model: Any, feed: Feed, token: jax.Array) -> jax.Array:
    """Embedded tokens `[B, N]` as `[B, N, D]`, with the vectors of `feed` in place of the first where it is on."""
    vectors = model.embed(token)
    first = jnp.where(feed.on[:, None], feed.vector.astype(vectors.dtype), vectors[:, 0])
    return vectors.at[:, 0].set(first)


__all__ = ["Models", "Parts", "Progress", "begin", "beside", "extend", "keys", "plain", "read", "round_", "with_piece"]
