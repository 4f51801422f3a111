"""Tiles against the whole picture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skt_components.evaluation.tiling import official_tiles, tiled_inference
from skt_components.models import AHDRNet


class Blur(nn.Module):
    """Convolve the first exposure, seeing ``radius`` pixels far, with zeros outside; note the shapes that came."""

    def __init__(self, radius: int, scale: int = 1) -> None:
        super().__init__()
        self.radius, self.scale, self.seen = radius, scale, []
        self.weight = nn.Parameter(torch.rand(1, 1, 2 * radius + 1, 2 * radius + 1) / (2 * radius + 1) ** 2)

    def forward(self, bracket: torch.Tensor) -> torch.Tensor:
        self.seen.append(bracket.shape)
        picture = bracket[:, 0]
        weight = self.weight.expand(picture.shape[1], 1, -1, -1)
        blurred = F.conv2d(picture, weight, padding=self.radius, groups=picture.shape[1])
        return F.interpolate(blurred, scale_factor=self.scale, mode="nearest")


def whole(network: nn.Module, bracket: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(bracket)


# matches_reference


@pytest.mark.parametrize("blend", ["linear", "none"])
@pytest.mark.parametrize("size", [(97, 133), (60, 64), (20, 150), (64, 65)])
@pytest.mark.parametrize(("tile", "batch"), [(64, 1), ((40, 56), 3)])
def test_equals_the_whole_picture_where_the_overlap_is_wide_enough(blend, size, tile, batch):
    network = Blur({"linear": 9, "none": 12}[blend])  # 3/8 and 1/2 of the overlap
    bracket = torch.rand(2, 3, 4, *size)
    found = tiled_inference(network, bracket, tile=tile, overlap=24, blend=blend, batch=batch)
    torch.testing.assert_close(found, whole(network, bracket), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("blend", "radius"), [("linear", 11), ("none", 14)])
def test_differs_where_the_network_sees_further(blend, radius):
    network, bracket = Blur(radius), torch.rand(1, 3, 4, 60, 133)
    found = tiled_inference(network, bracket, tile=48, overlap=24, blend=blend)
    assert (found - whole(network, bracket)).abs().max() > 1e-4


def test_ahdrnet_in_tiles_is_ahdrnet():
    # It sees 43 pixels far: 48 is 3/8 of the default overlap.
    network = AHDRNet(features=4, growth=4).eval()
    bracket = torch.rand(1, 3, 6, 150, 245)
    expected = whole(network, bracket)
    found = tiled_inference(network, bracket, tile=176, overlap=128)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (tiled_inference(network, bracket, tile=96, overlap=0) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("blend", ["linear", "none"])
def test_scale_of_four_on_packed_raw(blend):
    network = Blur(3, scale=4)
    bracket = torch.rand(1, 5, 4, 37, 50)
    found = tiled_inference(network, bracket, tile=24, overlap=8, blend=blend)
    assert found.shape == (1, 4, 148, 200)
    torch.testing.assert_close(found, whole(network, bracket), rtol=0, atol=1e-6)


class Pool(nn.Module):
    """Means over blocks of 8x8, which depend on where a tile starts, and refuses other sides."""

    def forward(self, bracket: torch.Tensor) -> torch.Tensor:
        if bracket.shape[-1] % 8 or bracket.shape[-2] % 8:
            raise RuntimeError("sides must be multiples of 8")
        return F.interpolate(F.avg_pool2d(bracket[:, 0], 8), scale_factor=8, mode="nearest")


@pytest.mark.parametrize("size", [(50, 101), (48, 96), (7, 40)])
def test_tiles_start_and_end_at_the_multiple(size):
    bracket = torch.rand(1, 3, 4, *size)
    missing = (0, -size[1] % 8, 0, -size[0] % 8)
    expected = whole(Pool(), F.pad(bracket[0], missing, mode="replicate")[None])[..., : size[0], : size[1]]
    found = tiled_inference(Pool(), bracket, tile=32, overlap=16, size_multiple=8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_official_tiles_are_those_of_a_picture_filled_with_ones():
    network, bracket = Blur(2), torch.rand(2, 3, 4, 40, 32)
    padded = F.pad(bracket, (0, 16, 0, 8), value=1.0)  # 48x48: one more column of tiles although 32 is a multiple
    rows = [
        torch.cat([whole(network, padded[..., y : y + 16, x : x + 16]) for x in (0, 16, 32)], -1) for y in (0, 16, 32)
    ]
    expected = torch.cat(rows, -2)[..., :40, :32]
    network.seen.clear()
    assert torch.equal(official_tiles(network, bracket, tile=16, batch=4), expected)
    assert network.seen == [(4, 3, 4, 16, 16)] * 3  # the tiles of ones alone are not run
    assert (whole(network, bracket) - expected).abs().max() > 1e-3  # seams


# invariants


def test_a_picture_no_larger_than_a_tile_is_run_whole():
    network, bracket = Blur(5), torch.rand(1, 3, 4, 30, 41)
    assert torch.equal(tiled_inference(network, bracket, tile=64, overlap=32), whole(network, bracket))
    assert network.seen[0] == (1, 3, 4, 30, 41)


def test_24_megapixels_in_tiles():
    # 96 MB in, 96 MB out; a stub of a network that never sees more than one tile.
    bracket = torch.rand(1, 1, 1, 4000, 6000)
    seen = []

    def network(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(tiles.shape)
        return tiles[:, 0]

    found = tiled_inference(network, bracket, tile=1024, overlap=64)
    assert set(seen) == {(1, 1, 1, 852, 912)}  # (4000 + 4 * 64) / 5 and (6000 + 6 * 64) / 7, rounded up
    assert len(seen) == 5 * 7
    assert (found - bracket[:, 0]).abs().max() < 1e-6


@pytest.mark.parametrize("multiple", [1, 8])
def test_no_tile_is_larger_than_it_must_be(multiple):
    # Fewer or smaller tiles of the same number could not cover the picture.
    for length in range(8, 400, 7):
        seen = []

        def network(tiles: torch.Tensor, seen: list = seen) -> torch.Tensor:
            seen.append(tiles.shape[-1])
            return tiles[:, 0]

        options = {"tile": 64, "overlap": 24, "size_multiple": multiple}
        tiled_inference(network, torch.rand(1, 1, 1, multiple, length), **options)
        count, side = len(seen), seen[0]
        assert set(seen) == {side}
        assert side % multiple == 0
        assert (count - 1) * (64 - 24) + 24 < length or count == 1
        assert count * (side - multiple) - (count - 1) * 24 < length <= count * side - (count - 1) * 24


def test_gradients_are_off_and_the_mode_stays():
    network, bracket = nn.Sequential(Blur(1), nn.BatchNorm2d(4)).train(), torch.rand(1, 3, 4, 20, 20)
    found = tiled_inference(network, bracket, tile=16, overlap=4)
    assert not found.requires_grad
    assert network.training


@pytest.mark.gpu
def test_the_network_may_be_elsewhere():
    network, bracket = Blur(3).cuda(), torch.rand(1, 3, 4, 60, 70)
    found = tiled_inference(network, bracket, tile=32, overlap=8)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, whole(network, bracket.cuda()).cpu(), rtol=0, atol=1e-5)


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile must be a whole number >= 1, got 0"),
        ({"tile": 16, "overlap": 16}, r"tile must be one or two multiples of size_multiple=1, at least 17 .*got 16"),
        ({"tile": 20, "overlap": 4, "size_multiple": 8}, "multiples of size_multiple=8, at least 12 .*got 20"),
        ({"tile": (32, 32, 32)}, r"tile must be one or two"),
        ({"tile": 16, "overlap": -1}, "overlap must be a whole number >= 0, got -1"),
        ({"blend": "cosine"}, "blend must be one of .*linear.*'cosine'"),
        ({"batch": 0}, "batch must be a whole number >= 1, got 0"),
    ],
)
def test_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        tiled_inference(Blur(1), torch.rand(1, 3, 4, 20, 20), **options)


@pytest.mark.parametrize("run", [tiled_inference, official_tiles])
def test_rejects_bad_brackets_and_networks(run):
    with pytest.raises(ValueError, match=r"bracket must have 5 axes \(B, N, C, H, W\), got shape \(3, 4, 20, 20\)"):
        run(Blur(1), torch.rand(3, 4, 20, 20))
    with pytest.raises(TypeError, match="bracket must be a floating-point tensor"):
        run(Blur(1), torch.zeros(1, 3, 4, 20, 20, dtype=torch.uint8))
    with pytest.raises(ValueError, match="bracket must hold at least one pixel"):
        run(Blur(1), torch.rand(0, 3, 4, 20, 20))
    for wrong in (lambda tiles: tiles[:, 0, :, 1:], lambda tiles: tiles, lambda tiles: tiles[:, 0, :, ::2, ::2]):
        with pytest.raises(ValueError, match=r"network must map tiles of .* with an integer s, got"):
            run(wrong, torch.rand(1, 3, 4, 20, 20))


@pytest.mark.parametrize("run", [tiled_inference, official_tiles])
def test_a_network_that_returns_more_than_a_picture_needs_forward_orm(run):
    def network(tiles):
        return tiles[:, 0], None

    def take_first(network, tiles):
        return network(tiles)[0]

    bracket = torch.rand(1, 3, 6, 20, 24)
    with pytest.raises(TypeError, match=r"the network must return a tensor .*, got tuple: .* forward_orm="):
        run(network, bracket, progress=False)
    assert torch.equal(run(network, bracket, forward_orm=take_first, progress=False), bracket[:, 0])
