"""What the processes of one run are compared in, without any process: the exchange runs in threads."""

import json
import threading
import time

import jax
import pytest

from configs import knobs
from experiments.settings import agreement, processes
from experiments.settings.keys import flatten
from tests.experiments import tiny


class Words:
    """A coordinator's store in memory; keys are set once, as jax's are."""

    def __init__(self):
        self.kept, self.counts, self._changed = {}, {}, threading.Condition()

    def count(self, key):
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key]

    def set(self, key, value):
        with self._changed:
            assert key not in self.kept, key
            self.kept[key] = json.dumps(value)
            self._changed.notify_all()

    def get(self, key, seconds):
        with self._changed:
            found = self._changed.wait_for(lambda: key in self.kept, max(0, seconds))
            return json.loads(self.kept[key]) if found else None


def exchanged(facts, limit=30, absent=(), store=None):
    """What each process returns where process i has facts[i]."""
    store, said = store or Words(), {}

    def one(who):
        differs = lambda main: agreement.difference(facts[who], main)  # noqa: E731
        said[who] = processes.exchange(store, who, len(facts), "here", facts[who], differs, limit)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(facts)) if i not in absent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_equal_processes_agree_as_often_as_they_are_asked():
    store = Words()
    for _ in range(2):
        assert exchanged([{"a": "1"}] * 3, store=store) == {0: "", 1: "", 2: ""}


def test_all_processes_say_the_same_sentence_about_the_one_that_differs():
    said = exchanged([{"--seed": "1"}, {"--seed": "1"}, {"--seed": "2"}])
    expected = f"the processes of this run do not agree: process 2: --seed=2 (process 0: 1); {processes.SAME}"
    assert said == dict.fromkeys(range(3), expected)
    said = exchanged([{"a": str(min(i, 1))} for i in range(6)])
    assert len(set(said.values())) == 1
    assert "process 3: a=1 (process 0: 0); and 2 more processes; start" in said[0] and "process 4:" not in said[0]


@pytest.mark.parametrize("absent", [0, 2])
def test_a_process_that_says_nothing_is_named(absent, monkeypatch):
    start = time.monotonic()
    said = exchanged([{}] * 3, limit=0.2, absent=(absent,))
    assert len(said) == 2 and set(said.values()) == {
        f"process {absent} did not say within 0.2 seconds what it runs; look there, end all, and start them again."
    }
    assert time.monotonic() - start < processes.HEARD


def test_process_0_waits_until_all_have_heard_why_they_end():
    """It takes the store with it."""
    store, order = Words(), []
    get = store.get

    def slow(key, seconds):
        if key.endswith("/outcome"):
            time.sleep(0.3)
            order.append("heard")
        return get(key, seconds)

    store.get = slow
    done = threading.Thread(
        target=lambda: processes.exchange(store, 1, 2, "here", {}, lambda main: "differs", 30), daemon=True
    )
    done.start()
    assert processes.exchange(store, 0, 2, "here", {}, lambda main: "", 30)
    order.append("left")
    done.join()
    assert order == ["heard", "left"]


def test_a_process_says_why_it_ends_when_process_0_is_gone_before_it_answers():
    """The coordinator takes the last word of a process and ends: its reply never comes."""
    store = Words()
    put = store.set

    def torn(key, value):
        put(key, value)
        if "/heard/" in key:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")

    store.set = torn
    said = exchanged([{"--seed": "1"}, {"--seed": "2"}], store=store)
    assert set(said) == {0, 1} and len(set(said.values())) == 1 and "process 1: --seed=2" in said[1]


MAIN = {"--config.seed": "1", "file models/lm.py": "0a1b2c3d", "jax": "0.10.2", "corpus": "c0ffee"}


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({}, ""),
        ({"--config.seed": "2"}, "--config.seed=2 (process 0: 1)"),
        ({"--config.seed": None}, "--config.seed=nothing (process 0: 1)"),
        ({"--config.seed": ""}, "--config.seed=nothing (process 0: 1)"),
        ({"file models/lm.py": "00000000"}, "file models/lm.py has another text"),
        ({"file models/lm.py": None}, "file models/lm.py is missing"),
        ({"file models/new.py": "00000000"}, "file models/new.py is not there"),
        ({"corpus": "c0ffee" + "0" * 60}, f"corpus=c0ffee{'0' * 44}... (process 0: c0ffee)"),
        ({"jax": "0.10.1", "corpus": "bad"}, "jax=0.10.1 (process 0: 0.10.2), corpus=bad (process 0: c0ffee)"),
    ],
)
def test_a_difference_is_said_by_its_name_and_both_values(here, said):
    mine = {key: value for key, value in {**MAIN, **here}.items() if value is not None}
    assert agreement.difference(mine, MAIN) == said


def test_a_long_value_is_shown_where_it_differs():
    here, main = ("a" * 90 + end for end in ("b", "c" * 70))
    said = agreement.difference({"x": here}, {"x": main})
    assert said == f"x=...{'a' * 20}b (process 0: ...{'a' * 20}{'c' * 30}...)"


def test_of_many_differences_a_few_are_shown_and_all_counted():
    said = agreement.difference({f"k{i}": "1" for i in range(9)}, {})
    assert said.count("process 0: nothing") == agreement.SHOWN == 6 and said.endswith(", 3 more")


def test_every_key_that_something_reads_is_compared_and_no_place_of_one_machine(tmp_path):
    config = tiny.config(tmp_path)
    told = lambda **changes: agreement.told({"mode": "train"}, config.copy_and_resolve_references().to_dict() | changes)  # noqa: E731
    here = told()
    for key in ("seed", "train.steps", "eval.every", "checkpoint.every", "mesh.fsdp", "optimizer.learning_rate"):
        assert f"--config.{key}" in here, key
    assert not {f"--config.{key}" for key in agreement.MAY_DIFFER} & here.keys()
    assert agreement.difference(told(seed=5), here) == "--config.seed=5 (process 0: 0)"
    unread = set(knobs.unread(flatten(config.to_dict())))
    assert unread and not {f"--config.{key}" for key in unread} & here.keys()
    assert agreement.told({"step": "best"}, {}) == {"--step": "best"}
    # What a tuple became on its way through a file.
    assert agreement.told({}, {"seed": (1, 2)}) == agreement.told({}, {"seed": [1, 2]})


def test_one_changed_letter_of_code_is_another_code(tmp_path):
    for name, text in {"main.py": "1", "models/a.py": "x = 1", "models/deep/b.py": "", "models/a.txt": "1"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "c.py").write_text("")
    before = agreement.code(tmp_path)
    assert list(before) == ["file main.py", "file models/a.py", "file models/deep/b.py"]
    (tmp_path / "models" / "a.py").write_text("x = 2")
    assert agreement.difference(agreement.code(tmp_path), before) == "file models/a.py has another text"
    assert "file experiments/settings/agreement.py" in agreement.code()
    assert agreement.libraries().keys() >= {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint"}
    assert agreement.switches()["jax_enable_x64"] == "false"


@pytest.mark.parametrize("exists", [True, False])
def test_one_folder_under_two_paths_is_one_workdir_and_equal_names_are_not(tmp_path, exists):
    shared, other = tmp_path / "shared", tmp_path / "other"
    for folder in (shared, other):
        (folder / "runs" / "first" if exists else folder).mkdir(parents=True)
    mounted = tmp_path / "mounted"
    mounted.symlink_to(shared)
    sees = lambda folder: agreement._sees(folder / "runs" / "first", mark, seconds=0)  # noqa: E731
    with agreement._marked(shared / "runs" / "first") as mark:
        assert sees(shared) and sees(mounted) and not sees(other)
        assert not agreement._sees(shared / "runs" / "second", mark, seconds=0)
        late = threading.Timer(0.1, lambda: (tmp_path / "late").symlink_to(shared))
        late.start()
        assert agreement._sees(tmp_path / "late" / "runs" / "first", mark, seconds=10)
        late.join()
    assert not sees(shared) and not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert agreement._sees(other, [])  # Process 0 reads only, and could not leave a mark.
