from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import default_collate

from skt_components.data import HDRSample, make_bracket


def _sample(seed: int) -> HDRSample:
    ldr = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    times = torch.tensor([1.0, 4.0, 16.0])
    return HDRSample(make_bracket(ldr, times), times, ldr[0] ** 2.2, f"scene-{seed}", "srgb")


# matches_reference


def test_bracket_is_linearised_rgb_then_ldr_rgb() -> None:
    ldr = torch.rand(2, 3, 4, 6)
    bracket = make_bracket(ldr, torch.tensor([0.5, 8.0]), gamma=1.8)
    assert bracket.shape == (2, 6, 4, 6)
    assert torch.equal(bracket[:, 3:], ldr)
    for i, t in enumerate((0.5, 8.0)):
        for c in range(3):
            expected = (ldr[i, c].double() ** 1.8 / t).float()
            torch.testing.assert_close(bracket[i, c], expected)


def test_bracket_takes_non_contiguous_and_float64() -> None:
    ldr = torch.rand(6, 4, 3, 3, dtype=torch.float64).permute(3, 2, 1, 0)
    times = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert make_bracket(ldr, times).dtype == torch.float64
    assert torch.equal(make_bracket(ldr, times), make_bracket(ldr.contiguous(), times))


# invariants


def test_default_collate_batches_tensors_and_lists_names() -> None:
    batch = default_collate([_sample(0), _sample(1)])
    assert isinstance(batch, HDRSample)
    assert batch.bracket.shape == (2, 3, 6, 5, 7)
    assert batch.exposure_times.shape == (2, 3)
    assert batch.target.shape == (2, 3, 5, 7)
    assert list(batch.name) == ["scene-0", "scene-1"]
    assert list(batch.domain) == ["srgb", "srgb"]
    assert torch.equal(batch.bracket[1], _sample(1).bracket)


def test_sample_survives_pickle() -> None:
    copy = pickle.loads(pickle.dumps(_sample(3)))
    assert isinstance(copy, HDRSample)
    assert torch.equal(copy.bracket, _sample(3).bracket)
    assert copy.name == "scene-3"


@pytest.mark.gpu
def test_loader_pins_memory() -> None:
    loader = torch.utils.data.DataLoader([_sample(0), _sample(1)], batch_size=2, pin_memory=True)
    batch = next(iter(loader))
    assert isinstance(batch, HDRSample)
    assert batch.bracket.is_pinned()
    assert batch.target.is_pinned()


# rejects_bad_input


@pytest.mark.parametrize(
    ("ldr", "times", "gamma", "message"),
    [
        (torch.rand(3, 4, 4), torch.ones(3), 2.2, "ldr must have 4 axes"),
        (torch.rand(3, 4, 4, 4), torch.ones(3), 2.2, "ldr must have 3 channels"),
        (torch.rand(3, 3, 4, 4), torch.ones(2), 2.2, "exposure_times must have one entry"),
        (torch.rand(3, 3, 4, 4), torch.ones(3), 0.0, "gamma must be"),
    ],
)
def test_bracket_rejects(ldr: torch.Tensor, times: torch.Tensor, gamma: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_bracket(ldr, times, gamma)


def test_bracket_rejects_whole_numbers() -> None:
    with pytest.raises(TypeError, match="ldr must be a floating-point tensor"):
        make_bracket(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.ones(3))
