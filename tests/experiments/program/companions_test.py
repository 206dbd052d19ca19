"""Companions of a program: an argument of the step, counted, and the same on every mesh; heads of an objective, too."""

import dataclasses
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import transformer
from experiments.program import build, companions, counting, global_batch
from experiments.program.sharding import make_mesh
from tests.experiments.program import program_test, sharded_test

TEACHER = {"num_layers": 2, "width": 32, "num_heads": 4, "vocab_multiple": 4}


def attached(mesh, devices, objective="distillation"):
    """A program on a mesh, a student with a teacher of another depth."""
    made = sharded_test.config({"objective": objective}, mesh)
    lies = make_mesh(made, jax.devices()[:devices])
    plain = made.copy_and_resolve_references().unlock()
    plain.objective = "next_token"
    plain.model.update(TEACHER)
    student, teacher = (build(each.lock(), vocab_size=256, mesh=lies) for each in (made, plain))
    return dataclasses.replace(student, companions={"teacher": teacher} if objective == "distillation" else {})


CASES = [
    ("distillation", {"fsdp": 2, "tensor": 2}),
    ("distillation", {"data": 2, "context": 2}),
    ("multi_token", {"fsdp": 2, "tensor": 2}),
]


@pytest.mark.parametrize(("objective", "mesh"), CASES, ids=str)
def test_on_every_mesh_it_is_the_same(objective, mesh):
    steps, sums, begun = [], [], None
    for lies, devices in (({"data": 1}, 1), (mesh, 4)):
        program = attached(lies, devices, objective)
        beside = {name: each.init()["params"] for name, each in program.companions.items()}
        begun = begun or jax.device_get((program.init(), beside))  # Where both steps begin.
        state, beside = jax.device_put(begun, (program.shardings, companions.shardings(program)))
        sums.append(companions.checksum((state["params"], beside)))
        batch = global_batch(sharded_test.batch(), program)
        steps.append(jax.device_get(program.train_step()(state, batch, *([beside] if beside else []))))
    program_test.assert_close(*steps, 1e-5)
    assert sums[0] == sums[1]
    assert objective == "multi_token" or float(steps[0][1]["train/kl"]) > 1e-4


def test_a_companion_is_an_argument_and_nothing_else_changes():
    """No number is closed over but rotary rates and identities; what has no companion reads its state and its batch."""

    def is_table(x):
        n = len(x) if x.ndim else 0
        known = {1: 10000.0 ** (-np.arange(n) / max(1, n)), 2: np.eye(n)}.get(x.ndim)
        return known is not None and x.shape == known.shape and np.allclose(x, known, atol=0, rtol=1e-6)

    beside = attached({"data": 1}, 1)
    alone = program_test.program()
    for program, more in ((alone, []), (beside, [companions.abstract(beside)])):
        batch = sharded_test.batch()
        traced = jax.make_jaxpr(program.step)(program.abstract, batch, *more)
        held = sum(np.size(x) for x in traced.consts if not is_table(x))
        assert len(traced.jaxpr.invars) == len(jax.tree.leaves((program.abstract, batch, more))) and held < 64
    # An empty dict of companions is no companion.
    texts = [str(jax.make_jaxpr(alone.step)(alone.abstract, batch, *more)) for more in ([], [{}])]
    assert texts[0] == texts[1]
    with pytest.raises(ValueError, match="reads companions.teacher, which is not attached"):
        jax.eval_shape(companions.itself(beside).step, beside.abstract, batch)


def test_a_companion_is_counted():
    """Memory by hand; FLOPs are the compiler's within 3 %, of several heads too: before XLA rewrites anything."""
    program = attached({"data": 1}, 1)
    leaves = jax.tree.leaves(program.companions["teacher"].abstract["params"])
    with_it, without = counting.memory(program), counting.memory(companions.itself(program))
    assert with_it["companions"] == 4 * sum(leaf.size for leaf in leaves) and without["companions"] == 0
    assert with_it["total"] == without["total"] + with_it["companions"]
    T = 96
    for name in ("distillation", "multi_token"):
        made = transformer.get_config("tiny")
        made.model.update({"width": 512, "num_heads": 8, "num_layers": 1})
        made.model.attention.implementation = "reference"
        made.data.length, made.objective = T, name
        student = build(made.lock(), vocab_size=256, mesh=make_mesh(made, jax.devices()[:1]))
        if name == "distillation":
            student = dataclasses.replace(student, companions={"teacher": companions.itself(student)})
        rows = {key: jnp.zeros((1, T), kind) for key, kind in (("tokens", int), ("targets", int), ("scored", bool))}

        def loss(params, taught, student=student, rows=rows):
            beside = {"companions": {"teacher": student.merge(taught)}} if student.companions else {}
            return student.objective.loss(student.merge(params), rows, None, **beside).total

        shapes = student.abstract["params"]
        counted = jax.jit(jax.grad(loss)).lower(shapes, shapes).cost_analysis()["flops"] / T
        # The reference attention computes the scores that a causal mask hides: T keys instead of (T + 1) / 2.
        passes = 4 if student.companions else 3
        hidden = passes * 4 * 512 * (T - (T + 1) / 2)
        assert 1.0 <= counted / (counting.flops_per_token(student)["total"] + hidden) < 1.03, name


def test_a_checksum_is_of_every_bit_and_its_place():
    """Against the same sums in Python's whole numbers; one bit, two numbers exchanged, another shape: another one."""
    rng = np.random.default_rng(0)
    for kind in (np.float32, jnp.bfloat16, np.int32):
        x = np.asarray(jnp.asarray(100 * rng.normal(size=(3, 5)), kind))
        total = 0
        for place, value in enumerate(x.ravel(), 1):
            raw = value.tobytes() + bytes(4 - x.dtype.itemsize)
            y = (struct.unpack("<I", raw)[0] + 2654435761 * place) % 2**32
            for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
                y = (y ^ (y >> shift)) * factor % 2**32
            total += y
        assert int(jax.jit(companions._sum)(x)) == total % 2**32
    x = np.arange(15, dtype=np.float32).reshape(3, 5)
    flipped, swapped = x.copy(), x.copy()
    flipped.view(np.uint32)[1, 2] ^= 1
    swapped[0, 0], swapped[2, 4] = x[2, 4], x[0, 0]
    found = {companions.checksum({"a": each}) for each in (x, flipped, swapped, x.reshape(5, 3), x.T.copy())}
    found |= {companions.checksum({"b": x}), companions.checksum({"a": x.view(np.int32)})}
    assert len(found) == 7 and companions.checksum({"a": x}) in found
