"""The reference loop on several processes, killed, interrupted, continued, and with its other options."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import skt_components as skt
from skt_components import evaluation, training
from skt_components.models.registry import NETWORKS
from skt_components.training import explain, parse_options

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ["--crop", "16", "--val-crop", "16", "--log-every", "5", "--validate-every", "100", "--trackers"]
QUICK = [*TINY, "--val-samples", "2", "--start", "random"]
NO_BANK = ["--knowledge-bank", "none"]
STEPS = 24  # of the run that is killed
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


NO_PICTURES = """
import runpy, sys
from skt_components import evaluation
evaluation.save_samples = lambda path, rows: open(path, "wb").close()
evaluation.save_curves = lambda metrics, path: open(path, "wb").close()
"""
RUN = f"""
sys.argv[0] = {str(EXAMPLES / "train_full.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(
    *arguments: str, processes: int = 1, cwd: Path, script: Path = EXAMPLES / "train_full.py"
) -> subprocess.CompletedProcess:
    # Without "--", torchrun takes --start for an option of its own.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--"]
    command = [sys.executable, *(launch if processes > 1 else []), str(script), *arguments]
    return subprocess.run(command, cwd=cwd, env=ALONE, capture_output=True, text=True, timeout=300, check=False)


def checkpoint(run: Path, name: str = "framework") -> dict:
    state = skt.training.CheckpointFolder(run / "checkpoints", name).load_newest()
    assert state is not None
    return state


def metrics(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


def equal(one: object, other: object) -> bool:
    """Bit by bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))  # type: ignore[arg-type]
    return one == other


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


# --- several processes


@pytest.fixture(scope="module")
def one_batch_in_three_ways(make_once: Callable[[str, Callable[[Path], None]], Path]) -> list[Path]:
    """Runs with four samples a step: of one process, of two, and of one in two passes."""
    options = [*TINY, "--steps", "4", "--lr", "2e-4", "--precision", "fp64", "--compare", "--val-samples", "9"]
    runs = {
        "one": (1, ["--batch-size", "4"]),
        "two": (2, ["--batch-size", "2"]),
        "passes": (1, ["--batch-size", "2", "--accumulate", "2"]),
    }

    def make(folder: Path) -> None:
        script = folder / "quick.py"
        script.write_text(NO_PICTURES + RUN)
        for name, (processes, more) in runs.items():
            arguments = [*options, *more, "--out", str(folder / name)]
            done = run_script(*arguments, processes=processes, cwd=folder, script=script)
            assert done.returncode == 0, done.stderr[-3000:]

    folder = make_once("three_ways", make)
    return [folder / name for name in runs]


@pytest.mark.slow
def test_two_processes_and_two_passes_are_one_large_batch(one_batch_in_three_ways: list[Path]) -> None:
    for name in ("framework", "bare"):
        one, two, passes = (checkpoint(run, name)["module"] for run in one_batch_in_three_ways)
        assert equal(two, passes)  # the same passes, added by another hand
        assert len([key for key in one if key.startswith("orm.")]) == 50
        # In float64: in float32, sums of another order move weights whose gradient is almost 0.
        assert distance(one, two) <= 1e-9


@pytest.mark.slow
def test_metrics_are_of_all_pictures_once_and_in_order_whoever_scored_them(
    one_batch_in_three_ways: list[Path],
) -> None:
    one, two, _ = one_batch_in_three_ways
    scores = [json.loads((run / "scores.json").read_text()) for run in (one, two)]
    for ours, theirs in zip(*[s["framework"]["ORM"].values() for s in scores], strict=True):
        assert len(ours) == len(theirs) == 9  # five and four of two processes, in batches of four
        assert len(set(ours)) == 9
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # SSIM may be almost 0
    logs = [metrics(run) for run in (one, two)]
    assert [(line["run"], line["step"]) for line in logs[0]] == [(line["run"], line["step"]) for line in logs[1]]
    for ours, theirs in zip(*logs, strict=True):
        assert ours.get("terms", {}) == pytest.approx(theirs.get("terms", {}), rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_a_mistake_ends_all_processes_with_its_message(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    options = [*QUICK, *NO_BANK, "--steps", "2", "--out", str(tmp_path / "run")]
    done = run_script(*options, processes=2, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("train_full.py: --out") == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


STRANGER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(18, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)
        self.forgotten = nn.Linear(3, 3)

    def forward(self, bracket):
        return torch.sigmoid(self.last(self.norm(self.first(bracket.flatten(1, 2)))))
"""


@pytest.mark.slow
def test_unused_layers_batch_statistics_and_idle_skams_are_no_trouble_for_two_processes(tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text(STRANGER)
    options = [*QUICK, "--steps", "3", "--batch-size", "2", "--alignment-weight", "0", "--out", str(tmp_path / "run")]
    options += ["--orm", "stranger:Net", "--taps", "first", "norm", "last"]
    done = run_script(*options, processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    state = checkpoint(tmp_path / "run")["module"]
    assert state["orm.norm.num_batches_tracked"] == 3


# --- killed, stopped, continued

SERVER = (
    "import gc, json, os, torch, torch._dynamo, torch.utils.tensorboard, accelerate, jinja2, safetensors.torch, tyro\n"
    + NO_PICTURES
    + """
from skt_components import soft_histogram, training
torch.set_num_threads(1)  # everything is imported once; every run is a fork of this process
soft_histogram(torch.zeros(1, 1, 2, 2))  # loads numba and its compiled functions before the forks
gc.collect()
gc.freeze()  # which the runs would otherwise look through at their end
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.argv = [sys.argv[0], *json.loads(line)]
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
)


class Server:
    """Starts runs in milliseconds, as processes of their own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", f"import sys; sys.argv[0] = {str(EXAMPLES / 'train_full.py')!r}\n{SERVER}"]
        log = open(folder / "server.log", "w")  # noqa: SIM115  (closed with the process)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=ALONE, cwd=folder)

    def run(self, arguments: list[str], wait: Callable[[], None] | None = None) -> int:
        """Run to the end, or kill when the wait is over; returns the exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if wait is not None:
            wait()
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        while not (line := self.process.stdout.readline()).strip().lstrip("-").isdigit():
            pass  # the run's own words
        return int(line)


@pytest.fixture
def server(tmp_path: Path):
    started = Server(tmp_path)
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    started.process.wait(timeout=60)


def done_steps(run: Path) -> int:
    """How far both networks are, together."""
    folders = [skt.training.CheckpointFolder(run / "checkpoints", name) for name in ("framework", "bare")]
    return sum(max(folder.steps(), default=0) for folder in folders)


def wait_for(run: Path, further: int, seconds: float) -> None:
    """Until there are so many more checkpoints, or there is no hope of it, and then a moment."""
    start, deadline = done_steps(run), time.monotonic() + 20
    while done_steps(run) < start + further and time.monotonic() < deadline and start < 2 * STEPS - further:
        time.sleep(0.01)
    time.sleep(seconds)


def check_whole(run: Path) -> None:
    """Every file that has its name is whole."""
    for path in run.rglob("*.ckpt"):
        if not path.name.startswith("."):
            assert {"module", "optimizer", "step", "best"} <= skt.training.load_checkpoint(path).keys()
    for path in run.rglob("*.safetensors"):
        assert load_file(path)
    assert skt.training.read_options(run / "config.toml")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_twenty_kills_change_nothing(tmp_path: Path, server: Server) -> None:
    options = [*QUICK, *NO_BANK, "--steps", str(STEPS), "--batch-size", "1", "--checkpoint-every", "1"]
    options += ["--validate-every", "7", "--ema-decay", "0.9", "--compare"]
    options += ["--warmup-steps", "5", "--transfer-ramp", "20"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert server.run([*options, "--out", str(whole)]) == 0
    rng, kills, steps = random.Random(0), 0, []
    first = [*options, "--out", str(killed)]
    while kills < 20:
        arguments = ["--resume", str(killed)] if (killed / "config.toml").is_file() else first
        further = rng.randint(0, 2)  # checkpoints; 0: while it starts
        code = server.run(arguments, partial(wait_for, killed, further, rng.uniform(0.0, 0.1)))
        if code != -signal.SIGKILL:
            break  # it came to its end
        kills += 1
        if (killed / "config.toml").is_file():
            check_whole(killed)
            steps.append(done_steps(killed))
    assert kills == 20, f"only {kills} kills"
    assert len(set(steps)) > 3, steps  # they met the run in different places
    assert server.run(["--resume", str(killed)]) == 0
    check_whole(killed)
    for name in ("framework", "bare"):
        assert equal(checkpoint(killed, name), checkpoint(whole, name))
    for name in ("orm.safetensors", "bare.safetensors", "orm-best.safetensors"):
        assert equal(load_file(killed / name), load_file(whole / name)), name
    for name in ("config.toml", "scores.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(killed) == metrics(whole)
    assert list(killed.rglob(".*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_whole_step(tmp_path: Path, number: int) -> None:
    options = [*QUICK, *NO_BANK, "--steps", "100000", "--batch-size", "1", "--checkpoint-every", "100000"]
    options += ["--workers", "1", "--out", str(tmp_path / "run")]
    command = [sys.executable, str(EXAMPLES / "train_full.py"), *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=ALONE, stderr=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        log = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (log.is_file() and '"terms"' in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, number)  # as schedulers and terminals do: the workers get it too
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("train_full.py: stopped after ")
    assert f"continue with --resume {tmp_path / 'run'}" in errors
    assert checkpoint(tmp_path / "run")["step"] >= 1


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_at_the_same_step(tmp_path: Path) -> None:
    script = tmp_path / "one_of_two.py"
    script.write_text(
        "import os, runpy, signal, sys\n"
        "from skt_components import training\n"
        "check = training.StepWatch.check\n"
        "def watched(self, step, *args):\n"
        "    if step == 3 and os.environ['RANK'] == '1':\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    check(self, step, *args)\n"
        "training.StepWatch.check = watched\n"
        f"sys.argv[0] = {str(EXAMPLES / 'train_full.py')!r}\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    print(f'rank {os.environ[\"RANK\"]}: {stop.code}', flush=True)\n"
    )
    options = [*QUICK, *NO_BANK, "--steps", "50", "--batch-size", "1", "--checkpoint-every", "100"]
    done = run_script(*options, "--out", str(tmp_path / "run"), processes=2, cwd=tmp_path, script=script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("rank")) == [
        "rank 0: 143",
        "rank 1: 143",
    ]
    assert done.stderr.count("train_full.py: stopped after 4 steps") == 2
    assert checkpoint(tmp_path / "run")["step"] == 4


# --- options of the engine, in this process


@pytest.fixture(autouse=True, scope="module")
def _no_pictures() -> Iterator[None]:
    """Pictures take longer than these runs; the tests of the main job draw them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "save_samples", lambda path, rows: Path(path).write_bytes(b"picture"))
        patch.setattr(evaluation, "save_curves", lambda metrics, path: Path(path).write_bytes(b"picture"))
        yield


SHORT = [*QUICK, "--batch-size", "2"]
AVERAGED = (
    *(*SHORT, *NO_BANK, "--ema-decay", "0.5", "--accumulate", "2", "--optimizer", "adamw", "--weight-decay", "0.1"),
    *("--schedule", "constant", "--checkpoint-every", "2", "--clip-grad", "0.01", "--validate-every", "2"),
    *("--log-every", "1"),
)


class Own(nn.Module):
    """A network of a user."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, bracket: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(bracket[:, 0, :3]))).sigmoid()


class BrokenLater(Own):
    """A network whose pictures have a NaN as soon as it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, bracket: torch.Tensor) -> torch.Tensor:
        picture = super().forward(bracket)
        if self.training:
            self.steps += 1
        broken = torch.zeros_like(picture)
        broken[..., 0, 0] = torch.nan if self.steps and not self.training else 0
        return picture + broken


@pytest.fixture(autouse=True, scope="module")
def _networks() -> Iterator[None]:
    """A module that a user wrote."""
    module = types.ModuleType("networks")
    module.Own, module.BrokenLater = Own, BrokenLater  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "networks", module)
        yield


OWN = [*NO_BANK, "--taps", "first", "second", "third", "--orm"]


@pytest.fixture(scope="module")
def averaged(train, make_once: Callable[[str, Callable[[Path], None]], Path], tmp_path_factory) -> Path:
    """A finished run of four steps, with an average of the weights."""
    folder = make_once("averaged", lambda folder: train([*AVERAGED, "--steps", "4", "--out", str(folder / "run")]))
    return shutil.copytree(folder / "run", tmp_path_factory.mktemp("averaged") / "run")  # a test resumes it


def test_n_steps_and_n_more_are_two_n(train, averaged: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    train([*AVERAGED, "--steps", "2", "--out", str(half)])
    train(["--resume", str(half), "--steps", "4", "--orm", "ahdrnet-small", "--taps"])
    assert equal(checkpoint(half), checkpoint(averaged))
    assert equal(*(load_file(run / "orm.safetensors") for run in (half, averaged)))
    assert metrics(half) == metrics(averaged)
    assert [line["step"] for line in metrics(half) if "terms" in line] == [0, 1, 2, 3]
    assert [line["step"] for line in metrics(half) if "validation" in line] == [0, 2, 4]


def test_everything_that_changes_is_in_the_checkpoint(averaged: Path) -> None:
    state = checkpoint(averaged)
    assert state.keys() == {"module", "optimizer", "ema", "best", "checked", "samples_per_step", "step", "options"}
    assert {key.split(".")[0] for key in state["module"]} == {"orm", "spgrm", "skams"}
    assert state["samples_per_step"] == 4
    assert not (averaged / "logs").exists()  # no tracker was asked for


def test_the_average_of_the_weights_is_what_is_kept(averaged: Path) -> None:
    state, kept = checkpoint(averaged), load_file(averaged / "orm.safetensors")
    for key, value in kept.items():
        assert torch.equal(value, state["ema"][f"module.{key}"])
    assert any(not torch.equal(value, state["module"][f"orm.{key}"]) for key, value in kept.items())


def test_a_resume_that_is_rejected_leaves_the_run_as_it_was(train, averaged: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in averaged.rglob("*") if path.is_file()}

    before = files()
    for options, message in (
        (["--batch-size", "3", "--steps", "5"], "made with 4 samples per step, now there are 6"),
        (["--steps", "2"], "--steps 2, but the newest checkpoint is already at step 4"),
        (["--ema-decay", "0", "--steps", "5"], "does not fit, other options: ema"),
        (["--seed", "5"], "--resume: seed was 0 and is 5 now, which is another run"),
    ):
        with pytest.raises(SystemExit, match=message):
            train(["--resume", str(averaged), *options])
    assert files() == before
    train(["--resume", str(averaged)])  # finished: only reports again
    after = files()
    assert len(json.loads((averaged / "environment.json").read_text())) == 2
    rewritten = {path.name for path in before if after[path] != before[path]}
    assert rewritten <= {"environment.json", "README.md"}


def test_a_ramp_keeps_the_teacher_away_at_first(train, tmp_path: Path) -> None:
    options = [*SHORT, "--compare", "--transfer-start", "2"]
    train([*options, "--steps", "2", "--out", str(tmp_path / "run")])
    ours, bare = checkpoint(tmp_path / "run")["module"], checkpoint(tmp_path / "run", "bare")["module"]
    assert all(torch.equal(value, ours[key]) for key, value in bare.items())
    lines = [line for line in metrics(tmp_path / "run") if line.get("gradients")]
    assert all(line["gradients"]["parameters"]["alignment"]["norm"] == 0 for line in lines)
    train(["--resume", str(tmp_path / "run"), "--steps", "3"])
    ours, bare = checkpoint(tmp_path / "run")["module"], checkpoint(tmp_path / "run", "bare")["module"]
    assert any(not torch.equal(value, ours[key]) for key, value in bare.items())


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        (
            "--precision bf16 --workers 1 --perceptual bank --loss-weights paper --org-perceptual-weight 0.01",
            {"org", "content", "color", "alignment", "spgrm"},
        ),
        ("--teacher-stride 1 --alignment-weight 0", {"org", "content", "color", "spgrm"}),
    ],
    ids=["bf16, workers and features", "full teacher without SKAMs"],
)
def test_options_of_the_loss_and_the_machine_train(train, tmp_path: Path, options: str, terms: set[str]) -> None:
    train([*SHORT, *options.split(), "--steps", "2", "--out", str(tmp_path / "run")])
    lines = [line["terms"] for line in metrics(tmp_path / "run") if "terms" in line]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert lines[0] != lines[1]
    assert {term for term, value in lines[1].items() if value} == terms


def test_options_of_speed_and_memory_change_no_result(train, tmp_path: Path) -> None:
    options = [*SHORT, "--steps", "2", "--lr", "1e-4"]
    train([*options, "--out", str(tmp_path / "plain")])
    train([*options, "--channels-last", "--checkpointing", "--out", str(tmp_path / "other")])
    plain, other = (checkpoint(tmp_path / run)["module"] for run in ("plain", "other"))
    assert distance(plain, other) <= 2e-6


def test_compile_is_asked_for_network_and_teacher(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, int] = {}

    def compile_(self: nn.Module, *args: object, **kwargs: object) -> None:
        name, own = type(self).__name__, self._call_impl
        called = torch.compile(own, backend="eager") if name == "Own" else own  # which is no network of minutes
        calls[name] = 0

        def count(*args: object, **kwargs: object) -> object:
            calls[name] += 1
            return called(*args, **kwargs)

        self._compiled_call_impl = count

    monkeypatch.setattr(nn.Module, "compile", compile_)
    options = [*SHORT, *OWN, "networks:Own", "--steps", "2"]
    train([*options, "--compile", "--out", str(tmp_path / "compiled")])
    train([*options, "--out", str(tmp_path / "plain")])
    assert calls.keys() == {"Own", "SPGRM"}
    assert min(calls.values()) >= 2  # both in every step
    plain, other = (checkpoint(tmp_path / run)["module"] for run in ("plain", "compiled"))
    assert distance(plain, other) <= 1e-6


@pytest.mark.inductor
@pytest.mark.parametrize("camera", ["default", "raw"])
@pytest.mark.parametrize("network", ["ahdrnet-small", "hdr-transformer-small", "sctnet-small", "tmrnet-small"])
def test_inductor_trains_validates_at_another_size_and_resumes(
    train, tmp_path: Path, network: str, camera: str
) -> None:
    options = [*SHORT, "--orm", network, "--knowledge-bank", "none", "--val-crop", "24", "--lr", "1e-4"]
    options += [] if camera == "default" else ["--camera", camera]
    train([*options, "--compile", "--steps", "2", "--out", str(tmp_path / "run")])
    first = checkpoint(tmp_path / "run")["module"]
    train(["--resume", str(tmp_path / "run"), "--steps", "3"])
    assert 0 < distance(first, checkpoint(tmp_path / "run")["module"]) < 1e-3


def test_several_seeds_are_reported_together(train, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    options = [*SHORT, *OWN, "networks:Own", "--steps", "2", "--compare", "--val-samples", "3"]
    train([*options, "--seeds", "2", "--seed", "5", "--out", str(run)])
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"seed-5", "seed-6"}
    shown = capsys.readouterr().out
    assert "paired gain over 2 seeds and 3 pictures" in shown
    assert shown.strip().endswith((run / "table.txt").read_text().strip())
    scores = [json.loads((run / f"seed-{seed}" / "scores.json").read_text()) for seed in (5, 6)]
    mean = np.mean([np.mean(s["framework"]["ORM"]["PSNR-mu"]) for s in scores])
    assert f"{mean:.3f}" in next(line for line in shown.splitlines() if line.startswith("ORM after"))
    assert scores[0] != scores[1]
    train([*options, "--seed", "6", "--out", str(tmp_path / "alone")])
    alone, within = (checkpoint(folder)["module"] for folder in (tmp_path / "alone", run / "seed-6"))
    assert equal(alone, within)
    before = (run / "table.txt").read_text()
    train(["--resume", str(run)])  # finished: only reports again
    assert (run / "table.txt").read_text() == before


def test_nan_in_a_validation_is_reported_and_ends_nothing(train, tmp_path: Path) -> None:
    train([*SHORT, *OWN, "networks:BrokenLater", "--compare", "--steps", "2", "--out", str(tmp_path / "run")])
    notices = [line for line in metrics(tmp_path / "run") if "notice" in line]
    assert [line["run"] for line in notices] == ["framework", "bare"]
    assert {line["step"] for line in notices} == {2}
    assert all(line["notice"] == "NaN in the network's output of 2 of 2 validation pictures" for line in notices)
    assert all((tmp_path / "run" / f"{name}.safetensors").is_file() for name in ("orm", "bare"))
    assert "NaN in the network's output" in (tmp_path / "run" / "README.md").read_text()


def test_a_damaged_picture_is_found_at_the_start_and_later_leaves_a_run_that_says_so(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name in "abc":
        skt.write_image(photographs / f"{name}.hdr", torch.rand(3, 64, 80))
    whole = (photographs / "a.hdr").read_bytes()
    (photographs / "a.hdr").write_bytes(whole[: len(whole) // 2])
    options = [*SHORT, *NO_BANK, "--steps", "40", "--data", "hdr-folder", "--root", str(photographs)]
    with pytest.raises(SystemExit, match=r"a\.hdr: broken or truncated"):
        train([*options, "--out", str(tmp_path / "early")])
    assert not (tmp_path / "early").exists()
    monkeypatch.setattr(skt.HDRFolder, "check_pictures", lambda self: None)  # as if it was damaged after the check
    with pytest.raises(SystemExit, match=r"a\.hdr: broken or truncated"):
        train([*options, "--out", str(tmp_path / "run")])
    assert "a.hdr: broken or truncated" in (tmp_path / "run" / "README.md").read_text()


def test_an_error_of_a_loading_process_is_one_line() -> None:
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  ...\nValueError: a.hdr: truncated\n"
    )
    assert explain(ValueError(text)) == "ValueError: a.hdr: truncated"
    assert explain(ValueError("two\nlines")) == "two\nlines"


@pytest.mark.parametrize("name", ["ahdrnet-small", "hdr-transformer-small", "sctnet-small", "tmrnet-small"])
@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_an_average_has_the_buffers_of_its_network(name: str, decay: float) -> None:
    orm = NETWORKS[name]()
    average = training.build_average(training.TrainConfig(ema_decay=decay), orm)
    for _ in range(5):
        average.update_parameters(orm)
    assert all(torch.equal(a, b) for a, b in zip(average.module.buffers(), orm.buffers(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trackers", "fax"], r"--trackers must be among .*tensorboard, .* got 'fax'"),
        (["--trackers", "comet_ml"], "--trackers comet_ml needs its package: pip install comet_ml"),
        (["--precision", "fp16", "--device", "cpu"], "--precision fp16 needs a GPU"),
    ],
)
def test_what_the_engine_cannot_do_is_explained(train, tmp_path: Path, options, message) -> None:
    with pytest.raises(SystemExit, match=message):
        train([*SHORT, *options, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_dry_run_trains_nothing_and_leaves_nothing(train, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train([*SHORT, *NO_BANK, "--dry-run", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
    shown = capsys.readouterr().out
    for word in ("parameters", "steps", "operations"):
        assert word in shown
    with pytest.raises(SystemExit, match="missing"):
        train([*SHORT, *NO_BANK, "--dry-run", "--data", "tel", "--root", str(tmp_path / "missing")])


def test_the_options_of_two_configurations_do_not_mix() -> None:
    config = parse_options(["--steps", "3", "--trackers"])
    assert dataclasses.asdict(config)["trackers"] == ()
