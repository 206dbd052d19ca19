"""A tiny set, prepared here as array_record files and read by name."""

import json
import pathlib
import subprocess
import sys

import pytest

import data

ROOT = pathlib.Path(__file__).parents[2]


# The preparing step as a user's own script has it. (A builder class inside a package also needs importlib_resources.)
PREPARE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class TinyTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SPLITS = ("train", "validation")

    def _info(self):
        features = {"text": tfds.features.Text(), "number": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for k in range(30 if split == "train" else 5):
            yield k, {"text": f"{split} token {k} é", "number": k}

class TrainOnly(TinyTexts):
    SPLITS = ("train",)

for builder in (TinyTexts, TrainOnly):
    builder(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "prepare.py").write_text(PREPARE, "utf-8")
    subprocess.run([sys.executable, folder / "prepare.py", folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def load(prepared, tmp_path):
    def load(name, **options):
        return data.load("tfds", **{"name": name, "path": str(prepared), "cache_dir": str(tmp_path), **options})

    return load


def texts(corpus, split):
    text = corpus.tokenizer.decode(getattr(corpus, split).tokens)
    return sorted(text.replace("é", "é|").split("|")[:-1])


@pytest.mark.parametrize("name", ["tiny_texts", "tiny_texts:1.0.0"])
def test_a_prepared_set_is_read_with_its_own_splits(load, name):
    corpus = load(name)
    assert texts(corpus, "train") == sorted(f"train token {k} é" for k in range(30))
    assert texts(corpus, "valid") == sorted(f"validation token {k} é" for k in range(5))


LOAD = """
import json, sys, data
corpus = data.load("tfds", **json.loads(sys.argv[1]))
print(corpus.info["documents"], "tensorflow" in sys.modules, "tensorflow_datasets" in sys.modules)
"""


def test_tensorflow_is_not_imported(prepared, tmp_path):
    arguments = {"name": "tiny_texts", "path": str(prepared), "cache_dir": str(tmp_path)}
    command = [sys.executable, "-c", LOAD, json.dumps(arguments)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split() == ["35", "False", "True"]


def test_the_folder_of_a_version_and_another_tokenizer(load, prepared):
    corpus = load("", path=str(prepared / "tiny_texts" / "1.0.0"), tokenizer="bpe", vocab_size=280)
    assert texts(corpus, "train") == sorted(f"train token {k} é" for k in range(30))
    assert corpus.info["bytes_per_token"] > 1.5


def test_a_set_with_train_only_is_split_by_hash(load):
    corpus = load("train_only", validation=0.2)
    assert 0 < len(corpus.valid.starts) < 30
    assert sorted(texts(corpus, "train") + texts(corpus, "valid")) == sorted(f"train token {k} é" for k in range(30))


@pytest.mark.parametrize("name", ["no_such_set", "tiny_texts:2.0.0", "mnist"])
def test_a_set_that_is_not_prepared_names_the_step(load, name):
    with pytest.raises(FileNotFoundError, match=f"name='{name}' is not prepared under .*; prepare it once") as caught:
        load(name)
    assert "download_and_prepare()" in str(caught.value) and "\n" not in str(caught.value)


def test_a_set_in_another_file_format_names_the_step(load, tmp_path):
    folder = tmp_path / "old" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": "old", "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="is prepared as tfrecord .* needs TensorFlow to read; prepare it once with"):
        load("old", path=str(tmp_path))


def test_several_configs_must_be_chosen_from(load, tmp_path):
    for config in ("en", "de"):
        folder = tmp_path / "wiki" / config / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has configs \['de', 'en'\]; use one of them, such as 'wiki/de'"):
        load("wiki", path=str(tmp_path))


def test_a_name_is_needed(load):
    with pytest.raises(ValueError, match="name='' is missing for source='tfds'"):
        load("")
