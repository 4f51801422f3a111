"""Schedules of a run: the learning rate, and the weight of the transfer terms."""

from __future__ import annotations

import math

from skt_components.training.config import TrainConfig

_LAST_PART = 0.8  # of the steps, after which the schedule "step" falls


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step; it depends on the step alone, so that a resumed run needs no state.

    Args:
        config: its ``lr``, ``final_lr``, ``schedule``, ``warmup_steps``, ``warmup_lr`` and ``steps``.
        step: from 0.

    Example:
        >>> config = TrainConfig(lr=1.0, final_lr=0.5, steps=100, warmup_steps=10)
        >>> [round(learning_rate(config, step), 3) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.5, 1.0, 0.75, 0.5]
    """
    rate, warmup = config.learning_rate, config.warmup
    if step < warmup:
        return config.warmup_lr + (rate - config.warmup_lr) * step / warmup
    final = rate / 50 if config.final_lr is None else config.final_lr
    if config.schedule == "constant":
        return rate
    if config.schedule == "step":
        return rate if step < _LAST_PART * config.steps else final
    done = (step - warmup) / max(config.steps - warmup, 1)
    return final + (rate - final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def transfer_ramp(config: TrainConfig, step: int) -> float:
    """Return the factor of the weights of all terms but L_org at a step, from 0 to 1.

    Args:
        config: its ``transfer_start`` and ``transfer_ramp``.
        step: from 0.

    Example:
        >>> config = TrainConfig(transfer_start=10, transfer_ramp=4)
        >>> [transfer_ramp(config, step) for step in (0, 9, 10, 12, 14, 20)]
        [0.0, 0.0, 0.2, 0.6, 1.0, 1.0]
    """
    after = step - config.transfer_start
    return 0.0 if after < 0 else min((after + 1) / (config.transfer_ramp + 1), 1.0)
