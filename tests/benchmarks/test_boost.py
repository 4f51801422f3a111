"""The study of the boost: its file, its runs, and the numbers that it draws from them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import figures
import plan
import pytest
import study as harness
import torch
import units
from boost_study import EQUAL, SMALL, read, write

import skt_components as skt

BOOST = Path(harness.__file__).parent
STUB = textwrap.dedent("""
    # Stands for examples/train_full.py: numbers by arm and seed, a state, and what a signal does to it.
    import json, pathlib, signal, sys, time
    def of(flag):
        return sys.argv[sys.argv.index(flag) + 1]
    resumed = "--resume" in sys.argv
    run = pathlib.Path(of("--resume" if resumed else "--out"))
    if not resumed:
        run.mkdir(parents=True)
        ours = "--content-weight" in sys.argv
        state = {"seed": int(of("--seed")), "steps": int(of("--steps")), "ours": ours, "step": 0}
        (run / "config.toml").write_text("")
    else:
        state = json.loads((run / "state").read_text())
    seen = []
    signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    if "--lr" in sys.argv:
        print("\\rours:  50%|#    | 1/2 [00:01<00:01, 1.00it/s, org=1]", flush=True)
        sys.exit("the learning rate is too bold")
    with open(run / "metrics.jsonl", "a") as file:
        if not resumed:
            row = {"ORM": {"PSNR-mu": 9.0 + state["seed"], "PSNR-L": 1.0, "SSIM-mu": 0.5}}
            file.write(json.dumps({"step": 0, "validation": row}) + "\\n")
        while state["step"] < state["steps"]:
            file.write(json.dumps({"step": state["step"], "terms": {}, "samples_per_second": 8.0}) + "\\n")
            file.flush()
            state["step"] += 1
            time.sleep(SLOW)
            (run / "state").write_text(json.dumps(state))
            if seen:
                sys.exit(130)
    values = [20.0 + state["seed"] + 0.25 * state["ours"], 30.0 + 0.75 * state["ours"]]
    scores = {"ORM": {m: values for m in ("PSNR-mu", "PSNR-L", "SSIM-mu")}}
    (run / "scores.json").write_text(json.dumps({"any": scores}))
""")
AS_SCRIPT = """
import runpy, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import units, judge
units.SCRIPT, judge.draw_pictures = Path(sys.argv[3]), lambda *_: True
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that is quicker than the loop, and no figures."""
    script = write(tmp_path / "stub.py", STUB.replace("SLOW", "0"))
    monkeypatch.setattr(units, "SCRIPT", script)
    monkeypatch.setattr(harness, "draw", lambda *_: None)
    return script


# --- the file


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("baseline", "baselin", "no key 'baselin', is baseline meant"),
        ("seeds = [3, 1]", "", "seeds must be a list"),
        ("[3, 1]", "[]", "seeds must be whole numbers >= 0, one at least"),
        ("[3, 1]", "[1, 1]", "seeds must differ"),
        ('baseline = "bare"', 'baseline = "alone"', "baseline must be one of the arms bare, ours, got 'alone'"),
        ("[base]", 'picture = "theirs"\n[base]', "picture must be one of the arms"),
        ("[base]", 'equal_compute = "bare"\n[base]', "another arm than the baseline"),
        ("[base]", "processes = 0\n[base]", "processes must be a whole number >= 1"),
        ("[base]", "folds = 0\n[base]", "folds must be a whole number >= 1"),
        ("[base]", "folds = 2\n[base]", 'folds are of the photographs of data = "hdr-folder"'),
        (
            "content_weight = 0.5",
            'val_names = ["a.hdr"]',
            "val_names is not an option of a study's file: folds says it",
        ),
        ("arms.ours", 'arms."O/o"', "small letters"),
        ("steps = 6", "", "must say how many steps"),
        ("baseline", 'scored = "teacher"\nbaseline', "scored must be ORM or SPGRM, got 'teacher'"),
        ("baseline", 'scored = "SPGRM"\nbaseline', "a bare arm has none"),
        ("steps = 6", 'steps = "six"', "steps.*six"),
        ("steps = 6", "steps = 0", "steps must be >= 1"),
        ("content_weight", "contents_weight", r"\[arms.ours\]: no option 'contents_weight', is content_weight meant"),
        ("content_weight = 0.5", "crop = 32", r"\[arms.ours\]: crop must be the same for all arms.*batch_size"),
        ("content_weight = 0.5", "steps = 7", "steps must be the same"),
        ("content_weight = 0.5", "seed = 7", "seeds of the study says it"),
        ("content_weight = 0.5", 'knowledge_bank = "x"\nloss_weights = "mine"', r"\[arms.ours\].*mine"),
        ("steps = 6", "steps = 6\nbare = true", r"\[base\]: bare is not an option of a study's file: an arm says it"),
        ("steps = 6", 'steps = 6\ndata = "hdr-folder"', "needs --root"),
    ],
)
def test_a_wrong_file_is_rejected_by_name(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert read(write(tmp_path / "right.toml")).seeds == (3, 1)
    with pytest.raises(ValueError, match=complaint):
        read(write(tmp_path / "wrong.toml", SMALL.replace(old, new, 1)))


@pytest.mark.parametrize("path", sorted((BOOST / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_the_studies_that_are_there_are_valid(path: Path) -> None:
    study = read(path, None if plan.read_study(path).base.get("data", "synthetic") == "synthetic" else Path("DATA"))
    assert study.is_bare(study.baseline) == (study.scored == "ORM")
    assert study.base["trackers"] == []
    assert len(study.seeds) >= (2 if path.stem == "trial" else 3)


# --- the runs


def test_a_run_is_started_once_and_then_continued(tmp_path: Path) -> None:
    study = replace(read(write(tmp_path / "s.toml")), device="cuda")
    runs = units.list_units(study, tmp_path)
    assert [(run.arm, run.seed) for run in runs] == [("bare", 3), ("ours", 3), ("bare", 1), ("ours", 1)]
    folder = str(tmp_path / "runs" / "ours" / "seed-3")
    arguments = units.make_command(runs[1], study, None)[2:]
    wanted = ["--steps", "6", "--trackers", "--content-weight", "0.5", "--seed", "3", "--seeds", "1"]
    assert arguments == [*wanted, "--out", folder, "--device", "cuda"]
    runs[1].folder.mkdir(parents=True)
    (runs[1].folder / "config.toml").touch()
    assert units.make_command(runs[1], study, None)[2:] == ["--resume", folder, "--device", "cuda"]
    assert "--bare" in units.make_command(runs[0], study, None)
    photos = replace(study, base={**study.base, "data": "hdr-folder"})
    assert units.make_command(runs[1], photos, Path("P"))[4:6] == ["--root", "P"]


def test_a_study_knows_its_photographs_with_procedural_scenes_and_a_pool_beside_them(tmp_path: Path) -> None:
    for name in "abcde":
        skt.write_image(tmp_path / f"{name}.hdr", torch.rand(3, 64, 96))
    study = read(write(tmp_path / "s.toml"))
    mixed = {"procedural_share": 0.5, "pool": 3, "exposure_ratios": [2.0, 4.0]}
    base = {**study.base, **mixed, "data": "hdr-folder", "crop": 16, "val_crop": 16}
    found = harness.list_data(replace(study, base=base), tmp_path)
    assert {split: list(names) for split, names in found.items()} == {
        "train": ["a.hdr", "b.hdr", "c.hdr", "d.hdr"],
        "val": ["e.hdr"],
    }


def test_a_study_of_simulated_scenes_goes_on_with_the_same_scenes_only(tmp_path: Path) -> None:
    study = read(write(tmp_path / "s.toml"))
    raw = replace(study, base={**study.base, "data": "bracketire", "crop": 16, "val_crop": 16})
    assert harness.list_data(study, None) is None
    for seed in (0, 1):
        scenes = skt.SyntheticScenes(1, 16, seed=seed, camera=skt.RawCamera(subframes=1))
        skt.simulation.simulate_dataset("bracketire", tmp_path / f"{seed}", scenes, scenes, progress=False)
    first, second = (replace(raw, data=harness.list_data(raw, tmp_path / f"{seed}")) for seed in (0, 1))
    assert first.data["layout"] == "bracketire"
    plan.write_study(tmp_path / "out", first)
    assert plan.join_studies(tmp_path / "out", first) == first
    with pytest.raises(ValueError, match=r"data\.first_samples\.Train was"):
        plan.join_studies(tmp_path / "out", second)


def test_at_equal_compute_the_baseline_has_as_many_steps_more_as_a_step_is_slower(tmp_path: Path) -> None:
    study = read(write(tmp_path / "s.toml", EQUAL))
    longer = study.with_equal_compute({"bare": 1.0, "ours": 2.4})
    assert longer.options("bare, equal compute") == {"steps": 14, "trackers": [], "bare": True}
    assert units.list_units(longer, tmp_path)[2].folder.parent.name == "bare-equal-compute"
    assert study.with_equal_compute({}) == study


def test_workers_share_processors_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert units.make_environment(0, 2, "cpu")["OMP_NUM_THREADS"] == "3"
    assert [units.make_environment(slot, 3, "cuda")["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["2", "5", "2"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert units.make_environment(0, 2, "cpu")["OMP_NUM_THREADS"] == "1"


def test_a_study_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path: Path, stub: Path) -> None:
    file, whole, cut = write(tmp_path / "s.toml"), tmp_path / "whole", tmp_path / "cut"
    assert harness.main([str(file), "--out", str(whole), "--processes", "2"]) == 0
    slow = write(tmp_path / "slow.py", STUB.replace("SLOW", "0.5"))
    script = [sys.executable, "-c", AS_SCRIPT, str(BOOST), str(BOOST.parent), str(slow), str(BOOST / "study.py")]
    process = subprocess.Popen([*script, str(file), "--out", str(cut), "--processes", "2"], stderr=subprocess.PIPE)
    state, patience = cut / "runs" / "ours" / "seed-3" / "state", time.monotonic() + 120
    while not state.exists() and time.monotonic() < patience:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert "the same command continues" in said
    assert 0 < json.loads(state.read_text())["step"] < 6
    assert not (cut / "results.jsonl").exists()
    assert harness.main([str(file), "--out", str(cut), "--processes", "2"]) == 0
    assert (cut / "results.jsonl").read_text() == (whole / "results.jsonl").read_text()
    assert len((whole / "results.jsonl").read_text().splitlines()) == 4
    log = (cut / "runs" / "ours" / "seed-3.log").read_text().splitlines()
    assert ["--resume" in line for line in log if line.startswith("$")] == [False, True]


def test_a_run_that_fails_is_shown_and_the_others_go_on(
    tmp_path: Path, stub: Path, capsys: pytest.CaptureFixture
) -> None:
    file = write(tmp_path / "s.toml", SMALL + "[arms.bold]\nlr = 9.0\n")
    assert harness.main([str(file), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "bold, seed 3 failed with status 1" in shown.err
    assert "    the learning rate is too bold" in shown.err
    assert "org=1" not in shown.err  # what a progress bar wrote over
    assert "2 runs failed: bold, seed 3; bold, seed 1" in shown.err
    assert "4 of 6 runs are finished" in shown.out


def test_a_folder_holds_one_study_to_which_seeds_and_arms_may_be_added(tmp_path: Path, stub: Path) -> None:
    file, out = write(tmp_path / "s.toml"), tmp_path / "out"
    begin = [str(file), "--out", str(out)]
    assert harness.main([*begin, "--seeds", "3", "--arms", "bare"]) == 0
    assert len((out / "results.jsonl").read_text().splitlines()) == 1
    for old, new, difference in (
        ("content_weight = 0.5", "content_weight = 0.25", "arms.ours.content_weight was 0.5 and is 0.25 now"),
        ("steps = 6", "steps = 7", "base.steps was 6 and is 7 now"),
        ("trackers", "lr = 0.5\ntrackers", "base.lr was null and is 0.5 now"),
    ):
        write(file, SMALL.replace(old, new))
        with pytest.raises(ValueError, match=difference):
            harness.main(begin)
    write(file, SMALL + "[arms.third]\ncolor_weight = 0.5\n")
    assert harness.main([*begin, "--seeds", "1"]) == 0
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(row["arm"], row["seed"]) for row in rows] == [("bare", 1), ("ours", 1), ("third", 1), ("bare", 3)]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(ValueError, match="holds no study"):
        harness.main([str(file), "--out", str(other)])
    with pytest.raises(ValueError, match="--arms must be among bare, ours, third, got fourth"):
        harness.main([*begin, "--arms", "fourth"])


def test_paths_are_those_of_the_working_directory(tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text("import torch\n\nlinear = lambda: torch.nn.Linear(1, 1)\n")
    write(tmp_path / "s.toml", SMALL.replace("steps", 'orm = "my_nets:linear"\nsteps'))
    assert harness.main(["s.toml", "--out", "out"]) == 0
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 4
    monkeypatch.chdir(stub.parent.parent)  # the study goes on from anywhere
    assert harness.main([str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--report"]) == 0


def test_what_no_run_could_start_with_is_rejected_before_the_first(tmp_path: Path, stub: Path) -> None:
    for text, root, complaint in (
        (SMALL, tmp_path, "read no files: leave it away"),
        (SMALL.replace("steps", 'orm = "no_such_module:net"\nsteps'), None, "does not give a network"),
        (SMALL.replace("steps", 'data = "bracketire"\nsteps'), tmp_path / "none", "none"),
    ):
        out, file = tmp_path / "out", write(tmp_path / "s.toml", text)
        with pytest.raises((ValueError, OSError), match=complaint):
            harness.main([str(file), "--out", str(out), *([] if root is None else ["--root", str(root)])])
        assert not out.exists()


def test_two_studies_do_not_work_in_one_folder(tmp_path: Path, stub: Path) -> None:
    file = write(tmp_path / "s.toml")
    with units.locked(tmp_path / "out"), pytest.raises(ValueError, match="another study works there"):
        harness.main([str(file), "--out", str(tmp_path / "out")])
    assert harness.main([str(file), "--out", str(tmp_path / "out")]) == 0


def test_a_study_waits_for_the_runs_that_another_one_left_behind(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / "runs" / "bare" / "seed-0")]
    with subprocess.Popen(sleeper) as left:
        with pytest.raises(ValueError, match=f"process {left.pid}, a run that a study left behind"):
            units.locked(tmp_path).__enter__()
        left.kill()
    with units.locked(tmp_path):
        pass


@pytest.mark.slow
def test_the_trial_runs_from_end_to_end(tmp_path: Path) -> None:
    out, command = tmp_path / "out", [sys.executable, str(BOOST / "study.py"), str(BOOST / "studies" / "trial.toml")]
    command += ["--out", str(out), "--processes", "2", "--device", "cpu", "--arms", "bare", "recommended"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 of 6 runs are finished" in done.stdout  # the longer ones take their time
    assert "Not paired" not in done.stderr
    assert json.loads((out / "timing.json").read_text())["ratios"]["recommended"] > 1
    for name in ("gains.png", "curves.png", "diagnosis.png", "pictures.png"):
        assert (out / name).stat().st_size > 5000
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(row["arm"], row["seed"]) for row in rows] == [(a, s) for s in (0, 1) for a in ("bare", "recommended")]
    assert rows[0]["start"] == rows[1]["start"]
    assert rows[0]["start"] != rows[2]["start"]
    assert set(rows[1]["gradients"]) == set(figures.PLACES)
    assert len(rows[1]["scores"]["SPGRM"]["PSNR-L"]) == 4
