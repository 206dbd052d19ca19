"""Workdirs made up as runs leave them, and a reader of the pages that reports make of them."""

import copy
import html.parser
import math
import re

import numpy as np

from experiments import workdir as files
from experiments.workdir import writers

BASE = {
    "seed": 0,
    "model": {"mixer": "attention", "channel": "swiglu", "num_layers": 6, "width": 256, "num_heads": 4, "dropout": 0.0},
    "train": {"steps": 5000, "batch_size": 16, "sequence_length": 256, "learning_rate": 3e-3, "warmup_steps": 200},
    "optimizer": {"name": "adamw", "b1": 0.9, "b2": 0.95, "weight_decay": 0.1, "clip": 1.0},
    "data": {"name": "python_stdlib", "tokenizer": "bytes", "seed": 0},
    "eval": {"every": 250, "tokens": 65536},
}
PROMPT = "def read("
TEXT = (
    "self, size=-1):\n        if self.closed:\n"
    "            raise ValueError('I/O operation on <closed> file & \"more\"')\n"
    "        return self._buffer.read(size)\n"
)


def make_workdir(path, *, steps=5000, every=10, seed=0, gain=0.0, changes=None, kind="=", evaluate=True, finished=True):
    """A workdir as a run of `steps` steps leaves it, through the real writer; `gain` lowers its loss."""
    noise = np.random.default_rng([seed, round(1000 * abs(gain))])
    config = copy.deepcopy(BASE)
    config["seed"] = seed
    for key, value in (changes or {"train.learning_rate": 1e-3}).items():
        group, name = key.split(".")
        config[group][name] = value
    files.write_config(path, config, f"python main.py --config=configs/quickstart.py --workdir={path.name}", base=BASE)
    corpus = {"name": "python standard library", "bytes": 33_554_432, "files": 1742, "hash": "9f2c41d07be8"}
    facts = {
        "environment": files.environment(),
        "corpus": corpus | {"unigram_bits_per_byte": 4.56, "trigram_bits_per_byte": 2.94},
        "tokenizer": "bytes",
        "parameters": {"total": 4_853_248, "embedding": 65_536},
        "flops_per_token": 3.1e7,
        "matmul_flops_per_second": 2.1e11,
    }
    files.write_run(path, facts)
    with writers.Writer(path) as writer:
        for step in range(every, steps + 1, every):
            tokens = step * 4096
            count = {"tokens": tokens, "flops": tokens * 3.1e7}
            loss = 1.05 - gain + 4.5 * (1 + step / 30) ** -0.55 + noise.normal(0, 0.05)
            rate = 3e-3 * min(step / 200, 0.5 * (1 + math.cos(math.pi * step / steps)))
            norm = float(np.exp(noise.normal(-0.7, 0.25))) * (1 + 20 * (noise.random() < 0.004))
            train = {"train/loss": loss, "train/grad_norm": norm, "train/learning_rate": rate}
            writer.scalars(step, count | train)
            speed = 41_000 + 900 * noise.normal() - 9000 * (noise.random() < 0.02)
            writer.timing(
                step,
                {
                    "seconds": step * 0.1013,
                    "tokens_per_second": speed,
                    "mfu": speed * 3.1e7 / 2.1e12,
                    "peak_memory_bytes": int(1.17e9 + 2e7 * min(step, 900) / 900),
                    "data_wait_seconds": abs(noise.normal(0, 2e-4)),
                },
            )
            if evaluate and step % 250 == 0:
                held = loss + 0.04 + noise.normal(0, 0.004)
                bits = {"eval/loss": held, "eval/bits_per_byte": held / math.log(2), "eval/bits_per_byte_se": 0.011}
                writer.scalars(step, count | bits | {"eval/kind": kind})
                writer.sample(step, PROMPT, TEXT[: 20 + step // 25] + f"\n        # step {step}\x00\x1b[0m")
    if finished:
        files.write_json(path / files.RESULT, {"step": steps, "status": "finished"})
    return path


class Page(html.parser.HTMLParser):
    """What a page holds: its tags with attributes, its text, and whether every element is closed in order."""

    VOID = {"meta", "input", "br", "link", "img", "hr"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(text)

    @property
    def text(self):
        return "".join(self.texts)

    def ids(self, tag=None):
        return [attributes["id"] for name, attributes in self.tags if "id" in attributes and tag in (None, name)]

    def count(self, kind):
        return sum(kind in (attributes.get("class") or "").split() for _, attributes in self.tags)


SECTIONS = ["summary", "again", "curves", "training", "samples", "configuration", "environment"]
COMPARISON = ["results", "tests", "settings", "curves", "samples", "runs"]


def read(path):
    """Parses a page and checks what holds for every page: well formed, self-contained, ids unique, under 1 MB."""
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert found.open == []
    ids = found.ids()
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        for key, value in attributes.items():
            assert key not in ("src", "srcset", "action", "data") and not key.startswith("on")
            if key == "href" and not re.match(r"data:text/(csv|json);base64,", value):
                assert value.startswith("#") and value[1:] in ids
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target.startswith("#") and target[1:] in ids
    assert "//" not in re.sub(r"<pre>.*?</pre>|;base64,[^\"]*", "", text, flags=re.S)  # no address of any kind
    assert "@import" not in text and "url(" not in text[: text.index("</style>")]
    assert not re.search(r"#0[123a]0", text)  # every stand-in colour has become a CSS variable
    assert len(text.encode()) < 1_000_000
    return found
