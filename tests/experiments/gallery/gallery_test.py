"""The gallery: everything that can be run, found in a second and without jax, and its page up to date."""

import ast
import json
import resource
import shlex
import subprocess
import sys

import pytest

from configs import base
from experiments import gallery
from experiments.gallery import knobs, page, text
from experiments.settings import keys, overrides
from experiments.settings.errors import Refused
from tests import environment

ROOT = environment.ROOT


def test_it_is_listed_in_a_second_without_jax():
    """The real door; CPU seconds of the process, its start included."""
    code = "import sys, runpy; sys.argv = ['main.py', '--mode=list']\n"
    code += "try: runpy.run_path('main.py', run_name='__main__')"
    code += "\nfinally: print(sorted({'jax', 'numpy', 'flax', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stderr == "[]\n", done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert done.stdout == text.listing(width=80) + "\n"


def test_every_entry_says_what_it_is_and_its_command_is_one():
    entries = gallery.entries()
    families = [entry.family for entry in entries]
    assert {"diffusion", "quickstart", "sweeps/scaling", "claims/recall"} <= {*families}
    assert not any(entry.family in ("base", "presets") for entry in entries)
    for entry in entries:
        assert entry.says and entry.source and entry.title, entry
        words = dict(word.lstrip("-").split("=", 1) for word in shlex.split(entry.command)[2:])
        assert words["config"] == f"configs/{entry.family}.py" + f":{entry.preset}" * bool(entry.preset)
        function = {"sweep": "get_sweep", "claim": "get_claim"}.get(words.get("mode"), "get_config")
        assert overrides.load(ROOT / words["config"], function, object)
        if entry.claim:
            rows = json.loads((ROOT / "docs" / "claims" / f"{entry.claim}.json").read_text())["rows"]
            assert sum(entry.verdicts.values()) == len(rows)
    (mdlm,) = [entry for entry in entries if entry.preset == "mdlm"]
    assert mdlm.command == "python main.py --config=configs/diffusion.py:mdlm --workdir=runs/diffusion-mdlm"


def test_a_preset_that_reads_another_run_says_how_that_is_made():
    """Its companions' and its start's workdirs are those of the command that comes first."""
    needing = set()
    for entry in gallery.entries():
        if "/" in entry.family:
            continue
        config = overrides.load(ROOT / shlex.split(entry.command)[2].removeprefix("--config="), "get_config", object)
        flat = keys.flatten(config.to_dict())
        read = [value for key, value in flat.items() if key.startswith("companions.") and key.endswith(".workdir")]
        read += [flat["init.warm_start"], flat["init.grow_from"], flat["init.transplant"]]
        read = {value for value in read if value not in ("", "self")}
        made = {word.removeprefix("--workdir=") for word in shlex.split(entry.needs) if word.startswith("--workdir=")}
        assert made == read, entry
        if read:
            needing.add(entry.family)
            assert entry.needs in page.markdown() and entry.needs.split("--")[1].strip() in text.listing(entry.preset)
    assert "distillation" in needing


def test_verdicts_are_counted_from_the_evidence(tmp_path):
    rows = [{"verdict": verdict} for verdict in ("holds", "undecided", "holds")]
    (tmp_path / "toy_likelihood.json").write_text(json.dumps({"rows": rows}))
    (mdlm,) = [entry for entry in gallery.entries(tmp_path) if entry.preset == "mdlm"]
    assert mdlm.verdicts == {"holds": 2, "undecided": 1}
    assert gallery.judged(mdlm) == "toy_likelihood: holds 2, undecided 1"
    (assd,) = [entry for entry in gallery.entries(tmp_path) if entry.preset == "any_subset"]
    assert assd.verdicts == {} and gallery.judged(assd) == "assd: not run yet"


@pytest.mark.parametrize("width", [60, 80, 110])
def test_lines_fit_and_commands_can_be_copied(width):
    shown = text.listing(width=width)
    assert all(len(line) <= width or " " not in line.strip().removesuffix(" \\") for line in shown.splitlines())
    lines = [line.strip() for line in shown.replace(" \\\n", " ").splitlines()]
    commands = [" ".join(shlex.split(line)) for line in lines if line.startswith("python main.py")]
    assert commands == [command for entry in gallery.entries() for command in (entry.needs, entry.command) if command]


def test_a_filter_finds_presets_knobs_or_says_that_there_is_nothing():
    shown = text.listing("masked tokens", 80)
    assert "mdlm: Fills in masked tokens" in shown and "insertion: " not in shown
    shown = text.listing("model.lact", 80)
    lines = shown.splitlines()
    assert lines[0] == "--config.model.lact.*  Large-chunk test-time training beside a sliding window."
    assert lines[1] == "--config.model.lact.heads=4"
    assert lines[2] == "      Networks of fast weights; divides N x H. Their width and number fix the"
    assert "--config.model.lact.rope_theta=1000000.0" in lines and "ttt" not in shown and "python" not in shown
    assert text.listing("optimizer.clip", 80) == "--config.optimizer.clip=1.0\n      Global gradient norm; 0 = off."
    shown = text.listing("FreeCache", 80)  # In a claim and in a knob.
    assert "claims/diffusion_speed" in shown and "--config.generate.diffusion.cache=''" in shown
    with pytest.raises(Refused, match="--filter=model.lct finds nothing; did you mean 'model.lact'"):
        text.listing("model.lct", 80)


def test_every_knob_is_found_with_its_default_and_sentence():
    found = {knob.key: knob for knob in knobs.knobs() if knob.default}
    flat = keys.flatten(base.get_config().to_dict())
    assert {key: ast.literal_eval(knob.default) for key, knob in found.items()} == flat
    assert found["model.mlp.hidden"].default == "0"
    assert found["loss.z_loss"].says == "Weight of mean log(Z)^2."
    assert not any("before: " in knob.says for knob in found.values())
    assert found["parallel.schedule"].says.startswith("How attention crosses devices that share a sequence")
    assert sum(bool(knob.says) for knob in found.values()) > 0.75 * len(found)


def test_the_page_of_the_house_is_up_to_date():
    assert (ROOT / "docs" / page.NAME).read_text() == page.markdown()
    assert "docs/GALLERY.md" in (ROOT / "README.md").read_text()
