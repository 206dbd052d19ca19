"""Cross-entropy of a linear head on a TPU: tiles of logits, `[vocabulary, tokens]` as they lie here, stay in VMEM.

statistics   grid (parts, vocabulary tiles, token tiles): a tile of logits is one product; the largest logit of each
             token, the sum of exponentials below it and the target's logit run along in VMEM.
gradients    the same grid: a tile of logits is computed again and becomes its gradient; the head's gradient adds up in
             VMEM over the token tiles, the features' in device memory, copied in beside the product that the tile
             begins with and out beside the next tile. Four products for loss and gradients, where three are the least.

A tile of the head is read and rounded once for all its tokens. The parts are halves of the vocabulary, for the two
cores that a v4 or v5p has. Not measured.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import choices
from kernels.cross_entropy.reference import Options, Rows, shape_logits
from kernels.tiles import product

VMEM_LIMIT = 56 * 2**20  # bytes; v5p and tpu7x have 64 MiB, v5e and v6e 128 MiB
TOKENS = 256  # of a tile
MOST_TOKENS = 1 << 18  # whose statistics lie in VMEM
CLASSES = (1024, 512, 256, 128)  # of a tile; the largest that fits
NOTHING = -1e30  # the logit of a class that does not exist: exponentials of its differences stay finite


class Cut(NamedTuple):
    """How `[M, D]` features and a `[V, D]` head are cut: tiles of `tokens` and `classes`, halves of the vocabulary."""

    tokens: int
    classes: int
    token_tiles: int
    class_tiles: int
    parts: int

    def at(self, part: Any, tile: Any) -> Any:
        """The number of a part's tile of the vocabulary."""
        return part * jnp.int32(self.class_tiles // self.parts) + tile


def _bytes(classes: int, width: int, low: int, head: int, tokens: int) -> int:
    """VMEM of the gradients' kernel: the head's tile, its gradient and sum, tokens, their sums, tiles of logits."""
    lanes = -(-width // 128) * 128
    of_head = classes * lanes * (2 * head + low + 2 * head + 4)
    return of_head + tokens * lanes * (2 * low + 4 * 4) + classes * tokens * 4 * 5


def _classes(width: int, low: int, head: int) -> int | None:
    return next((n for n in CLASSES if _bytes(n, width, low, head, TOKENS) <= VMEM_LIMIT * 7 // 8), None)


def too_large(features: Any, head: Any) -> str | None:
    """Why features `[M, D]` and a head `[V, D]` are not taken, or None."""
    (length, width), low = features.shape, jnp.dtype(features.dtype).itemsize
    if _classes(width, low, jnp.dtype(head.dtype).itemsize) is None:
        return f"tiles of a head {width} wide do not fit VMEM"
    if length > MOST_TOKENS:
        return f"{length} tokens are more than the {MOST_TOKENS} whose statistics fit VMEM"
    return None


def _cut(features: jax.Array, head: jax.Array, spare: bool) -> Cut:
    """spare: two parts only where a second sum of the features' gradient is little beside the head."""
    (length, width), count = features.shape, head.shape[0]
    sizes = width, features.dtype.itemsize, head.dtype.itemsize
    tried = tuple((t, c) for t in (128, 256, 512) for c in CLASSES if _bytes(c, *sizes, t) <= VMEM_LIMIT * 7 // 8)
    of = f"pallas_tpu, D {choices.length(width)}, {sizes[1]} and {sizes[2]} bytes, M {choices.length(length)}"
    most = choices.chosen("cross_entropy", of, "tpu", (TOKENS, _classes(*sizes) or CLASSES[-1]), tried)
    tokens, classes = (min(n, -(-size // 128) * 128) for n, size in zip(most, (length, count), strict=True))
    tiles = -(-count // classes)
    parts = 2 if tiles % 2 == 0 and (not spare or count >= 6 * length) else 1
    return Cut(tokens, classes, -(-length // tokens), tiles, parts)


def _rows(x: jax.Array, cut: Cut, fill: Any = 0) -> jax.Array:
    """`[M]` -> `[token tiles, 1, tokens]`."""
    return jnp.pad(x, (0, cut.token_tiles * cut.tokens - len(x)), constant_values=fill).reshape(-1, 1, cut.tokens)


class _Tile(NamedTuple):
    """A tile of logits `[classes, tokens]` in float32 or wider.

    exist: `[classes, 1]`, which classes are not behind the last one.
    hit: `[classes, tokens]`, where a class is the token's target.
    """

    logits: jax.Array
    exist: jax.Array
    hit: jax.Array


def _tile(x: jax.Array, head: Any, targets: Any, cut: Cut, count: int, options: Options) -> _Tile:
    start = cut.at(pl.program_id(0), pl.program_id(1)) * jnp.int32(cut.classes)
    ids = start + jax.lax.broadcasted_iota(jnp.int32, (cut.classes, 1), 0)
    logits = shape_logits(product(head[...], x, "nt", x.dtype), options.scale, options.softcap)
    return _Tile(logits, ids < count, ids == targets[...])


def _hold(head: Any, low: Any, cut: Cut, count: int) -> None:
    """The head's tile in the features' type, zero behind the last class, once for all tokens."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        start = cut.at(pl.program_id(0), pl.program_id(1)) * jnp.int32(cut.classes)
        ids = start + jax.lax.broadcasted_iota(jnp.int32, (cut.classes, 1), 0)
        values = head[...] if count % cut.classes == 0 else jnp.where(ids < count, head[...], 0)
        low[...] = values.astype(low.dtype)


def _statistics_body(*refs: Any, cut: Cut, count: int, options: Options) -> None:
    x, head, targets, peak, total, label, low = refs
    i = pl.ds(pl.program_id(2), 1)
    _hold(head, low, cut, count)
    tile = _tile(x[...], low, targets, cut, count, options)

    @pl.when(pl.program_id(1) == 0)
    def _():
        row = (1, cut.tokens)
        peak[i, :] = jnp.full(row, NOTHING, peak.dtype)
        total[i, :], label[i, :] = jnp.zeros(row, total.dtype), jnp.zeros(row, label.dtype)

    logits = jnp.where(tile.exist, tile.logits, NOTHING)
    before = peak[i, :]
    after = jnp.maximum(before, jnp.max(logits, axis=0, keepdims=True))
    added = jnp.sum(jnp.exp(logits - after), axis=0, keepdims=True)
    total[i, :] = total[i, :] * jnp.exp(before - after) + added
    label[i, :] += jnp.sum(jnp.where(tile.hit, logits, 0), axis=0, keepdims=True)
    peak[i, :] = after


def _logits_gradient(tile: _Tile, rows: Rows, options: Options) -> jax.Array:
    """The gradient of the raw products `[classes, tokens]`."""
    d = rows.mass * jnp.exp(tile.logits - rows.log_z) - jnp.where(tile.hit, rows.weight, 0)
    d = jnp.where(tile.exist, d, 0)
    if options.softcap:
        d = d * (1 - (tile.logits / options.softcap) ** 2)
    return d * options.scale if options.scale != 1.0 else d


def _gradients_body(*refs: Any, cut: Cut, size: tuple[int, int], options: Options) -> None:
    x, head, targets, *rows, d_x, d_head, low, summed, buffers, came, went = refs
    (length, count), tile_at, v, i = size, pl.program_id(0), pl.program_id(1), pl.program_id(2)
    step, slots = v * cut.token_tiles + i, buffers.shape[0]
    slot = jax.lax.rem(step, jnp.int32(slots))
    place = d_x.at[tile_at, pl.ds(i * cut.tokens, cut.tokens)]
    copy_in = pltpu.make_async_copy(place, buffers.at[slot], came.at[slot])
    copy_out = pltpu.make_async_copy(buffers.at[slot], place, went.at[slot])

    @pl.when(step >= slots)  # What this buffer held is written; so is what this tile's sum was, a sweep ago.
    def _():
        copy_out.wait()

    @pl.when(v > 0)
    def _():
        copy_in.start()

    _hold(head, low, cut, count)
    tokens = x[...]
    if length % cut.tokens:
        ids = i * cut.tokens + jax.lax.broadcasted_iota(jnp.int32, (cut.tokens, 1), 0)
        tokens = jnp.where(ids < length, tokens, jnp.zeros_like(tokens))
    given = Rows(*(ref[...] for ref in rows))
    d = _logits_gradient(_tile(tokens, low, targets, cut, count, options), given, options)

    @pl.when(i == 0)
    def _():
        summed[...] = jnp.zeros_like(summed)

    summed[...] += product(d, tokens, "nn", tokens.dtype)
    added = product(d, low[...], "tn", tokens.dtype)

    @pl.when(v == 0)
    def _():
        buffers[slot] = added

    @pl.when(v > 0)
    def _():
        copy_in.wait()
        buffers[slot] += added

    copy_out.start()

    @pl.when(i == cut.token_tiles - 1)
    def _():
        d_head[...] = summed[...].astype(d_head.dtype)

    @pl.when((i == cut.token_tiles - 1) & (v == pl.num_programs(1) - 1))
    def _():
        for other in range(slots):
            pltpu.make_async_copy(buffers.at[other], place, went.at[other]).wait()


def _call(body: Any, cut: Cut, inputs: list, outputs: tuple, scratch: list, interpret: Any, name: str, **cost: int):
    """`pallas_call` over `cut`; inputs: features, head and rows."""
    grid = (cut.parts, cut.class_tiles // cut.parts, cut.token_tiles)
    width, specs, shapes = inputs[0].shape[1], *outputs
    row = pl.BlockSpec((None, 1, cut.tokens), lambda part, v, i: (i, 0, 0))
    return pl.pallas_call(
        body,
        grid=grid,
        in_specs=[
            pl.BlockSpec((cut.tokens, width), lambda part, v, i: (i, 0)),
            pl.BlockSpec((cut.classes, width), lambda part, v, i: (cut.at(part, v), 0)),
            *[row] * (len(inputs) - 2),
        ],
        out_specs=specs,
        out_shape=shapes,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=pl.CostEstimate(**cost),
        interpret=pltpu.InterpretParams() if interpret is True else interpret,
        name=f"cross_entropy_{name}",
    )(*inputs)


def _cost(features: jax.Array, head: jax.Array, cut: Cut, products: int, moved: int) -> dict[str, int]:
    """moved: bytes of a number of the features' sums that a sweep over the tokens reads and writes."""
    scores, sweeps = features.shape[0] * head.shape[0], cut.class_tiles
    read = sweeps * features.size * (features.dtype.itemsize + moved) + head.size * head.dtype.itemsize
    written = head.size * head.dtype.itemsize if moved else 0
    return {"flops": 2 * products * scores * features.shape[1], "transcendentals": scores,
            "bytes_accessed": read + written}  # fmt: skip


def statistics(
    features: jax.Array, head: jax.Array, targets: jax.Array, *, options: Options, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """(nll `[M]`, log_z `[M]`) of features `[M, D]`, head `[V, D]` and targets `[M]`."""
    cut, wide = _cut(features, head, spare=False), jnp.promote_types(features.dtype, jnp.float32)
    shape = (cut.token_tiles, cut.tokens)
    whole = pl.BlockSpec((None, *shape), lambda part, v, i: (part, 0, 0))
    peak, total, label = _call(
        functools.partial(_statistics_body, cut=cut, count=head.shape[0], options=options),
        cut,
        [features, head, _rows(targets.astype(jnp.int32), cut, -1)],
        ([whole] * 3, [jax.ShapeDtypeStruct((cut.parts, *shape), wide)] * 3),
        [pltpu.VMEM((cut.classes, head.shape[1]), features.dtype)],
        interpret,
        "statistics",
        **_cost(features, head, cut, 1, 0),
    )
    log_z = jax.nn.logsumexp(peak, axis=0, b=total).reshape(-1)[: len(targets)]
    return log_z - jnp.sum(label, axis=0).reshape(-1)[: len(targets)], log_z


def gradients(
    features: jax.Array, head: jax.Array, targets: jax.Array, rows: Rows, *, options: Options, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """The gradients of features and head, each in its own type."""
    cut, wide = _cut(features, head, spare=True), jnp.promote_types(features.dtype, jnp.float32)
    width, slots = features.shape[1], min(2, cut.token_tiles)
    of_head = pl.BlockSpec((cut.classes, width), lambda part, v, i: (cut.at(part, v), 0))
    sums = jax.ShapeDtypeStruct((cut.parts, cut.token_tiles * cut.tokens, width), wide)
    given = [_rows(x.astype(wide), cut) for x in rows]
    d_features, d_head = _call(
        functools.partial(_gradients_body, cut=cut, size=(features.shape[0], head.shape[0]), options=options),
        cut,
        [features, head, _rows(targets.astype(jnp.int32), cut, -1), *given],
        ([pl.BlockSpec(memory_space=pl.ANY), of_head], [sums, jax.ShapeDtypeStruct(head.shape, head.dtype)]),
        [
            pltpu.VMEM((cut.classes, width), features.dtype),
            pltpu.VMEM((cut.classes, width), wide),
            pltpu.VMEM((slots, cut.tokens, width), wide),
            pltpu.SemaphoreType.DMA((slots,)),
            pltpu.SemaphoreType.DMA((slots,)),
        ],
        interpret,
        "gradients",
        **_cost(features, head, cut, 3, 2 * wide.itemsize),
    )
    return jnp.sum(d_features, axis=0)[: features.shape[0]].astype(features.dtype), d_head
