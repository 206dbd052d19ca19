"""Two processes save beside training: each hashes what it wrote and verifies a share, and both hear of a failure."""

import json

import pytest

from experiments.workdir import shared, vouched
from tests import many_processes

WAIT = 300  # Seconds, on a machine that does other things too.


@pytest.mark.parametrize(
    ("name", "count", "who"),
    [
        ("state/ocdbt.process_1/d/ab12", 2, 1),
        ("state/ocdbt.process_0/manifest.ocdbt", 2, 0),
        ("state/array_metadatas/process_1", 2, 1),
        ("state/manifest.ocdbt", 2, 0),
        ("about/metadata", 2, 0),
        ("state/ocdbt.process_1/d/ab12", 1, 0),  # One process hashes what many wrote.
        ("state/ocdbt.process_17/d/process_3", 32, 17),
        ("state/subprocess_1/x", 2, 0),
        ("state/process_1x", 2, 0),
        ("state/process_01", 2, 0),
    ],
)
def test_who_wrote_a_file_stands_in_its_path(name, count, who):
    assert vouched.wrote(name, count) == who


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_hold_every_file_once_and_about_as_many_bytes(count):
    sizes = {f"f{i}": size for i, size in enumerate([900, 5, 5, 5, 700, 300, 300, 299, 1, 0, 40])}
    found = vouched.shares(sizes, count)
    assert len(found) == count and sorted(name for share in found for name in share) == sorted(sizes)
    filled = [sum(sizes[name] for name in share) for share in found]
    # The fullest was the emptiest before its last file: it exceeds the others by that file at most.
    for share, total in zip(found, filled, strict=True):
        assert total - min(sizes[name] for name in share) <= min(filled)


def test_what_saves_cost_is_one_sentence():
    told = str(shared.Cost(saves=2, bytes=3 * 2**20, stood=0.25, wrote=1.5, hashed=0.5))
    assert told.startswith("2 checkpoints of 3.0 MiB: training stood still for 0.2 s; written in 1.5 s and hashed in")
    assert str(shared.Cost(saves=1)).startswith("1 checkpoint of")


SAVES = """
import json, os, pathlib, sys, threading
from experiments.settings import processes
processes.join(sys.argv[1], 2, int(sys.argv[2]))
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from experiments.workdir import checkpoints, vouched

who, root = int(sys.argv[2]), pathlib.Path(os.environ["TESSERA_SAVES"])
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
lie = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
make = lambda: {"params": {"w": jnp.arange(4096.0)}, "step": jnp.int32(5)}
where = {"params": {"w": lie[0]}, "step": lie[1]}
state = jax.jit(make, out_shardings=where)()

go, hashed, real = threading.Event(), [], vouched.hashes
def held(folder, names):
    hashed.append(sorted(names))
    go.wait()
    return real(folder, names)
vouched.hashes = held
saves = checkpoints.Checkpoints(root)
saves.save(5, state, {})
assert not go.is_set()
multihost_utils.sync_global_devices("trains while it is hashed")  # A collective of the devices, beside the save.
assert not saves.steps()
go.set()
saves.close()
assert saves.steps() == [5] and saves.cost.saves == 1
_, found, _ = checkpoints.Checkpoints(root).restore(jax.eval_shape(make), where)
mine = np.concatenate([np.asarray(s.data) for s in found["params"]["w"].addressable_shards])
assert (mine == np.concatenate([np.asarray(s.data) for s in state["params"]["w"].addressable_shards])).all()
print(json.dumps({"hashed": hashed}), flush=True)
processes.wait_for_all("first half")

if who == 0:  # A flipped bit in what the other one verifies.
    name = next(name for name in sorted(json.loads(vouched.checksums(root / "checkpoints", 5).read_text()))
                if name not in hashed[1])
    path = root / "checkpoints" / "5" / name
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
processes.wait_for_all("flipped")
try:
    checkpoints.Checkpoints(root).restore(jax.eval_shape(make), where)
except checkpoints.CheckpointError as error:
    print(json.dumps({"told": str(error)}), flush=True)

def full(folder, names):
    raise OSError(28, "No space left on device")
if who == 1:
    vouched.hashes = full
try:
    saves = checkpoints.Checkpoints(root, folder="other")
    saves.save(7, state, {})
    saves.wait()
except checkpoints.CheckpointError as error:
    print(json.dumps({"failed": str(error)}), flush=True)
print(json.dumps({"left": saves.steps()}), flush=True)
jax.distributed.shutdown()  # Both come before either leaves: a coordinator that is gone ends the other one.
os._exit(0)
"""


def test_each_of_two_hashes_and_verifies_its_own_part_beside_training(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_SAVES", str(tmp_path))
    ended = many_processes.ended(many_processes.scripts(SAVES, count=2), WAIT)
    assert [code for code, _ in ended] == [0, 0], ended
    told = [
        {key: value for line in said.splitlines() if line.startswith("{") for key, value in json.loads(line).items()}
        for _, said in ended
    ]
    for turn in (0, 1):  # Of the save, and of the restore.
        one, other = (each["hashed"][turn] for each in told)
        assert one and other and not set(one) & set(other)
    assert all("ocdbt.process_1/" in name or "process_1" in name for name in told[1]["hashed"][0])
    assert not any("process_1" in name for name in told[0]["hashed"][0])
    assert set(told[0]["hashed"][0] + told[1]["hashed"][0]) == set(told[0]["hashed"][1] + told[1]["hashed"][1])
    assert "process 1: " in told[0]["told"] and "does not match its checksum" in told[0]["told"]
    assert all("is damaged" in each["told"] for each in told)
    for each in told:  # One process has no room: both say so, and nothing is a checkpoint.
        assert "checkpoint 7 was not written" in each["failed"] and each["left"] == []
        assert "disk is full" in each["failed"], each
