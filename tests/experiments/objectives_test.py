"""What every objective of the table says of itself is something that the rest of the house has."""

import pytest

from configs import base
from experiments.generation import GENERATORS
from kernels import masks
from models import objectives


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_it_names_a_generator_and_a_mask_that_goes_with_it(name):
    made = objectives.make(name, base.get_config().to_dict().get(name, {}), vocab_size=11)
    assert made.generator in GENERATORS
    assert made.causal == (made.mask == masks.Causal()), "a causal objective reads a row from left to right"
    assert made.bound in ("=", "<=", "~") and made.extra_tokens >= 0 and made.copies >= 1


def test_no_generator_is_named_by_nobody():
    assert {entry.generator for entry in objectives.OBJECTIVES.values()} == set(GENERATORS)
