"""What the tests of context attention share: masks, heads, inputs, the one-device answer, and compiled text."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.planning import hlo
from kernels.attention import attention
from kernels.context_attention import context_attention
from kernels.masks import Causal, Full, Segments, Window
from tests.kernels.attention_cases import segment_ids

HEADS = {"mha": (8, 8), "gqa": (8, 2), "mqa": (8, 1)}
# Cut into 2P chunks of odd length for P = 2 and 4, and of 5 for P = 8.
LENGTH = {2: 52, 4: 56, 8: 80}


def mask_of(name: str, T: int):
    """A mask by its name in the tests: causal, full, window (both sides) or packed documents with padding behind."""
    return {
        "causal": lambda: Causal(),
        "full": lambda: Full(),
        "window": lambda: Window(T // 5, T // 9),
        "packed": lambda: Causal() & Segments(segment_ids(2, T)),
    }[name]()


def mesh_of(P: int) -> Mesh:
    """P simulated devices in a row."""
    return Mesh(np.array(jax.devices()[:P]), ("context",))


def inputs(T: int, N: int, K: int, dtype, B: int = 2, H: int = 16) -> list[np.ndarray]:
    """q, k, v and the weights of out [B, T, N, H] and of lse [B, N, T] in the loss."""
    rng = np.random.default_rng(T + N + K)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H), (B, N, T)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def results(attend, given) -> dict[str, np.ndarray]:
    """out, lse and the gradients of a loss on both, of attend(q, k, v) -> (out, lse)."""
    q, k, v, out_weight, lse_weight = given

    def loss(q, k, v):
        out, lse = attend(q, k, v)
        seen = lse > -jnp.inf
        return (out * out_weight).sum() + (jnp.where(seen, lse, 0) * lse_weight).sum(), (out, lse)

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, (out, lse)), grads = run(q, k, v)
    return {"out": out, "lse": lse} | dict(zip(("dq", "dk", "dv"), grads, strict=True))


@functools.cache
def wanted(mask: str, T: int, heads: str, dtype: str) -> dict[str, np.ndarray]:
    """The answer of one device."""
    return results(functools.partial(one_device, mask=mask_of(mask, T)), inputs(T, *HEADS[heads], dtype))


def one_device(q, k, v, mask, **kwargs):
    """The specification."""
    return attention(q, k, v, mask=mask, implementation="reference", return_lse=True, **kwargs)


def distributed(schedule: str, P: int, mask: str, heads: str, dtype: str) -> dict[str, np.ndarray]:
    """The answer of P devices."""
    T = LENGTH[P]
    attend = functools.partial(
        context_attention, mesh=mesh_of(P), schedule=schedule, mask=mask_of(mask, T), return_lse=True
    )
    return results(attend, inputs(T, *HEADS[heads], dtype))


def assert_close(actual: dict, expected: dict, relative: float) -> None:
    """Every array within `relative` of the largest entry of the expected one; rows that see nothing exactly so."""
    for name, value in expected.items():
        value, got = np.asarray(value), np.asarray(actual[name])
        assert got.dtype == value.dtype and got.shape == value.shape, name
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(value), name)
        got, value = got[np.isfinite(value)], value[np.isfinite(value)]
        if value.size and np.abs(value).max() == 0:
            np.testing.assert_array_equal(got, value, name)
        elif value.size:
            error = np.abs(got - value).max() / np.abs(value).max()
            assert error <= relative, (name, error)


def traffic(compiled: str, P: int) -> dict[str, np.ndarray]:
    """Bytes that each rank sends, [P], by the scope of the send, read from the text of a compiled program.

    Permutes are counted by their pairs under the name of their scope, gathers, scatters and exchanges as "across".
    A loop's body counts as often as the loop runs.
    """
    total: dict[str, np.ndarray] = {}
    times = _repetitions(compiled)
    for name, body in _computations(compiled).items():
        for line in body:
            for scope, sent in _sent_by(line, P):
                total[scope] = total.get(scope, np.zeros(P, np.int64)) + sent * times[name]
    return total


def _computations(text: str) -> dict[str, list[str]]:
    found, name = {}, None
    for line in text.splitlines():
        start = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if start:
            name = start[1]
            found[name] = []
        elif name and line.startswith(" "):
            found[name].append(line)
    return found


def _repetitions(text: str) -> dict[str, int]:
    """How often each computation runs."""
    times = dict.fromkeys(_computations(text), 1)
    loops = []
    for name, body in _computations(text).items():
        for line in body:
            if " while(" in line:
                inner = re.search(r"body=%?([\w.\-]+)", line)[1]
                count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                loops.append((name, inner, int(count[1]) if count else None))
    for outer, inner, count in loops:  # outer loops come after their bodies in the text; two levels are enough here
        if any("collective" in line for line in _computations(text)[inner]):
            assert count is not None and times[outer] == 1, inner
            times[inner] = count
    return times


def _sent_by(line: str, P: int):
    size = _bytes(line.split(" = ", 1)[-1].split("(", 1)[0] if " = (" not in line else line.split(" = ", 1)[1])
    if re.search(r" collective-permute(-start)?\(", line):
        pairs = re.findall(r"\{(\d+),(\d+)\}", re.search(r"source_target_pairs=\{\{.*?\}\}", line)[0])
        scope = re.search(r"/(forth|back|along)/", line)
        sent = np.zeros(P, np.int64)
        for source, to in pairs:
            sent[int(source)] += size * (source != to)
        yield scope[1] if scope else "unnamed", sent
    elif re.search(r" (all-gather|all-to-all|reduce-scatter)\(", line):
        group = len(hlo.groups(line, P)[0])
        # Results: all pieces (gather, exchange) of which one is its own, or one piece of as many (scatter).
        sent = size * (group - 1) if " reduce-scatter(" in line else size * (group - 1) // group
        yield "across", np.full(P, sent)
    assert " all-reduce(" not in line


def _bytes(result: str) -> int:
    """Bytes of the result of an instruction, a tuple's parts added up."""
    result = re.split(r"\) (?=[a-z])", result)[0]
    sizes = {"f64": 8, "f32": 4, "bf16": 2, "s32": 4, "u32": 4}
    parts = re.findall(r"\b(f64|f32|bf16|s32|u32)\[([\d,]*)\]", result)
    return sum(sizes[kind] * int(np.prod([int(n) for n in dims.split(",") if n])) for kind, dims in parts)
