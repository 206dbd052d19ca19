"""The kernels on the GPU of this machine against float64, within their roundings. Not part of `make test`.

    python -m tests.on_gpu                       # every check
    python -m tests.on_gpu attention/hopper ...  # those whose name contains one of the words
    python -m tests.on_gpu --part=0/8 &          # an eighth of them: most of the time goes into compiling

The cases and bounds are those that the interpreter and the simulator are held to. Each check is one line; the exit
status is the number of checks that failed.
"""

import argparse
import functools
import itertools
import traceback
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention import gpu, gpu_hopper
from kernels.masks import BlockDiffusion, Causal, Segments, Window
from kernels.newton_schulz import newton_schulz, unsupported
from kernels.newton_schulz.shapes import SMALL
from kernels.pattention import pattention, pattention_reference
from kernels.pattention.rules import GELUS, NORMALIZATIONS
from kernels.pattention.shapes import ODD, TILED
from tests.kernels import attention_cases as cases
from tests.kernels import linear_attention_kernels_test as linear
from tests.kernels import pattention_test as patt

# Long enough that every ring wraps many times: what a race would need. The first has more programs than a GPU holds.
LONG = [
    cases.Case("long causal", Causal(), 2048, 2048, N=16, K=8, H=128, B=2),
    cases.Case("long narrow", Causal(), 1999, 1999, N=4, K=1, H=64, sinks=True),
    cases.Case("long window", Causal() & Window(300), 2048, 2048, N=4, K=4, H=128, softcap=30.0),
    cases.Case("long diffusion", BlockDiffusion(1000, 32), 2000, 2000, N=2, K=2, H=128),
    cases.Case("long packed", Causal() & Segments(cases.segment_ids(2, 1500)), 1500, 1500, N=2, K=2, H=128, B=2),
]
UNITS = {jnp.bfloat16: 2.0**-8, jnp.float16: 2.0**-11}


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, check) of everything; a check raises where something is wrong."""
    every = list(zip(cases.cases(), itertools.cycle((64, 128))))
    for case in LONG:  # the slowest first
        yield f"attention/hopper/bfloat16/{case.name}", functools.partial(_attention, gpu_hopper, case, jnp.bfloat16)
        yield f"attention/triton/bfloat16/{case.name}", functools.partial(_attention, gpu, case, jnp.bfloat16)
    for case, H in every:
        given = gpu_hopper, case._replace(H=H), jnp.float16 if case.softcap else jnp.bfloat16
        yield f"attention/hopper/{jnp.dtype(given[2]).name}/{case.name}/{H}", functools.partial(_attention, *given)
    for case, _ in every:
        yield f"attention/triton/float32/{case.name}", functools.partial(_attention_float32, case)
    for normalization in NORMALIZATIONS:
        for gelu, masked in zip(GELUS, (False, True), strict=True):
            options = {"normalization": normalization, "gelu": gelu}
            name = f"pattention/float32/{normalization}/{gelu}{'/masked' * masked}"
            yield name, functools.partial(_pattention_float32, masked, options)
        yield f"pattention/bfloat16/{normalization}", functools.partial(_pattention_bfloat16, normalization)
    for kind in ("decay", "delta"):
        for T, chunk in ((2048, 64), (100, 16)):
            name = f"linear_attention/bfloat16/{kind}/{T}/{chunk}"
            yield name, functools.partial(_linear_attention, kind, T, chunk)
    for name, shape in SMALL.items():
        for dtype in (jnp.float32, jnp.bfloat16):
            if unsupported(jax.ShapeDtypeStruct(shape, dtype), "pallas_gpu"):
                continue
            yield f"newton_schulz/{jnp.dtype(dtype).name}/{name}", functools.partial(_newton_schulz, shape, dtype)


def _attention(module, case, dtype) -> None:
    given, interpret = cases.inputs(case, dtype), None if module is gpu_hopper else False
    actual = cases.kernel_results(module, case, given, interpret)
    cases.assert_within_roundings(actual, cases.reference_results(case, given), case, given, UNITS[dtype])
    again = cases.kernel_results(module, case, given, interpret)
    for name, x in actual.items():
        np.testing.assert_array_equal(again[name], x, err_msg=f"{name} differs between two runs: a race")


def _attention_float32(case) -> None:
    given = cases.inputs(case)
    actual = cases.kernel_results(gpu, case, given, False)
    cases.assert_close(actual, cases.reference_results(case, given), relative=2e-6)


def _pattention_float32(masked, options) -> None:
    for shape in (ODD, TILED):
        arrays, mask = patt.inputs(shape, jnp.float32), patt.kept(shape) if masked else None
        got = patt.run(pattention, *arrays, jnp.float32(5.0), implementation="gpu", mask=mask, **options)
        with jax.enable_x64(True):
            exact = [a.astype(jnp.float64) for a in arrays]
            want = patt.run(pattention_reference, *exact, jnp.float64(5.0), mask=mask, **options)
            scale = patt.tau_terms(exact, jnp.float64(5.0), mask=mask, **options)
            patt.assert_close(got, want, shape, 2.0**-23, scale)


def _pattention_bfloat16(normalization) -> None:
    arrays, tau = patt.inputs(ODD, jnp.bfloat16), jnp.float32(ODD.P**0.5)
    got = patt.run(pattention, *arrays, tau, normalization=normalization, implementation="gpu")
    with jax.enable_x64(True):
        exact = [a.astype(jnp.float64) for a in arrays]
        patt.assert_within_roundings(got, exact, tau, normalization)


def _linear_attention(kind, T, chunk) -> None:
    given = linear.rounded(2, T, 2, 128, 128)
    got = linear.probed(kind, *given, chunk_size=chunk, implementation="pallas_gpu")
    with jax.enable_x64(True):
        linear.assert_within_roundings(kind, *given, got, linear.roundings("pallas_gpu", -(-T // chunk)))


def _newton_schulz(shape, dtype) -> None:
    g = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    got = np.asarray(newton_schulz(g, implementation="pallas_gpu").astype(jnp.float32))
    with jax.enable_x64(True):
        want = np.asarray(newton_schulz(g.astype(jnp.float64), implementation="reference"))
    # Rounding of every product's operands, multiplied by at most about 4 per step of five.
    np.testing.assert_allclose(got, want, rtol=0, atol=float(jnp.finfo(dtype).eps) * 4**5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", default=[""], help="run the checks whose name contains one of them")
    parser.add_argument("--part", default="0/1", help="I/N: every Nth check, from the Ith on")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    device = jax.devices()[0]
    if device.platform != "gpu":
        print(f"error: this machine's device is {device.platform}, not a GPU; `make test` holds for it.")
        return 2
    print(f"{device.device_kind}, jax {jax.__version__}", flush=True)
    done, failed = 0, 0
    chosen = [(name, check) for name, check in checks() if any(word in name for word in args.words)]
    for name, check in chosen[part::parts]:
        done += 1
        try:
            check()
            print(f"ok     {name}", flush=True)
        except Exception as error:  # one failure must not hide the others
            failed += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split())[:300]
            print(f"WRONG  {name}: {type(error).__name__} at {last.name}:{last.lineno}: {said}", flush=True)
    print(f"{done} checks, {failed} failed")
    return min(failed, 125)


if __name__ == "__main__":
    raise SystemExit(main())
