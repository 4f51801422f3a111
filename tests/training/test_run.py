"""A run around a network of one layer: killed, continued, with other options, and by two processes."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from skt_components.data.sample import HDRSample
from skt_components.models import load_weights
from skt_components.training import (
    WEIGHTS_FILES,
    ResourceError,
    Run,
    RunFolder,
    StoppedError,
    TrainConfig,
    build_average,
    build_optimizer,
    load_checkpoint,
    write_run_summary,
)
from skt_components.training.engine import Engine


class Output:
    def __init__(self, total: Tensor) -> None:
        self.total, self.terms = total, {"org": total}


class Trained(nn.Module):
    """Trains one layer to give the target."""

    def __init__(self) -> None:
        super().__init__()
        self.orm = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, bracket: Tensor, target: Tensor) -> Output:
        return Output((self.orm(bracket[:, 1]) - target).abs().mean())

    @staticmethod
    def forward_orm(network: nn.Module, bracket: Tensor) -> Tensor:
        return network(bracket[:, 1])


class Noise:
    """Random brackets by epoch and index; the targets of the epochs in ``bright`` are a thousand times as bright."""

    bright: tuple[int, ...] = ()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: tuple[int, int]) -> HDRSample:
        noise = torch.rand(4, 6, 8, 8, generator=torch.Generator().manual_seed(8 * key[0] + key[1]))
        gain = 1000 if key[0] in self.bright else 1
        return HDRSample(noise[:3], torch.ones(3), noise[3, :3] * gain, "noise", "srgb")


class Scored:
    """A validator whose score is a function of the weights; it can be killed, or fail."""

    def __init__(self, killed_at: int = 0, error: BaseException | None = None) -> None:
        self.baselines: dict = {}
        self.scored, self.drawn, self.killed_at = 0, [], killed_at
        self.error = Killed() if error is None else error

    def score(self, module: nn.Module, network: Any) -> dict:
        self.scored += 1
        if self.scored == self.killed_at:
            raise self.error
        return {"ORM": {"PSNR-mu": network.weight.detach().double().sum((1, 2, 3))}}

    def draw(self, path: Path, networks: dict) -> None:
        self.drawn.append(path.name)


class Killed(BaseException):
    """Ends a run as a kill does: no code of the run handles it."""


@pytest.fixture(autouse=True)
def _fresh_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from accelerate.state import AcceleratorState

    for slow in ("write_environment", "write_run_summary", "evaluation.save_curves"):
        monkeypatch.setattr(f"skt_components.training.run_folder.{slow}", lambda *_: None)
    monkeypatch.setattr("accelerate.Accelerator.free_memory", lambda self: None)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """The page of a run, which is written in this test."""
    monkeypatch.setattr("skt_components.training.run_folder.write_run_summary", write_run_summary)
    return lambda run: (run / "README.md").read_text(encoding="utf-8")


def train(
    validator: Scored | None = None,
    kill: Callable[[Run, int], None] = lambda run, step: None,
    *,
    name: str = "framework",
    **options,
) -> Run:
    """The loop of ``examples/train_full.py``; ``kill`` is called after every step, before anything is saved."""
    options = {"device": "cpu", "trackers": (), "crop": 8, "val_crop": 16, "batch_size": 2, "log_every": 1, **options}
    config = TrainConfig(**options)
    engine = Engine(config)
    torch.manual_seed(config.seed)
    module, data = Trained(), Noise()
    run_folder = RunFolder(config, engine)
    try:
        model, optimizer = engine.prepare(module, build_optimizer(config, module), data[0, 0])
        average = build_average(config, module.orm)
        validator = validator or Scored()
        run = Run(run_folder, config, run_folder.path, name, module, optimizer, average, validator)  # type: ignore[arg-type]
        with run_folder.explain_errors():
            run.resume()
            with run.batches(data) as batches:
                for step in run.steps():
                    for _ in run.passes(step):
                        with engine.accelerator.accumulate(model):
                            sample, _ = next(batches)
                            output = model(sample.bracket, sample.target)
                            engine.accelerator.backward(output.total)
                            run.record(sample, output, {})
                    run.guard(step, None)
                    optimizer.step()
                    optimizer.zero_grad()
                    if average is not None:
                        average.update_parameters(module.orm)
                    run.log(step, config.learning_rate)
                    kill(run, step)
                    if run.is_saved(step):
                        run.save(step + 1)
                    if run.is_validated(step):
                        run.validate(step + 1)
                    run.stop(step + 1)
            run.finish()
    finally:
        run_folder._release()  # as the end of the process does
    return run


def log(run: Path) -> list[dict]:
    """Lines without the speed, which is another each time."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in found]


def lines(run: Path, kind: str) -> list[int]:
    return [line["step"] for line in log(run) if kind in line]


def state(run: Run) -> dict:
    found = run.checkpoints.load_newest()
    assert found is not None
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return all(map(same, one, other)) if isinstance(one, list) else one == other


EVERY = {"steps": 6, "checkpoint_every": 2, "validate_every": 2}


@pytest.mark.parametrize("validation", [2, 3, 4])
def test_a_kill_during_a_validation_loses_neither_step_nor_score(tmp_path: Path, validation: int) -> None:
    whole = train(out=tmp_path / "whole", **EVERY)
    with pytest.raises(Killed):
        train(Scored(validation), out=tmp_path / "run", **EVERY)
    names = [path.name for path in (tmp_path / "run" / "checkpoints").glob("framework-0*")]
    assert f"framework-{2 * validation - 2:08d}.ckpt" in names
    rest = Scored()
    run = train(rest, resume=tmp_path / "run", **EVERY)
    assert rest.scored == 5 - validation  # and the one that was killed, once
    assert same(state(run), state(whole))
    assert load_checkpoint(run.checkpoints.best)["step"] == load_checkpoint(whole.checkpoints.best)["step"]
    for kind in ("terms", "validation"):
        assert lines(tmp_path / "run", kind) == lines(tmp_path / "whole", kind)


def test_a_validation_that_fails_loses_no_step(tmp_path: Path, page: Callable[[Path], str]) -> None:
    options = {"steps": 4, "validate_every": 2, "checkpoint_every": 100}
    whole = train(out=tmp_path / "whole", **options)
    with pytest.raises(ResourceError, match="out of memory"):
        train(Scored(2, RuntimeError("out of memory")), out=tmp_path / "run", **options)  # the first is of step 0
    assert lines(tmp_path / "run", "validation") == [0]
    assert "out of memory" in page(tmp_path / "run")
    assert "framework 2 of 4 steps" in page(tmp_path / "run")
    run = train(resume=tmp_path / "run", **options)
    assert run.start == 2
    assert same(state(run), state(whole))


def test_a_stop_before_a_validation_does_not_lose_it(tmp_path: Path, page: Callable[[Path], str]) -> None:
    options = {"steps": 6, "validate_every": 2, "checkpoint_every": 100}
    validators = {"whole": Scored(), "stopped": Scored(), "resumed": Scored()}
    whole = train(validators["whole"], out=tmp_path / "whole", **options)

    def stop(run: Run, step: int) -> None:
        if step == 2:  # it is found in step 3, after which a validation is due
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError, match="stopped after 4 steps"):
        train(validators["stopped"], stop, out=tmp_path / "run", **options)
    assert "framework 4 of 6 steps" in page(tmp_path / "run")  # a run that was stopped explains itself too
    run = train(validators["resumed"], resume=tmp_path / "run", **options)
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert same(state(run), state(whole))
    assert validators["stopped"].drawn == ["orm-00000002.png"]
    assert validators["resumed"].drawn == ["orm-00000004.png"]
    assert validators["whole"].drawn == ["orm-00000002.png", "orm-00000004.png"]


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_steps_after_the_last_checkpoint_are_repeated(tmp_path: Path, error: type[BaseException]) -> None:
    def kill(run: Run, step: int) -> None:
        if step == 3:
            raise error

    options = {**EVERY, "validate_every": 100, "ema_decay": 0.5, "accumulate": 2}
    whole = train(out=tmp_path / "whole", **options)
    with pytest.raises(error):
        train(kill=kill, out=tmp_path / "run", **options)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"run": "framework", "step": 3, "te')  # as a killed run leaves it
    run = train(resume=tmp_path / "run", **options)
    assert run.start == 2
    assert same(state(run), state(whole))
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert (tmp_path / "run" / "config.toml").read_text() == (tmp_path / "whole" / "config.toml").read_text()


def test_a_broken_newest_checkpoint_is_reported_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = train(out=tmp_path / "whole", **EVERY)
    newest = train(out=tmp_path / "run", **EVERY).checkpoints.path(6)
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    run = train(resume=tmp_path / "run", **EVERY)
    assert "framework-00000006.ckpt is not a readable checkpoint" in capsys.readouterr().err
    assert same(state(run), state(whole))
    assert lines(tmp_path / "run", "notice") == [4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_run_with_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Callable[[Path], str]
) -> None:
    save, steps = torch.save, []

    def full(state: dict, path: Path) -> None:
        steps.append(state["step"])
        save(state, "/dev/full" if len(steps) > 1 else path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        message = r"checkpoint of step 4 could not be written .*; the newest is of step 2"
        with pytest.raises(OSError, match=message):
            train(out=tmp_path / "run", **{**EVERY, "validate_every": 100})
    assert re.search(message, page(tmp_path / "run"))
    run = train(resume=tmp_path / "run", **{**EVERY, "validate_every": 100})
    assert (run.start, state(run)["step"]) == (2, 6)


def test_a_spike_is_reported_and_its_batch_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noise, "bright", (5, 9))
    train(out=tmp_path / "run", steps=44, spike_factor=5.0, log_every=50)  # four steps an epoch
    notices = [line for line in log(tmp_path / "run") if "notice" in line]
    kept = sorted((tmp_path / "run" / "inspect").iterdir())
    assert len(notices) == len(kept) > 0
    assert all("the loss jumped to" in line["notice"] for line in notices)
    assert {line["step"] // 4 for line in notices} <= {5, 9}
    assert all(load_file(path)["target"].max() > 500 for path in kept)


@pytest.mark.parametrize("name", ["framework", "bare"])
def test_nan_in_a_validation_is_reported_and_ends_nothing(tmp_path: Path, name: str) -> None:
    class Broken(Scored):
        def score(self, module: nn.Module, network: Any) -> dict:
            self.scored += 1
            return {"ORM": {"PSNR-mu": torch.tensor([1.0, float("nan") if self.scored > 1 else 1.0])}}

    train(Broken(), name=name, out=tmp_path / "run", **{**EVERY, "steps": 4})
    found = [line for line in log(tmp_path / "run") if "notice" in line]
    assert {line["step"]: line["notice"] for line in found} == dict.fromkeys(
        (2, 4), "NaN in the network's output of 1 of 2 validation pictures"
    )
    assert (tmp_path / "run" / f"{WEIGHTS_FILES[name]}.safetensors").is_file()


def test_the_best_is_marked_when_its_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("skt_components.training.run.save_weights", fail)
        message = r"the disk is full \(.*No space left on device\): free some space; then continue with resume="
        with pytest.raises(ResourceError, match=message):
            train(out=tmp_path / "run", **EVERY)
    assert lines(tmp_path / "run", "validation") == [0]
    run = train(resume=tmp_path / "run", **EVERY)
    assert lines(tmp_path / "run", "validation") == [0, 2, 4, 6]
    assert (tmp_path / "run" / "orm-best.safetensors").is_file()
    assert load_checkpoint(run.checkpoints.best)["step"] in (2, 4, 6)


def test_a_finished_run_whose_checkpoints_are_gone_does_not_begin_again(tmp_path: Path) -> None:
    run = train(out=tmp_path / "run", **EVERY)
    for path in run.checkpoints.folder.iterdir():
        path.unlink()

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}

    before = files()
    with pytest.raises(
        ValueError, match=r"resume: no checkpoint of framework in .*, although it has .*orm.safetensors"
    ):
        train(resume=tmp_path / "run", **EVERY)
    for path in run.folder.glob("*.safetensors"):
        path.unlink()
        del before[path]
    with pytest.raises(ValueError, match=r"although its log has step 5: put the checkpoints back, or start another"):
        train(resume=tmp_path / "run", **EVERY)
    assert files() == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    def kill(run: Run, step: int) -> None:
        if step == 1:
            raise Killed

    with pytest.raises(Killed):
        train(kill=kill, out=tmp_path / "run", **EVERY)
    (tmp_path / "run" / f".metrics.jsonl.{'0' * 32}.jsonl").write_text("half")
    (tmp_path / "run" / "mine.txt").write_text("mine")
    train(resume=tmp_path / "run", **EVERY)
    assert lines(tmp_path / "run", "terms") == [0, 1, 2, 3, 4, 5]
    hidden = [path.name for path in (tmp_path / "run").rglob(".*")]
    assert hidden == []
    assert (tmp_path / "run" / "mine.txt").is_file()


def test_options_of_the_optimizer_apply_to_a_resumed_run(tmp_path: Path) -> None:
    train(out=tmp_path / "run", steps=2)
    run = train(resume=tmp_path / "run", steps=3, weight_decay=0.5)
    (group,) = state(run)["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5
    assert float(state(run)["optimizer"]["state"][0]["step"]) == 3


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)])
def test_the_memory_format_may_change(tmp_path: Path, first: bool, then: bool) -> None:
    whole = train(out=tmp_path / "whole", steps=4)
    train(out=tmp_path / "run", steps=2, channels_last=first)
    run = train(resume=tmp_path / "run", steps=4, channels_last=then)
    for key, value in state(whole)["module"].items():
        torch.testing.assert_close(state(run)["module"][key], value, rtol=0, atol=1e-6)


def test_an_edited_file_of_options_is_compared_with_the_checkpoint(tmp_path: Path) -> None:
    train(out=tmp_path / "run", steps=2)
    path = tmp_path / "run" / "config.toml"
    text = path.read_text()
    for old, new, message in (
        ("crop = 8", "crop = 16", "crop is 16 in .*config.toml, but the checkpoint of step 2 was made with 8"),
        ("seed = 0", "seed = 5", "seed is 5 in .*config.toml, but the checkpoint of step 2 was made with 0"),
        ("", "teacher_stride = 1\n", "teacher_stride is 1 in .*, but .* was made with not given"),
    ):
        path.write_text(re.sub(rf"^{old}", new, text, count=1, flags=re.MULTILINE))
        key, value = new.split(" = ")
        with pytest.raises(ValueError, match=f"resume: {message}"):
            train(resume=tmp_path / "run", **{"steps": 3, key: int(value)})
        path.write_text(text)
    assert train(resume=tmp_path / "run", steps=3).start == 2


def test_only_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    train(out=tmp_path / "run", steps=2)
    told = []

    def second(run: Run, step: int) -> None:
        before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
        with pytest.raises(BlockingIOError, match=r"run is in use by process \d+ on "):
            RunFolder(TrainConfig(resume=tmp_path / "run", device="cpu", trackers=(), crop=8, val_crop=16), run.engine)
        told.append((tmp_path / "run" / "metrics.jsonl").read_bytes() == before)

    train(kill=second, resume=tmp_path / "run", steps=4)
    assert told == [True, True]
    train(resume=tmp_path / "run", steps=5)
    assert not (tmp_path / "run" / ".lock").exists()


def test_tensorboard_is_rewound_and_other_trainings_are_left_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def kill(run: Run, step: int) -> None:
        run.engine.accelerator.log({"bare/terms/org": 0.5}, step=step)
        if step == 3:
            raise Killed

    more = {**EVERY, "trackers": ("tensorboard",), "checkpoint_every": 3, "validate_every": 3}
    with pytest.raises(Killed):
        train(kill=kill, out=tmp_path / "run", **more)
    train(resume=tmp_path / "run", **more)
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "skt_components"), purge_orphaned_data=False)
    events.Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["framework/terms/org"] == [0, 1, 2, 3, 4, 5]
    assert steps["framework/validation/ORM/PSNR-mu"] == [0, 3, 6]
    assert steps["bare/terms/org"] == [0, 1, 2, 3]
    told = capfd.readouterr().err
    assert "\r" not in told  # no bar
    assert re.search(r"^framework: step 6 of 6, \d+\.\d samples/s, org \d\.\d{4}$", told, flags=re.MULTILINE)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_a_closed_terminal_or_a_notice_saves_the_step_and_ends(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]

    def send(run: Run, step: int) -> None:
        if step == 1:
            signal.raise_signal(number)

    with pytest.raises(StoppedError, match="stopped after 3 steps; continue with resume=") as stop:
        train(kill=send, out=tmp_path / "run", steps=6)
    assert stop.value.number == number
    assert train(resume=tmp_path / "run", steps=6).start == 3


def test_a_checkpoint_is_no_file_of_weights_and_the_error_names_one(tmp_path: Path) -> None:
    run = train(out=tmp_path / "run", steps=2)
    with pytest.raises(ValueError, match=r"00002.ckpt is a checkpoint, from which .*: use .*orm-best\.s.* or .*orm\.s"):
        load_weights(run.checkpoints.path(2), nn.Conv2d(6, 3, 3))
