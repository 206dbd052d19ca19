"""lm-evaluation-harness against the server, with tasks made here: likelihoods are the model's, texts the server's."""

import json
import subprocess
import sys

import pytest

from tests.experiments.serving import servers
from tests.experiments.serving.openai_test import plain_law
from tests.experiments.serving.servers import ask

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("one_device")
ROWS = [
    {"question": "say 1", "choices": ["a", "b", "cc"], "answer": 0},
    {"question": "say 2", "choices": ["a", "bä", "cc"], "answer": 2},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
doc_to_text: "{{{{question}}}}"
{more}
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TEXT = """
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, temperature: 0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def test_the_harness_reads_likelihoods_and_texts(server, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, more in (("served_choice", CHOICE), ("served_text", TEXT)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, rows=tmp_path / "rows.jsonl", more=more))
    given = f"model={servers.NAME},base_url={server.url}/v1/completions,max_length={servers.CAPACITY},num_concurrent=4"
    command = [
        sys.executable, "-m", "lm_eval", "--model=local-completions", f"--model_args={given}", "--log_samples",
        f"--include_path={tmp_path}", "--tasks=served_choice,served_text", f"--output_path={tmp_path / 'out'}",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=servers.environ() | offline, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    samples = {}
    for path in (tmp_path / "out").rglob("samples_*.jsonl"):
        name = "choice" if "choice" in path.name else "text"
        samples[name] = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    for row, sample in zip(ROWS, samples["choice"], strict=True):
        for choice, ((likelihood, greedy),) in zip(row["choices"], sample["resps"], strict=True):
            ids = [256, *f"{row['question']} {choice}".encode()]
            law, first = plain_law(server.workdir, ids), len(row["question"].encode())
            places = range(first, len(ids) - 1)
            assert float(likelihood) == pytest.approx(sum(law[p, ids[p + 1]] for p in places), abs=1e-3)
            assert (str(greedy) == "True") == all(law[p].argmax() == ids[p + 1] for p in places)
    for row, sample in zip(ROWS, samples["text"], strict=True):
        made = ask(server, prompt=row["question"], max_tokens=8, temperature=0, stop="\n").json()
        assert sample["resps"] == [[made["choices"][0]["text"]]]
