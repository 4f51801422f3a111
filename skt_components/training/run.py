"""One training in the folder of a run: start and resume, batches, guards, log, validations, checkpoints, signals."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from skt_components.data.dataset import SampleDataset
from skt_components.data.progress import is_terminal
from skt_components.data.sample import HDRSample
from skt_components.framework import TermGradient
from skt_components.models import save_weights
from skt_components.training.batches import SamplePositions, sample_generators, seed_everything, training_batches
from skt_components.training.checkpoints import CheckpointFolder, restore_state
from skt_components.training.config import TrainConfig
from skt_components.training.engine import Engine
from skt_components.training.guards import NonFiniteError, StepWatch, deferred_interrupt
from skt_components.training.plan import format_bytes
from skt_components.training.run_folder import RunFolder, changed_options, stored_options
from skt_components.training.run_log import RunLog, rewind_log, rewind_tensorboard
from skt_components.training.validation import Scores, Validator, mean_scores

WEIGHTS_FILES = {"framework": "orm", "bare": "bare"}
"""Name of a training -> name of the files of its weights, without their suffix."""
_SECONDS = 60  # between lines where there is no progress bar
_NON_FINITE = 1000  # takes the place of a signal's number; larger than all of them


class StoppedError(KeyboardInterrupt):
    """A signal ended a run after a whole step.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Run:
    """Manage one training, in the framework or bare: everything around the step except the method.

    Call :meth:`resume` first and :meth:`finish` last. Between them open :meth:`batches` and iterate over :meth:`steps`.
    In each step call :meth:`record` for each of :meth:`passes`, then :meth:`guard` and :meth:`log`, then :meth:`save`
    and :meth:`validate` if they are due, and :meth:`stop` at the end.

    Args:
        run_folder: the folder of the whole run.
        config: the options of this seed.
        folder: the folder of this seed.
        name: "framework" or "bare".
        module: what is trained; it has ``orm``, and ``compare_gradients`` if it is the framework.
        optimizer: its optimizer, from :meth:`Engine.prepare`.
        average: a moving average of ``module.orm``, or None.
        validator: scores and draws.

    Attributes:
        start: the first step.
        network: the network that is validated and saved: ``module.orm`` or its average.
    """

    def __init__(
        self,
        run_folder: RunFolder,
        config: TrainConfig,
        folder: Path,
        name: str,
        module: Any,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None,
        validator: Validator,
    ) -> None:
        self.engine: Engine = run_folder.engine
        self.run_folder, self.config, self.folder, self.name, self.module = run_folder, config, folder, name, module
        self.validator, self.label, self.start = validator, WEIGHTS_FILES[name], 0
        self.network: nn.Module = module.orm if average is None else average.module
        self.samples_per_step = config.batch_size * config.accumulate * self.engine.processes
        self.checkpoints = CheckpointFolder(folder / "checkpoints", name, config.keep)
        process = f"-process{self.engine.rank}" if self.engine.processes > 1 else ""
        self.watch = StepWatch(folder / "inspect", name + process, config.spike_factor)
        self._log = RunLog(self.engine, folder, name)
        scaler = self.engine.accelerator.scaler
        parts = {"module": module, "optimizer": optimizer, "ema": average, "scaler": scaler}
        self._parts: dict[str, Any] = {key: part for key, part in parts.items() if part is not None}
        self._best, self._checked, self._saved, self._scores = -math.inf, 0, 0, Scores()
        self._samples: list[dict[str, Tensor]] = []
        self._passes: list[dict[str, Tensor]] = []
        self._gradients: dict[str, dict[str, TermGradient]] = {}
        self._interrupted: Callable[[], int] = lambda: 0
        self._signal, self._clock, self._logged, self._next_line = 0, 0.0, 0, 0.0

    # --- before the first step

    def resume(self) -> None:
        """Restore the newest checkpoint of a resumed run, and validate a network that has not been validated yet.

        Raises:
            ValueError: the checkpoint was saved with other options, or all checkpoints of the run are lost.
        """
        engine, resumed = self.engine, self.config.resume is not None
        state = self.checkpoints.load_newest() if resumed and engine.is_main else None
        engine.accelerator.wait_for_everyone()  # the main process has renamed damaged checkpoints
        if resumed and not engine.is_main:
            state = self.checkpoints.load_newest()
        if state is not None:
            self._check_options(state)
            steps, per_step = self.config.steps, self.samples_per_step
            self.start, self._best = restore_state(state, self._parts, per_step=per_step, steps=steps)
            self._checked = state["checked"]
            del state
            if engine.is_main:
                self._read_validations()
            self._checked = engine.maximum(self._checked)
        elif resumed:
            engine.on_main(self._check_nothing_lost)
        self._saved = self.start
        if engine.is_main:
            self.run_folder.record_start()
            rewind_log(self._log.file, self.name, self.start)
            rewind_tensorboard(self.run_folder.path / "logs", self._log.title, self.start)
        for text in self.checkpoints.notices:
            self._log.notice(self.start, text)
        if self.start == 0:
            self._log.write_baselines(mean_scores(self.validator.baselines))
            self._log.write(0, validation=mean_scores(self.validator.score(self.module, self.network)))
        elif self._checked < self.start and self._is_validation_due(self.start):
            self.validate(self.start)  # the run ended before this validation did

    def _check_options(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if the options are not those of the checkpoint, as after an edit of ``config.toml``."""
        if "options" not in state:  # of an earlier version
            return
        for key, (old, new) in changed_options(self.config, state["options"]).items():
            raise ValueError(
                f"resume: {key} is {new} in {self.run_folder.path / 'config.toml'}, but the checkpoint of step "
                f"{state['step']} was made with {old}: restore it, or start another run"
            )

    def _read_validations(self) -> None:
        """Take the best score and the last validation from the log: a validation follows the checkpoint of its step."""
        for line in self._log.lines():
            if "validation" in line and 0 < line["step"] <= self.start:
                self._checked = max(self._checked, line["step"])
                self._best = max(self._best, line["validation"]["ORM"]["PSNR-mu"])  # NaN is not larger

    def _check_nothing_lost(self) -> None:
        """Raise an error if a run without checkpoints has weights or a log that a new start would replace."""
        weights = [self.folder / f"{self.label}{kind}.safetensors" for kind in ("", "-best")]
        found = [path for path in weights if path.exists()]
        steps = max((line["step"] for line in self._log.lines() if "terms" in line), default=0)
        if found or steps >= self.config.checkpoint_every:
            done = f"it has {found[0]}" if found else f"its log has step {steps}"
            raise ValueError(
                f"resume: no checkpoint of {self.name} in {self.checkpoints.folder}, although {done}: put the "
                f"checkpoints back, or start another run with config={self.run_folder.path / 'config.toml'}"
            )

    @contextmanager
    def batches(self, data: SampleDataset) -> Iterator[Iterator[tuple[HDRSample, list[torch.Generator]]]]:
        """Yield the stream of batches with the generators of their masks; signals wait for the end of a step.

        Before each batch all random numbers are seeded by its position, so that a resumed run draws the same.
        """
        config, engine = self.config, self.engine
        positions = SamplePositions(
            len(data),
            config.batch_size,
            seed=config.seed,
            start=self.start * config.accumulate,
            rank=engine.rank,
            world=engine.processes,
        )
        samples = training_batches(data, positions, workers=config.workers, device=engine.device, dtype=engine.dtype)

        def seeded() -> Iterator[tuple[HDRSample, list[torch.Generator]]]:
            for batch in itertools.count(positions.start):
                sample = next(samples)
                seed_everything(config.seed, batch, engine.rank)
                first = positions.first(batch)
                yield sample, sample_generators(config.seed, first, config.batch_size, engine.device)

        self._set_train_mode()
        with closing(samples), deferred_interrupt() as self._interrupted:  # closing ends the loader processes
            yield seeded()

    def _set_train_mode(self) -> None:
        self.module.train()
        if self.config.freeze_orm:
            self.module.orm.eval()  # running statistics stay, too

    def steps(self) -> Iterator[int]:
        """Yield the steps that are left, with a progress bar if the main process has a terminal."""
        from tqdm import tqdm

        steps = range(self.start, self.config.steps)
        hidden = not (self.engine.is_main and is_terminal())
        self._bar = tqdm(steps, self._log.title, self.config.steps, initial=self.start, disable=hidden)
        self._clock, self._logged = time.perf_counter(), self.start
        yield from self._bar

    # --- in a step

    def is_logged(self, step: int) -> bool:
        """Return True for steps whose numbers are written into the log."""
        return self._is_last(step) or step % self.config.log_every == 0

    def passes(self, step: int) -> Iterator[bool]:
        """Yield one bool per forward pass: True if its gradients are to be compared (last pass of logged steps)."""
        self._samples, self._passes, self._gradients = [], [], {}
        for index in range(self.config.accumulate):
            yield self.is_logged(step) and index == self.config.accumulate - 1

    def record(self, sample: HDRSample, output: Any, gradients: Mapping[str, Mapping[str, TermGradient]]) -> None:
        """Keep the inputs and terms of a pass for :meth:`guard` and :meth:`log`, without their graph."""
        self._samples.append({"the bracket": sample.bracket, "the target": sample.target})
        terms = {**output.terms, "total": output.total}
        self._passes.append({term: value.detach() for term, value in terms.items()})
        self._gradients = {place: dict(found) for place, found in gradients.items()}

    def guard(self, step: int, gradient_norm: Tensor | None) -> None:
        """Stop before the weights change if a number of this step is NaN or infinite in any process.

        Args:
            step: the step.
            gradient_norm: norm of the gradient. With a gradient scaler it is not checked, because the scaler skips
                steps with an infinite gradient.

        Raises:
            NonFiniteError: the message names the numbers.
        """
        self._terms = {term: torch.stack([found[term] for found in self._passes]).mean() for term in self._passes[0]}
        numbers = dict(self._terms)
        if gradient_norm is not None and self.engine.accelerator.scaler is None:
            numbers["the gradient"] = gradient_norm
        broken = None
        try:
            self.watch.check(step, numbers, self._samples)
        except NonFiniteError as error:
            broken = error
        self._signal = self.engine.maximum(_NON_FINITE if broken else self._interrupted())  # one step for all processes
        if self._signal == _NON_FINITE:
            found = {self.engine.rank: str(broken)} if broken else {}  # the main process writes the page of the run
            raise broken or NonFiniteError(f"in another process: {'; '.join(self.engine.gather(found))}", step)

    def log(self, step: int, learning_rate: float) -> None:
        """Write terms, gradients and speed of a logged step, and the notices of the guard.

        Raises:
            NonFiniteError: a number is not finite, or fp16 gradients stay infinite at the smallest scale.
        """
        engine = self.engine
        if step == self.start:
            text = f"{self._log.title}: {peak_memory(engine.device)} of memory at the peak of the first step"
            engine.accelerator.print(text, file=sys.stderr)
        if not self.is_logged(step):
            return
        self.watch.flush()
        terms, gradients = engine.mean(self._terms), mean_gradients(engine, self._gradients)
        if engine.gradient_scale < 1:
            raise NonFiniteError(f"gradients of fp16 are infinite at any scale at step {step}: take bf16")
        now = time.perf_counter()
        speed = (step + 1 - self._logged) * self.samples_per_step / (now - self._clock)
        terms.pop("total")
        self._log.write(step, lr=learning_rate, terms=terms, gradients=gradients, samples_per_second=round(speed, 2))
        shown = {term: f"{value:.4f}" for term, value in terms.items()}
        self._bar.set_postfix({"samples/s": f"{speed:.1f}", **shown}, refresh=False)
        if self._bar.disable and (self._is_last(step) or now >= self._next_line):
            self._next_line = now + _SECONDS
            numbers = ", ".join(f"{term} {value}" for term, value in shown.items())
            text = f"{self._log.title}: step {step + 1} of {self.config.steps}, {speed:.1f} samples/s, {numbers}"
            engine.accelerator.print(text, file=sys.stderr)
        for notice in itertools.chain(*engine.gather({engine.rank: self.watch.notices})):
            self._log.notice(*notice)
        self.watch.notices.clear()
        self._clock, self._logged = now, step + 1

    # --- after a step

    def is_validated(self, step: int) -> bool:
        """Return True if a validation is due after a step."""
        return self._is_last(step) or (self._is_validation_due(step + 1) and not self._signal)

    def is_saved(self, step: int) -> bool:
        """Return True if a checkpoint is due after a step."""
        due = (step + 1) % self.config.checkpoint_every == 0
        return self._is_last(step) or due or bool(self._signal)

    def validate(self, steps: int) -> None:
        """Score and draw the network after ``steps`` steps, and save it if it is the best so far.

        Call :meth:`save` before it where both are due. If the validation fails for any reason, the state is saved
        before the error is raised. The line in the log is written last: a validation without it is repeated.
        """
        paused = time.perf_counter()
        self.watch.flush()  # a state with NaN is not saved
        try:
            self._scores = self._validate(steps)
        except Exception:
            if self._saved < steps:
                self.save(steps)
            raise
        self._clock += time.perf_counter() - paused  # the log has the speed of training alone

    def save(self, steps: int) -> None:
        """Write a checkpoint after ``steps`` steps."""
        paused = time.perf_counter()
        self.watch.flush()
        if self.engine.is_main:
            self.checkpoints.save(steps, self._state())
        self._saved = steps
        self._clock += time.perf_counter() - paused

    def stop(self, steps: int) -> None:
        """Raise :class:`StoppedError` if a signal came during the step; its checkpoint has been saved."""
        if self._signal:
            path = self.run_folder.path
            raise StoppedError(self._signal, f"stopped after {steps} steps; continue with resume={path}")

    def finish(self) -> tuple[Scores, nn.Module]:
        """Save the weights, free the memory, and return the last scores and the network in eval mode."""
        self._scores = self._scores or self.validator.score(self.module, self.network)
        if self.engine.is_main:
            save_weights(self.folder / f"{self.label}.safetensors", self.network)
        self.engine.accelerator.free_memory()
        return self._scores, self.network.eval()

    def _is_last(self, step: int) -> bool:
        return step + 1 == self.config.steps

    def _is_validation_due(self, steps: int) -> bool:
        return steps % self.config.validate_every == 0 or steps == self.config.steps

    def _state(self) -> dict[str, Any]:
        parts = {key: part.state_dict() for key, part in self._parts.items()}
        numbers = {"best": self._best, "checked": self._checked, "samples_per_step": self.samples_per_step}
        return {**parts, **numbers, "options": stored_options(self.config)}

    def _validate(self, steps: int) -> Scores:
        found = self.validator.score(self.module, self.network)
        values = found["ORM"]["PSNR-mu"]
        score = float(values.mean())
        if score > self._best:
            if self.engine.is_main:
                self.checkpoints.save_best(steps, {**self._state(), "best": score, "checked": steps})
                save_weights(self.folder / f"{self.label}-best.safetensors", self.network)
            self._best = score
        self._checked = steps
        self._log.write(steps, validation=mean_scores(found))
        if unusable := int(values.isnan().sum()):
            self._log.notice(steps, f"NaN in the network's output of {unusable} of {len(values)} validation pictures")
        if self.engine.is_main and steps < self.config.steps:  # the last pictures are drawn beside the bare network's
            output = partial(self.module.forward_orm, self.network)
            self.validator.draw(self.folder / "samples" / f"{self.label}-{steps:08d}.png", {"output": output})
        self._set_train_mode()
        return found


def mean_gradients(engine: Engine, gradients: Mapping[str, Mapping[str, TermGradient]]) -> dict[str, Any]:
    """Return norms and cosines averaged over the processes: place -> term -> name -> value."""
    flat = {
        f"{place}\n{term}\n{name}": value
        for place, terms in gradients.items()
        for term, gradient in terms.items()
        for name, value in gradient._asdict().items()
    }
    rows: dict[str, Any] = {place: {} for place in gradients}
    for key, value in engine.mean(flat).items():
        place, term, name = key.split("\n")
        rows[place].setdefault(term, {})[name] = value
    return rows


def peak_memory(device: torch.device) -> str:
    """Return the largest memory of this process so far: allocated on a GPU, or resident on a CPU."""
    if device.type == "cuda":
        return format_bytes(torch.cuda.max_memory_allocated(device))
    try:
        import resource  # not on Windows
    except ImportError:
        return "an unknown amount"
    unit = 1 if sys.platform == "darwin" else 1024
    return format_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
