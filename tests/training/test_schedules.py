"""Learning rate and ramp: functions of the step alone."""

from __future__ import annotations

import pytest

from skt_components.training import TrainConfig, learning_rate, transfer_ramp


def test_the_default_falls_along_a_cosine_to_a_fiftieth() -> None:
    config = TrainConfig(steps=100, lr=1e-3, warmup_steps=0)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[50] == pytest.approx((1e-3 + 2e-5) / 2)
    assert rates[100] == pytest.approx(2e-5)
    assert rates == sorted(set(rates), reverse=True)


def test_the_step_schedule_falls_at_once_after_four_fifths() -> None:
    config = TrainConfig(steps=100, lr=1e-4, final_lr=1e-5, schedule="step", warmup_steps=0)
    assert [learning_rate(config, step) for step in (0, 79, 80, 99)] == [1e-4, 1e-4, 1e-5, 1e-5]


def test_a_constant_rate_is_constant() -> None:
    config = TrainConfig(steps=100, lr=2e-4, schedule="constant", warmup_steps=0)
    assert {learning_rate(config, step) for step in range(100)} == {2e-4}


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
def test_the_warm_up_is_a_straight_line_to_the_full_rate(schedule: str) -> None:
    config = TrainConfig(steps=100, lr=1e-4, warmup_steps=10, warmup_lr=1e-5, schedule=schedule)  # type: ignore[arg-type]
    assert learning_rate(config, 0) == pytest.approx(1e-5)
    assert learning_rate(config, 5) == pytest.approx(5.5e-5)
    assert learning_rate(config, 10) == pytest.approx(1e-4)


def test_without_a_ramp_all_terms_count_from_the_first_step() -> None:
    assert [transfer_ramp(TrainConfig(), step) for step in (0, 1, 299)] == [1, 1, 1]


def test_the_ramp_starts_late_and_ends_at_one() -> None:
    config = TrainConfig(transfer_start=3, transfer_ramp=2)
    found = [transfer_ramp(config, step) for step in range(7)]
    assert found == [0, 0, 0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1, 1]
