"""The guards: NaN stops the run, a spike is reported, and the batch is there to look at."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from skt_components.training import NonFiniteError, Run, StepWatch, deferred_interrupt
from skt_components.training.guards import advise


def batch(value: float = 0.5) -> dict[str, torch.Tensor]:
    return {"the bracket": torch.full((1, 3, 6, 4, 4), value), "the target": torch.rand(1, 3, 4, 4)}


def test_finite_steps_leave_nothing_behind(tmp_path: Path) -> None:
    watch = StepWatch(tmp_path / "inspect", "run")
    for step in range(50):
        watch.check(step, {"org": torch.tensor(0.1), "total": torch.tensor(0.2)}, [batch()])
    watch.flush()
    assert watch.notices == []
    assert not (tmp_path / "inspect").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_term_that_is_not_finite_stops_the_run_and_its_batch_is_kept(tmp_path: Path, value: float) -> None:
    watch, found = StepWatch(tmp_path / "inspect", "run"), batch()
    numbers = {"org": torch.tensor(0.1), "color": torch.tensor(value), "the gradient": torch.tensor(value)}
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in color at step 7; its batch is in .*"):
        watch.check(7, numbers, [found])
    kept = load_file(tmp_path / "inspect" / "run-00000007.safetensors")
    assert kept.keys() == {"bracket", "target"}
    assert torch.equal(kept["target"], found["the target"])


def test_a_gradient_that_breaks_alone_is_named(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinity in the gradient at step 1"):
        StepWatch(tmp_path, "run").check(1, {"org": torch.tensor(0.1), "the gradient": torch.tensor(float("inf"))})


def test_inputs_are_watched_too_and_every_pass_is_kept(tmp_path: Path) -> None:
    watch = StepWatch(tmp_path, "run")
    with pytest.raises(NonFiniteError, match="NaN or infinity in the bracket at step 0"):
        watch.check(0, {"org": torch.tensor(1.0)}, [batch(), batch(float("nan"))])
    kept = load_file(tmp_path / "run-00000000.safetensors")
    assert kept.keys() == {"bracket.0", "target.0", "bracket.1", "target.1"}
    assert kept["bracket.1"].isnan().all()


def test_a_loss_that_jumps_is_reported_and_kept_but_nothing_stops(tmp_path: Path) -> None:
    watch = StepWatch(tmp_path, "run", spike_factor=10.0)
    for step in range(30):
        watch.check(step, {"total": torch.tensor(1.0 + step / 100)}, [batch()])
    watch.check(30, {"total": torch.tensor(25.0)}, [batch()])
    watch.check(31, {"total": torch.tensor(1.0)}, [batch()])
    ((step, text),) = watch.notices
    assert step == 30
    assert "the loss jumped to 25, 22 times its median; its batch is in" in text
    assert [path.name for path in tmp_path.iterdir()] == ["run-00000030.safetensors"]


def test_the_first_steps_and_a_falling_loss_are_no_spikes(tmp_path: Path) -> None:
    watch = StepWatch(tmp_path, "run", spike_factor=2.0)
    for step in range(10):
        watch.check(step, {"total": torch.tensor(10.0**step)}, [batch()])
    other = StepWatch(tmp_path, "other", spike_factor=2.0)
    for step in range(100):
        other.check(step, {"total": torch.tensor(0.9**step)}, [batch()])
    assert watch.notices == other.notices == []


def test_no_factor_no_spikes(tmp_path: Path) -> None:
    watch = StepWatch(tmp_path, "run", spike_factor=0)
    for step in range(30):
        watch.check(step, {"total": torch.tensor(1.0)})
    watch.check(30, {"total": torch.tensor(1e9)}, [batch()])
    assert watch.notices == []


def test_a_run_that_diverges_does_not_fill_the_disk(tmp_path: Path) -> None:
    watch = StepWatch(tmp_path, "run", spike_factor=10.0)
    for step in range(100):
        watch.check(step, {"total": torch.tensor(1.0)})
    for step in range(100, 140):
        watch.check(step, {"total": torch.tensor(1e3)}, [batch()])
    assert len(watch.notices) == 40
    assert len(list(tmp_path.iterdir())) == 10


def test_a_batch_that_cannot_be_kept_does_not_hide_the_nan(tmp_path: Path) -> None:
    (tmp_path / "inspect").write_text("a file where the folder should be")
    watch = StepWatch(tmp_path / "inspect", "run")
    with pytest.raises(NonFiniteError, match="NaN or infinity in org at step 3; its batch could not be kept"):
        watch.check(3, {"org": torch.tensor(float("nan"))}, [batch()])


def test_a_full_disk_does_not_stop_a_healthy_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        raise safetensors.SafetensorError("No space left on device (os error 28)")  # which is no OSError

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    watch = StepWatch(tmp_path, "run")
    for step in range(30):
        watch.check(step, {"total": torch.tensor(1.0)})
    watch.check(30, {"total": torch.tensor(1e3)}, [batch()])
    ((_, text),) = watch.notices
    assert "its batch could not be kept" in text


def test_what_has_not_arrived_is_looked_at_two_steps_later_or_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepWatch, "_has_arrived", lambda self: False)  # as a GPU that is busy
    watch = StepWatch(tmp_path, "run")
    watch.check(0, {"org": torch.tensor(float("nan"))}, [batch()])
    watch.check(1, {"org": torch.tensor(1.0)}, [batch()])
    with pytest.raises(NonFiniteError, match="at step 0"):
        watch.check(2, {"org": torch.tensor(1.0)}, [batch()])
    again = StepWatch(tmp_path, "again")
    again.check(0, {"org": torch.tensor(float("nan"))}, [batch()])
    with pytest.raises(NonFiniteError, match="at step 0"):
        again.flush()


def test_the_host_looks_at_the_device_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    for name in ("item", "__bool__", "__float__", "cpu", "numpy", "tolist"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, _o=original, _n=name: (looks.append(_n), _o(self))[1])
    watch = StepWatch(tmp_path, "run")
    numbers = {name: torch.tensor(1.0) for name in "abcdefg"}
    monkeypatch.setattr(StepWatch, "_has_arrived", lambda self: False)
    watch.check(0, numbers, [batch()])
    assert looks == []


@pytest.mark.gpu
def test_looking_does_not_wait_for_the_device(tmp_path: Path) -> None:
    watch = StepWatch(tmp_path, "run")
    numbers = {"org": torch.ones((), device="cuda"), "total": torch.ones((), device="cuda")}
    inputs = {"the bracket": torch.rand(2, 3, 6, 64, 64, device="cuda")}
    watch.check(0, numbers, [inputs])
    watch.flush()
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch.check(1, numbers, [inputs])
        watch.check(2, numbers, [inputs])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    watch.flush()


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(28, "No space left on device", "a.txt"), r"the disk is full \(.*a\.txt'\): free some space"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), "the disk is full"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
            r"out of memory \(.* 2 GiB\.\): ",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (OSError(12, "Cannot allocate memory"), "out of memory .* give a smaller `batch_size`"),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), "fewer `workers`"),
        (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), "fewer `workers`"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:44"), "another process"),
    ],
)
def test_an_error_of_the_machine_says_what_to_do(error: Exception, advice: str) -> None:
    assert re.match(f".*{advice}", advise(error) or "")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("memory must be"), KeyboardInterrupt()])
def test_other_errors_are_left_alone(error: BaseException) -> None:
    assert advise(error) is None


def test_a_second_ctrl_c_says_that_the_step_is_lost() -> None:
    with deferred_interrupt() as seen:
        signal.raise_signal(signal.SIGINT)
        assert seen() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt, match="stopped at once by a second Ctrl-C"):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX signals")
def test_an_ignored_signal_stays_ignored_as_nohup_wants_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred_interrupt() as seen:
            signal.raise_signal(signal.SIGHUP)
            assert seen() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_main_process_names_the_batch_of_the_process_that_met_a_nan() -> None:
    class Two:
        rank, is_main = 0, True
        accelerator = type("Accelerator", (), {"scaler": None})

        def maximum(self, number: int) -> int:
            return max(number, 1000)

        def gather(self, rows: dict) -> list:
            return [*rows.values(), "NaN or infinity in org at step 7; its batch is in inspect/framework-process1-7"]

    run = object.__new__(Run)
    run.engine, run.watch, run._passes, run._samples = Two(), StepWatch("inspect", "run"), [{"org": torch.ones(())}], []
    run._interrupted = lambda: 0
    with pytest.raises(
        NonFiniteError, match=r"in another process: NaN .*; its batch is in inspect/framework-process1-7"
    ):
        run.guard(7, None)
