from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from skt_components.banks import priors_from_labels, priors_from_masks
from skt_components.evaluation import PriorsRow, save_priors
from skt_components.evaluation.priors import principal_colors, region_colors


def row(name: str = "a", height: int = 32, width: int = 48, overlap: bool = False) -> PriorsRow:
    features = [torch.rand(1, 40, height // s, width // s) for s in (16, 8, 4, 2)]
    labels = (torch.arange(width)[None, None] // 20).expand(1, height, width)
    priors = priors_from_labels(features, labels, 4)
    if overlap:
        masks = priors.masks.clone()
        masks[:, 1] = True
        priors = priors_from_masks(features, masks)
    return PriorsRow(name, torch.rand(3, height, width), priors)


def test_draws_a_row_per_picture(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    save_priors(tmp_path / "one.png", [row()])
    save_priors(tmp_path / "three.png", [row(), row("b", 48, 32), row("c", overlap=True)])
    one, three = (image.imread(tmp_path / f"{name}.png") for name in ("one", "three"))
    assert three.shape[1] == one.shape[1]
    assert three.shape[0] > 2.5 * one.shape[0]
    assert one[..., :3].std() > 0.1


def test_a_component_is_a_color_and_repeats() -> None:
    direction = torch.nn.functional.normalize(torch.rand(3, 24), dim=1)
    parts = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 10), indexing="ij"))
    feature = (direction[0][:, None, None] * parts[0] * 9) + (direction[1][:, None, None] * parts[1])
    shown = principal_colors(feature)
    assert shown.shape == (3, 8, 10)
    assert shown.min() >= 0
    assert shown.max() <= 1
    correlation = torch.corrcoef(torch.stack([shown[0].flatten(), parts[0].flatten()]))[0, 1]
    assert correlation.abs() > 0.95  # the strongest direction is red
    assert torch.equal(shown, principal_colors(feature.clone()))
    torch.testing.assert_close(shown[:2], principal_colors(feature * 5 + 3)[:2], atol=1e-3, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_few_channels_and_constant_maps(channels: int) -> None:
    assert principal_colors(torch.rand(channels, 4, 5)).shape == (3, 4, 5)
    assert torch.isfinite(principal_colors(torch.full((channels, 4, 5), 7.0))).all()


def test_regions_have_colors_and_no_region_stays_grey() -> None:
    picture = torch.full((3, 4, 6), 0.5)
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, :, :4], masks[1, 1:3, 1:3] = True, True
    drawn = region_colors(picture, masks)

    def color(y: int, x: int) -> Tensor:
        return drawn[:, y, x]

    assert torch.equal(color(0, 5), torch.full((3,), 0.5))
    assert not torch.allclose(color(0, 0), color(0, 5))
    assert not torch.allclose(color(1, 1), color(0, 0))  # the smaller one lies on top
    assert torch.equal(region_colors(picture, masks[[1, 0]])[:, 3, 0], region_colors(picture, masks[[1, 0]])[:, 0, 0])


def test_rejects_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows must hold at least one picture"):
        save_priors(tmp_path / "a.png", [])
    two = row()
    priors = priors_from_labels([], torch.zeros(2, 32, 48, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="priors of 'a' must be of one picture, got 2"):
        save_priors(tmp_path / "a.png", [two._replace(priors=priors)])
