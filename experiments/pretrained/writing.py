"""A model of this house as a folder that transformers loads, where one of its families computes the same."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save as serialize

from configs import knobs
from configs.families import Unreadable, outward
from configs.knobs import nested
from data.library_tokenizer import added_tokens
from experiments import workdir as files
from experiments.pretrained import names, reading
from experiments.pretrained.names import Theirs
from experiments.program import build
from experiments.settings.errors import ConfigError
from experiments.workdir import disk
from models import lora
from models.spec import Spec


def hugging_face(trained: Any, folder: pathlib.Path) -> int:
    """Writes config.json, model.safetensors and, where it can be said, the tokenizer; returns the count of parameters.

    trained: an `experiments.workdir.trained.Trained`.
    Errors: ConfigError with one sentence where no family can say the model; nothing is written then.
    """
    trained = merged(trained)
    spec, model = trained.program.spec, files.plain(trained.config.model.to_dict())
    longest = spec.positions or trained.config.data.length
    try:
        family, told = outward.hugging_face_config(
            model | {"vocab_size": spec.V}, knobs.defaults()["model"], longest=longest
        )
        tensors = theirs(spec, reading.flatten(trained.params), names.HUGGING_FACE[family])
    except Unreadable as error:
        raise ConfigError([str(error)]) from None
    kept = trained.tokenizer
    told |= {"bos_token_id": kept.bos, "eos_token_id": kept.eos, "pad_token_id": kept.pad}
    told |= {"architectures": [ARCHITECTURES[family]], "torch_dtype": str(model["param_dtype"])}
    disk.own_folder(folder)
    files.write_file(folder / "model.safetensors", serialize(tensors, metadata={"format": "pt"}))
    files.write_file(folder / "config.json", (json.dumps(told, indent=2) + "\n").encode())
    for name, text in tokenizer_files(kept).items():
        files.write_file(folder / name, text.encode())
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def merged(trained: Any) -> Any:
    """The same model without adapters, each merged into its kernel; `trained` itself where it has none."""
    if trained.program.spec.projection != "lora":
        return trained
    config = trained.config.copy_and_resolve_references().unlock()
    config.model.projection, config.optimizer.freeze = "dense", ()
    program = build(config.lock(), vocab_size=trained.tokenizer.vocab_size, mesh=trained.program.mesh)

    def scale(path: str) -> float:
        place = int(path.removeprefix(reading.STACK).split("_")[0]) if path.startswith(reading.STACK) else 0
        options = trained.program.spec.at(place).options["lora"]
        return lora.factor(options["alpha"], options["rank"], options["scaling"])

    fold = lambda params: nested(lora.fold(reading.flatten(params), scale), "/")  # noqa: E731
    params = jax.jit(fold, out_shardings=program.shardings["params"])(trained.params)
    return dataclasses.replace(trained, config=config, program=program, params=params)


ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "granite": "GraniteForCausalLM", "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM", "smollm3": "SmolLM3ForCausalLM", "olmo2": "Olmo2ForCausalLM",
    "mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM", "gpt_oss": "GptOssForCausalLM",
    "phi3": "Phi3ForCausalLM", "gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM",
}  # fmt: skip


def theirs(
    spec: Spec, params: Mapping[str, Any], tables: tuple[Mapping[str, Theirs], Mapping[str, Theirs]]
) -> dict[str, np.ndarray]:
    """The tensors of a foreign file, by name, from parameters by path. Errors: Unreadable for one that has no name."""
    found = reading.places(spec, nested(dict(params), "/"), tables)
    if alone := [path for path in params if path not in found]:
        raise Unreadable(f"the parameter {alone[0]!r} has no name in that family; export with --format=safetensors.")
    parts: dict[str, dict[str, tuple[Theirs, np.ndarray]]] = {}
    for path, place in found.items():
        value = np.asarray(params[path])
        for row, layer in enumerate(place.layers):
            each = value if layer is None else value[row]
            for expert in range(place.experts or 1):
                one = each[expert] if place.experts else each
                parts.setdefault(place.name(layer, expert), {})[place.theirs.part] = place.theirs, one
    return {name: joined(each, spec) for name, each in parts.items()}


def joined(parts: Mapping[str, tuple[Theirs, np.ndarray]], spec: Spec) -> np.ndarray:
    """One tensor of theirs from the parameters that it holds: `reading.ours`, backwards."""
    how = next(iter(parts.values()))[0]
    given = [parts[part][1] for part in how.parts] if how.part else [parts[""][1]]
    if how.by_head:
        cut = [x.reshape(*x.shape[:-1], spec.N, spec.H) for x in given]
        x = np.stack(cut, axis=-2).reshape(*given[0].shape[:-1], -1)
    elif how.mixed:
        x = np.stack(given, axis=-1).reshape(*given[0].shape[:-1], -1)
    else:
        x = np.concatenate(given, axis=-1) if len(given) > 1 else given[0]
    if how.pairs:
        x = x.reshape(*x.shape[:-1], -1, 2, spec.H // 2).swapaxes(-1, -2).reshape(x.shape)
    return np.ascontiguousarray(x.swapaxes(-1, -2) if how.turned else x)


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """Name -> text of the files that transformers reads a tokenizer from; {} for one that it has no form for."""
    definition = getattr(tokenizer, "definition", None) or getattr(tokenizer, "_definition", None)
    if not definition:
        return {}
    told, specials = json.loads(definition), getattr(tokenizer, "specials", None)
    if specials is None:  # One of ours: the specials stand behind its pieces.
        specials = {"<|bos|>": tokenizer.bos, "<|eos|>": tokenizer.eos, "<|pad|>": tokenizer.pad}
        told["added_tokens"] = added_tokens(specials)
    by_id = {i: name for name, i in specials.items()}
    said = {"tokenizer_class": "PreTrainedTokenizerFast"}
    said |= {f"{name}_token": by_id[i] for name in ("bos", "eos", "pad") if (i := getattr(tokenizer, name)) in by_id}
    if chat := getattr(tokenizer, "chat", ""):
        said["chat_template"] = chat
    return {"tokenizer.json": json.dumps(told), "tokenizer_config.json": json.dumps(said, indent=2) + "\n"}
