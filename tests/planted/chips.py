"""What a chip at hand decides: tiles by tables, and transfers between neighbours of a torus."""

from tests.planted import Bug

CHOSEN = ("tests/kernels/choices_test.py",)
TRANSFERS, MOVED = "models/transfers.py", ("tests/models/transfers_test.py",)
TORUS = ("tests/experiments/program/torus_test.py",)

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
        "transfers: a piece is put where the one of the other side belongs",
        TRANSFERS,
        "whole, piece, (mine - step) % ways * width",
        "whole, piece, (mine + step) % ways * width",
        MOVED,
    ),
    Bug(
        "transfers: a device sends its own part in the place of the other's",
        TRANSFERS,
        "dynamic_slice_in_dim(gradient, (mine + step) % ways * width",
        "dynamic_slice_in_dim(gradient, mine % ways * width",
        MOVED,
    ),
    Bug(
        "transfers: sums in the type of what is sent",
        TRANSFERS,
        "total += piece.astype(jnp.promote_types(gradient.dtype, jnp.float32))",
        "total = (total + piece).astype(gradient.dtype)",
        MOVED,
    ),
    Bug(
        "transfers: a TPU gathers all at once, in front of its kernels",
        "models/partition.py",
        "            return transfers.all_gather\n",
        "            return None\n",
        ("tests/experiments/planning/planning_test.py::test_the_step_compiles_for_a_tpu_that_is_not_here",),
    ),
    Bug(
        "rings: on many chips pieces still leave all at once",
        "models/partition.py",
        "if self.mesh.size <= transfers.MOST:",
        "if self.mesh.size:",
        ("tests/experiments/planning/planning_test.py::test_on_many_chips_pieces_go_round_a_ring_beside_other_work",),
    ),
    Bug(
        "rings: what comes from behind is put in front",
        TRANSFERS,
        "whole = put(whole, ahead, mine - step)",
        "whole = put(whole, ahead, mine + step)",
        MOVED,
    ),
    Bug(
        "rings: the device on the other side of an even ring is met twice",
        TRANSFERS,
        "((1, ways // 2), (-1, (ways - 1) // 2))",
        "((1, ways // 2), (-1, ways // 2))",
        MOVED,
    ),
    Bug(
        "rings: a sum passes a device without its part",
        TRANSFERS,
        "moved += piece(mine + way * left) if left else 0",
        "moved += piece(mine + way * left) if left > 1 else 0",
        MOVED,
    ),
    Bug(
        "rings: sums go round in the type of the gradient",
        TRANSFERS,
        "width, dimension).astype(wide)",
        "width, dimension)",
        MOVED,
    ),
    Bug(
        "rings: any row of devices is one",
        TRANSFERS,
        "np.roll(places, 1, axis=1)",
        "np.roll(places, 0, axis=1)",
        TORUS,
    ),
    Bug(
        "torus: a cycle ends where it likes",
        "experiments/program/torus.py",
        "range(columns - 1, 0, -1) if i % 2 else range(1, columns)",
        "range(columns - 1, 0, -1)",
        TORUS,
    ),
    Bug(
        "torus: a box begins at the first place whatever the corner",
        "experiments/program/torus.py",
        "here = list(corner)",
        "here = list(low)",
        TORUS,
    ),
)
