"""What loading a folder costs: memory of the host beside its bytes, and time beside the plainest way to read it.

    python -m tests.experiments.pretrained.loading_cost --megabytes=2048

makes a folder of so many bytes of bfloat16 in the shape of Qwen2.5-0.5B's layers, and loads it in processes of their
own: here (memory), and in turn here and by `safetensors.numpy.load_file` and a copy to the device (CPU seconds).
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parents[3]
SIZES = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
SHARD = 1 << 29
LAYER = {
    "self_attn.q_proj.weight": (896, 896), "self_attn.k_proj.weight": (128, 896),
    "self_attn.v_proj.weight": (128, 896), "self_attn.o_proj.weight": (896, 896), "self_attn.q_proj.bias": (896,),
    "self_attn.k_proj.bias": (128,), "self_attn.v_proj.bias": (128,), "mlp.gate_proj.weight": (4864, 896),
    "mlp.up_proj.weight": (4864, 896), "mlp.down_proj.weight": (896, 4864), "input_layernorm.weight": (896,),
    "post_attention_layernorm.weight": (896,),
}  # fmt: skip
V = 8192


def make(folder: pathlib.Path, megabytes: int) -> int:
    """Writes a model of about so many MB in shards; returns its bytes."""
    layer = 2 * sum(math.prod(shape) for shape in LAYER.values())
    L = max(2, round((megabytes * 1e6 - 2 * V * 896) / layer))
    shapes = {"model.embed_tokens.weight": (V, 896), "model.norm.weight": (896,)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(L) for name, shape in LAYER.items()}
    told = {"model_type": "qwen2", "vocab_size": V, "num_hidden_layers": L, "tie_word_embeddings": True, **SIZES}
    (folder / "config.json").write_text(json.dumps(told | {"max_position_embeddings": 1024}))
    rng, shards = np.random.default_rng(0), [[]]
    for name in shapes:
        if sum(2 * math.prod(shapes[each]) for each in shards[-1]) > SHARD:
            shards.append([])
        shards[-1].append(name)
    for k, names in enumerate(shards):
        at, header = 0, {}
        for name in names:
            size = 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [at, at + size]}
            at += size
        front = json.dumps(header).encode()
        with (folder / f"model-{k:05}.safetensors").open("wb") as file:
            file.write(len(front).to_bytes(8, "little") + front)
            for name in names:  # Numbers around 0.01.
                file.write(rng.integers(0x3C00, 0x3C40, math.prod(shapes[name]), np.uint16).tobytes())
    return 2 * sum(math.prod(shape) for shape in shapes.values())


def run(folder: pathlib.Path, how: str) -> dict:
    """What a process of its own tells of loading `folder`: peak bytes beside what it had before, CPU seconds."""
    command = [sys.executable, "-m", "tests.experiments.pretrained.loading_cost", f"--load={folder}", f"--how={how}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def memory(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(name))
    return int(line.split()[1]) << 10


def load(folder: str, how: str) -> dict:
    import time

    import jax

    jax.block_until_ready(jax.device_put(np.zeros(8)))
    if how == "plain":
        import ml_dtypes  # noqa: F401 (what the types of safetensors are)
        from safetensors.numpy import load_file

        read = lambda: [jax.device_put(load_file(path)) for path in sorted(pathlib.Path(folder).glob("*.safetensors"))]  # noqa: E731
    else:
        from configs import pretrained
        from experiments.pretrained import reading
        from experiments.program import build, sharding

        config = pretrained.get_config(folder)
        config.model.dtype = config.model.param_dtype = "bfloat16"
        config.lock()
        program = build(config, vocab_size=V, mesh=sharding.make_mesh(config))
        made = reading.reader(program.spec, program.abstract["params"], folder)
        read = lambda: made.parameters(program.shardings["params"])  # noqa: E731
    before, begin, cpu = memory("VmRSS"), time.monotonic(), time.process_time()
    held = jax.block_until_ready(read())
    told = {"seconds": time.monotonic() - begin, "cpu": time.process_time() - cpu, "bytes": memory("VmHWM") - before}
    del held
    return told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load")
    parser.add_argument("--how", default="here")
    told = parser.parse_args()
    if told.load:
        print(json.dumps(load(told.load, told.how)))
        return
    with tempfile.TemporaryDirectory() as made:
        size = make(pathlib.Path(made), told.megabytes)
        rounds = [{how: run(pathlib.Path(made), how) for how in ("plain", "here")} for _ in range(told.rounds)]
    for how in ("plain", "here"):
        most = max(each[how]["bytes"] for each in rounds)
        cpu, wall = (statistics.median(each[how][name] for each in rounds) for name in ("cpu", "seconds"))
        print(f"{how}: peak {most / size:.3f} of {size / 1e9:.2f} GB, {cpu:.2f} CPU s, {wall:.2f} s")


if __name__ == "__main__":
    main()
