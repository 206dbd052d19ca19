"""A finite number of passes: every row so often, in an order that is the seed's."""

import collections

import pytest

import data


def order(tokens, **options):
    loader = data.Loader(tokens, batch_size=3, length=4, pad=900, **options)
    rows = [row for step in range(loader.num_steps) for row in loader.batch(step)["tokens"].tolist()]
    return [tuple(row) for row in rows if row != [900] * 4]


@pytest.mark.parametrize("packing", ["stream", "first_fit"])
def test_every_row_once_a_pass_in_the_order_of_the_seed(numbered, packing):
    tokens = numbered([7, 12, 4, 30, 9, 5])
    found = {seed: order(tokens, seed=seed, epochs=2, packing=packing) for seed in (0, 1)}
    half = len(found[0]) // 2
    assert set(collections.Counter(found[0]).values()) == {2}
    assert collections.Counter(found[0][:half]) == collections.Counter(found[0][half:])
    assert found[0][:half] != found[0][half:]  # Each pass has an order of its own,
    assert found[0] != found[1] and sorted(found[0]) == sorted(found[1])  # and so has each seed.
    assert found[0] == order(tokens, seed=0, epochs=2, packing=packing)
    plain = order(tokens, epochs=1, shuffle=False, packing=packing)
    assert plain == order(tokens, epochs=1, shuffle=False, seed=5, packing=packing) and len(plain) == half
    if packing == "stream":
        assert plain == sorted(plain)
