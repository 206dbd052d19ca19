"""What a chip at hand decides: tiles by tables, and transfers between neighbours of a torus."""

from tests.planted import Bug

CHOSEN = ("tests/kernels/choices_test.py",)
TRANSFERS, MOVED = "models/transfers.py", ("tests/models/transfers_test.py",)
TORUS = ("tests/experiments/program/torus_test.py",)
WAITING = ("tests/experiments/planning/waiting_test.py",)

BUGS = (
    Bug(
        "choices: a table of any chip answers on any platform",
        "kernels/choices.py",
        "    if device.platform != platform:\n        return default\n",
        "",
        CHOSEN,
    ),
    Bug(
        "choices: one row is written over all others",
        "kernels/choices.py",
        "made = {name: dict(rows) for name, rows in table(op).items()}",
        "made = {}",
        CHOSEN,
    ),
    Bug(
        "choices: what is given does not reach what was traced before",
        "kernels/choices.py",
        "    jax.clear_caches()\n    try:\n        yield\n",
        "    try:\n        yield\n",
        CHOSEN,
    ),
    Bug(
        "choices: lengths of one class are rounded down",
        "kernels/choices.py",
        "1 << max(0, tokens - 1).bit_length()",
        "1 << tokens.bit_length() - 1",
        CHOSEN,
    ),
    Bug(
        "tune: what is wrong may win",
        "experiments/bench/tune.py",
        "        if right:\n",
        "        if True:\n",
        CHOSEN,
    ),
    Bug(
        "tune: the slowest is kept",
        "experiments/bench/tune.py",
        "best = max(faster, key=faster.get)",
        "best = min(faster, key=faster.get)",
        CHOSEN,
    ),
    Bug(
        "tune: kept however little it gains",
        "experiments/bench/tune.py",
        "written if low >= LEAST else {}",
        "written",
        CHOSEN,
    ),
    Bug(
        "grouped matmul: the tile may be longer than all rows",
        "kernels/grouped_matmul/tiled.py",
        "return min(M, *choices.chosen",
        "return min(2 * M, *choices.chosen",
        CHOSEN,
    ),
    Bug(
        "transfers: what a higher rank held is put in front",
        TRANSFERS,
        "jnp.concatenate([other, held]), jnp.concatenate([held, other])",
        "jnp.concatenate([held, other]), jnp.concatenate([other, held])",
        MOVED,
    ),
    Bug(
        "transfers: pieces stay in the order in which they came",
        TRANSFERS,
        "parts.append(_in_order(held, _axes(bits)))",
        "parts.append(held)",
        MOVED,
    ),
    Bug(
        "transfers: pieces go in the order of the ranks, not of the exchanges",
        TRANSFERS,
        "np.argsort(_axes(bits)).tolist()",
        "_axes(bits)",
        MOVED,
    ),
    Bug(
        "transfers: a device keeps what the other adds up",
        TRANSFERS,
        "jnp.where(mine & bit, high, low).astype(wide)",
        "jnp.where(mine & bit, low, high).astype(wide)",
        MOVED,
    ),
    Bug(
        "transfers: sums in the type of the gradient",
        TRANSFERS,
        "jnp.promote_types(gradient.dtype, jnp.float32), []",
        "gradient.dtype, []",
        MOVED,
    ),
    Bug(
        "transfers: near places first",
        TRANSFERS,
        "(-moves[bit][0], ",
        "(moves[bit][0], ",
        TORUS,
    ),
    Bug(
        "transfers: all parts begin along the same side",
        TRANSFERS,
        "(sides.index(moves[bit][1]) - first)",
        "sides.index(moves[bit][1])",
        TORUS,
    ),
    Bug(
        "transfers: an exchange may go along two sides",
        TRANSFERS,
        "apart[0].sum() != far or ",
        "",
        TORUS,
    ),
    Bug(
        "transfers: an exchange may go any way",
        TRANSFERS,
        "or far & (far - 1)",
        "",
        TORUS,
    ),
    Bug(
        "transfers: a TPU gathers in front of its kernels",
        "models/partition.py",
        "        return orders if all(orders.values()) else {}\n",
        "        return {}\n",
        ("tests/experiments/planning/planning_test.py::test_the_step_compiles_for_a_tpu_that_is_not_here",),
    ),
    Bug(
        "torus: a box begins at the first place whatever the corner",
        "experiments/program/torus.py",
        "zip(corner, place, strict=True)",
        "zip(low, place, strict=True)",
        TORUS,
    ),
    Bug(
        "torus: the longest box",
        "experiments/program/torus.py",
        "box = min(found",
        "box = max(found",
        TORUS,
    ),
    Bug(
        "waiting: a link carries any number of messages at once",
        "experiments/planning/waiting.py",
        "max(count.values(), default=1)",
        "1",
        WAITING,
    ),
    Bug(
        "waiting: transfers along one direction run at once",
        "experiments/planning/waiting.py",
        "            free.update(dict.fromkeys(ways, ends[i.name]))\n",
        "",
        WAITING,
    ),
    Bug(
        "waiting: nobody waits for a permute",
        "experiments/planning/waiting.py",
        "now = max(now, ends[i.operands[0]])",
        "pass",
        WAITING,
    ),
    Bug(
        "waiting: a kernel takes its bytes alone",
        "experiments/planning/waiting.py",
        "lasts = max(lasts, int(flops[1]) / chip.flops)",
        "pass",
        WAITING,
    ),
)
