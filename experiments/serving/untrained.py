"""Models of the bench's shapes, to be served without a run."""

import types
from typing import Any

from data.tokenizer import SymbolTokenizer
from experiments.bench.training import SHAPES, program_of


def model(shape: str) -> Any:
    """An untrained model of a bench shape, as `experiments.workdir.trained.load` returns trained ones."""
    program = program_of(shape)
    tokenizer = SymbolTokenizer(SHAPES[shape][4] - 3)
    params = program.init()["params"]
    return types.SimpleNamespace(
        config=program.config, program=program, params=params, tokenizer=tokenizer, about={}, workdir=None
    )
