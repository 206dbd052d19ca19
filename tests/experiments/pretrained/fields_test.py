"""Every field of config.json that transformers reads is varied in a case, or its other values are refused by name."""

import importlib.util
import json
import pathlib

import pytest

from configs import families
from configs.families import hugging_face
from tests.experiments.pretrained import cases

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
COMMON = (
    "hidden_size intermediate_size num_attention_heads num_hidden_layers rope_parameters tie_word_embeddings vocab_size"
)
GATED = f"{COMMON} hidden_act num_key_value_heads rms_norm_eps"
GEMMA = (
    f"{COMMON} attention_bias attn_logit_softcapping final_logit_softcapping head_dim hidden_activation layer_types "
    "num_key_value_heads query_pre_attn_scalar rms_norm_eps sliding_window use_bidirectional_attention"
)
QWEN = f"{GATED} layer_types max_window_layers sliding_window use_sliding_window"
# Class of transformers 5.24 -> fields of its own that are not among `hugging_face.IGNORED`.
FIELDS = {
    "Llama": f"{GATED} attention_bias head_dim mlp_bias",
    "Granite": f"{GATED} attention_bias attention_multiplier embedding_multiplier logits_scaling mlp_bias "
               "residual_multiplier",
    "Mistral": f"{GATED} head_dim sliding_window", "Qwen2": QWEN, "Qwen3": f"{QWEN} attention_bias head_dim",
    "Gemma2": GEMMA, "Gemma3Text": GEMMA,
    "SmolLM3": f"{GATED} attention_bias layer_types mlp_bias no_rope_layer_interval no_rope_layers sliding_window "
               "use_sliding_window",
    "Olmo2": f"{GATED} attention_bias", "Phi3": f"{GATED} original_max_position_embeddings sliding_window",
    "GPT2": "activation_function add_cross_attention layer_norm_epsilon n_embd n_head n_inner n_layer n_positions "
            "scale_attn_by_inverse_layer_idx scale_attn_weights tie_word_embeddings vocab_size",
    "Mixtral": f"{GATED} head_dim num_experts_per_tok num_local_experts router_aux_loss_coef sliding_window",
    "Qwen3Moe": f"{GATED} attention_bias decoder_sparse_step mlp_only_layers moe_intermediate_size norm_topk_prob "
                "num_experts_per_tok num_local_experts router_aux_loss_coef sliding_window use_sliding_window",
    "GptOss": f"{GATED} attention_bias head_dim layer_types num_experts_per_tok num_local_experts router_aux_loss_coef "
              "sliding_window swiglu_alpha swiglu_limit",
    "GPTNeoX": f"{COMMON} attention_bias hidden_act layer_norm_eps use_parallel_residual",
}  # fmt: skip
VARIED = {
    "attention_bias", "mlp_bias", "rms_norm_eps", "tie_word_embeddings", "hidden_act", "norm_topk_prob", "swiglu_limit",
    "swiglu_alpha",
}  # fmt: skip
NAMES = {"Gemma3Text": "gemma3_text", "GPTNeoX": "gpt_neox", "Qwen3Moe": "qwen3_moe", "GptOss": "gpt_oss"}
REFUSED = [
    ("Gemma2", "use_bidirectional_attention", True),
    ("Gemma3Text", "use_bidirectional_attention", True),
    ("GPT2", "add_cross_attention", True),
    ("Llama", "hidden_act", "tanh"),
    ("GptOss", "hidden_act", "relu"),
    ("GptOss", "swiglu_limit", 0.0),
    ("Mixtral", "num_experts_per_tok", 6),
    ("Mixtral", "router_aux_loss_coef", -0.1),
    ("Qwen3Moe", "decoder_sparse_step", 0),
    ("Qwen3Moe", "mlp_only_layers", ["first"]),
    ("Llama", "quantization_config", {"quant_method": "fp8"}),
    ("Llama", "rope_parameters", {"rope_type": "spiral", "rope_theta": 5.0}),
    ("Qwen2", "layer_types", ["chunked_attention"] * 2),
    ("Llama", "rope_interleaved", True),
]


def told(class_, fields):
    name = NAMES.get(class_, class_.lower())
    return {"model_type": name, **fields}


@pytest.mark.parametrize("class_", FIELDS)
def test_every_field_is_varied_or_refused(class_):
    mine = [fields for kind, fields in cases.CASES.values() if kind == class_]
    for field in FIELDS[class_].split():
        assert any(field in fields for fields in mine) or any(row[:2] == (class_, field) for row in REFUSED), field


@pytest.mark.parametrize("name", cases.CASES)
def test_a_field_that_is_varied_changes_what_is_read(name):
    class_, fields = cases.CASES[name]
    wanted = hugging_face.describe(told(class_, fields), "config.json")[1]
    for field in set(fields) & VARIED:
        other = {key: value for key, value in fields.items() if key != field}
        assert hugging_face.describe(told(class_, other), "config.json")[1] != wanted, field


@pytest.mark.parametrize(("class_", "field", "value"), REFUSED)
def test_values_that_are_not_computed_are_refused_by_name(class_, field, value):
    fields = next(fields for kind, fields in cases.CASES.values() if kind == class_)
    with pytest.raises(families.Unreadable) as caught:
        hugging_face.describe(told(class_, fields | {field: value}), "config.json")
    said = str(caught.value)
    assert said.startswith("config.json") and said.endswith(".") and "\n" not in said
    assert field in said or field == "rope_parameters"


def test_which_layers_of_qwen3_moe_have_experts():
    """transformers: a layer i that is not named dense has experts where i + 1 is a multiple of the step."""
    fields = {**cases.SIZES, **cases.GQA, **cases.MOE, "num_hidden_layers": 7}

    def channels(**more):
        found = hugging_face.describe(told("Qwen3Moe", fields | more), "config.json")[1]
        period = found["channel"].split(",")
        return [period[i % len(period)] == "moe" for i in range(7)]

    assert channels(decoder_sparse_step=3) == [False, False, True, False, False, True, False]
    assert channels(decoder_sparse_step=2, mlp_only_layers=[3]) == [False, True, False, False, False, True, False]
    assert channels(mlp_only_layers=[0, 6]) == [False, True, True, True, True, True, False]
    assert all(channels())


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not installed")
@pytest.mark.parametrize("class_", FIELDS)
def test_these_are_the_fields_that_transformers_has(class_):
    import transformers

    config, base = getattr(transformers, f"{class_}Config")().to_dict(), transformers.PretrainedConfig().to_dict()
    own = {name for name in config if name not in base and not name.startswith("_")} - {*hugging_face.IGNORED}
    assert own == set(FIELDS[class_].split())


@pytest.mark.parametrize("name", ["llama3", "gemma3", "gpt2-all", "qwen2-windows", "phi3-long", "gpt-oss"])
def test_a_damaged_config_is_one_sentence(name, tmp_path):
    """Each field in turn is nothing, a text, a list, too large, too small."""
    whole = json.loads((FIXTURES / name / "config.json").read_text())
    for field in whole:
        for value in (None, "x", [1], {"a": 1}, -1, 0, 10**12, 0.5, True):
            (tmp_path / "config.json").write_text(json.dumps(whole | {field: value}))
            try:
                families.describe(tmp_path)
            except families.Unreadable as error:
                assert "\n" not in str(error) and str(error).endswith(".")
