"""The claim of LoCoCo: equal bytes, and each arm read by what it can be read by."""

import jax

from configs.claims import lococo
from experiments.generation import memories
from experiments.program import build, sharding
from models.mixers.memory import Policy


def test_lococo_takes_the_bytes_of_the_policies_that_it_is_compared_with():
    """States as the compiled step takes them, within a twentieth: each policy holds one place that is free."""
    claim, sizes = lococo.get_claim(), {}
    point = str(lococo.SLOTS + lococo.CHUNK)
    for arm, line in (("lococo", "full"), ("attention", "streaming"), ("attention", "h2o"), ("attention", "full")):
        config = claim["base"].copy_and_resolve_references().unlock()
        config.update_from_flattened_dict(claim["arms"][arm])
        changes = claim["lines"][line][point]
        config.generate.update(changes)
        made = build(config.lock(), vocab_size=256, mesh=sharding.make_mesh(config, jax.devices()[:1]))
        policy = Policy.of(config.generate.to_dict())
        sizes[line if arm == "attention" else arm] = memories.state_bytes(made, made.abstract["params"], policy, 4, 128)
    assert 0.95 < sizes["lococo"] / sizes["h2o"] < 1.05 and 0.95 < sizes["lococo"] / sizes["streaming"] < 1.05
    assert sizes["lococo"] < 0.6 * sizes["full"]


def test_a_claim_leaves_out_what_an_arm_cannot_be_read_by():
    claim = lococo.get_claim()
    assert {*claim["reads"]["lococo"]} < {*claim["lines"]}
    for contrast in claim["contrasts"]:
        for arm, line, point in (contrast["better"], contrast["worse"]):
            assert line in claim["reads"].get(arm, claim["lines"]) and point in claim["lines"][line]
