"""A prompt that was edited (PIE): exact in one layer, an empty edit anywhere; what it saves, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import generation
from experiments.generation.edited import Edited
from experiments.generation.engine import Engine
from experiments.settings.errors import ConfigError
from experiments.training import train
from experiments.workdir import rewired, trained
from kernels import masks
from models.mixers.memory import edit
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("one_device")
OLD, NEW = "abc def gh abc d", "abc dxyzef abc de"
PLAIN = {"max_tokens": 5, "temperature": 0.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of trained Transformers of one layer and of two."""
    folder = tmp_path_factory.mktemp("edited")
    for layers in (1, 2):
        train(tiny.config(folder, model__num_layers=layers, train__steps=3), folder / str(layers), quiet=True)
    return folder


def options(model, **more):
    return model.config.generate.to_dict() | PLAIN | more


def logits(model, ids):
    def run(params):
        made = model.program.merge(params)
        return made.logits(made(jnp.asarray([ids]), mask=masks.Causal()).features)[0]

    return np.asarray(jax.jit(run)(model.params))


def written(model, old, new):
    generator = generation.make(model.program, model.tokenizer, edit_of=old)
    (text,) = generator(model.params, [new], options(model))
    return text, generator.said


def test_an_edit_is_exact_in_one_layer_and_near_in_two(runs):
    """Text and logits are those of the whole prompt read anew; in two layers kept tokens remember the old one."""
    apart = {}
    for layers in (1, 2):
        model = trained.load(runs / str(layers))
        made = Edited(model.program, model.tokenizer, OLD)
        weights = made.decoder.weights(model.params, made.decoder.parts([options(model)]))
        new = made.encode(NEW)
        script = edit.edited(made.old.tolist(), new.tolist())
        assert 3 <= (script.source < 0).sum() <= 6 and script.source[-1] == -1
        state = made.read(weights, new, script.source, 32)
        slots = state["slots"]
        held = np.asarray(slots.position[0])
        assert int(slots.length[0]) == len(new) - 1 and sorted(held[held >= 0]) == list(range(len(new) - 1))
        apart[layers] = made.drift(weights, new, state, 32)
        full = logits(model, new)
        scale = np.abs(full).max()
        if layers == 1:
            assert apart[1].apart < 64 * np.finfo(np.float32).eps * scale and apart[1].same
            plain = generation.make(model.program, model.tokenizer)
            assert written(model, OLD, NEW)[0] == plain(model.params, [NEW], options(model))[0]
    assert apart[2].apart > 1e-5 and apart[2].nats > 0


def test_a_prompt_may_become_much_shorter_or_another(runs):
    """What is behind a cut of many tokens, and a prompt that keeps its beginning alone: in one layer as read anew."""
    model = trained.load(runs / "1")
    plain = generation.make(model.program, model.tokenizer)
    for old, new in (("x" * 90 + OLD, OLD), ("zzz", NEW), (NEW, "def")):
        assert written(model, old, new)[0] == plain(model.params, [new], options(model))[0], (old, new)


def test_nothing_is_computed_of_what_did_not_change(runs):
    model = trained.load(runs / "2")
    text, said = written(model, NEW, NEW)
    plain = generation.make(model.program, model.tokenizer)
    assert text == plain(model.params, [NEW], options(model))[0]
    n = len(plain.encode(NEW))
    assert said.startswith(f"1 of {n} tokens of the prompt are computed anew: ")
    # 2 layers of width D: 12 D^2 kernel numbers each, two FLOPs a number; 4 D a key and layer.
    D = model.program.spec.D
    cost = [2 * (2 * 12 * D * D + 4 * D * (i + 1) / 1) for i in range(n)]
    assert f"{1 - cost[-1] / sum(cost):.1%} of the FLOPs" in said and "the likeliest token is the same" in said


def test_what_is_saved_by_hand():
    source = np.array([0, 1, -1, 2, -1])
    assert edit.saved(source, linear=10.0, pair=2.0) == pytest.approx(1 - (16 + 20) / (12 + 14 + 16 + 18 + 20))
    assert edit.saved(source, linear=1.0, pair=0.0) == pytest.approx(3 / 5)


def test_a_rewired_model_reads_edits_too(runs):
    model = rewired.rewire(runs / "2", layer=1)
    plain = generation.make(model.program, model.tokenizer)
    text, said = written(model, NEW, NEW)
    assert text == plain(model.params, [NEW], options(model))[0] and "the same" in said


def test_what_does_not_fit_is_a_sentence(runs):
    model = trained.load(runs / "1")
    generator = generation.make(model.program, model.tokenizer, edit_of=OLD)
    with pytest.raises(ConfigError, match="generate.edit_of is of one prompt and there are 2 rows"):
        generator(model.params, [NEW, OLD], options(model))
    with pytest.raises(ConfigError, match="generate.memory='streaming' drops some; use 'full'"):
        generator(model.params, [NEW], options(model, memory="streaming"))
    with pytest.raises(ConfigError, match="generate.edit_of is of one --prompt .* use generate.edit_of=''"):
        Engine(model, edit_of=OLD)
    for changes, words in (
        ({"model.positions": 64}, "model.positions=64 are learned"),
        ({"model.mixer": "lact"}, "model.mixer='lact' has others"),
        ({"model.attention.rope_scaling.kind": "yarn"}, "rope_scaling.kind='yarn' does not add up"),
    ):
        made = generation.make(model.program, model.tokenizer, edit_of=OLD)
        config = model.config.copy_and_resolve_references().unlock()
        config.update_from_flattened_dict(changes)
        made.program = type(model.program)(**(vars(model.program) | {"config": config}))
        parts = made.decoder.parts([options(model)])
        with pytest.raises(ConfigError, match=words):
            made._begun(None, (np.zeros((1, 4), np.int32), np.array([3])), {"parts": parts, "capacity": 8})
