from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize
from torch import Tensor

from skt_components.banks import ColorPositionKMeans, GridRegions


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Three real photographs, (3, 3, 128, 128) in [0, 1]."""
    pictures = []
    for name in ("astronaut", "coffee", "chelsea"):
        picture = getattr(skimage.data, name)()
        side = min(picture.shape[:2])
        pictures.append(resize(picture[:side, :side] / 255.0, (128, 128), anti_aliasing=True))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()


def explained_variance(picture: Tensor, labels: Tensor) -> float:
    colors, labels = picture.flatten(1).double().numpy(), labels.flatten().numpy()
    within = sum(colors[:, labels == k].var(axis=1).sum() * (labels == k).mean() for k in np.unique(labels))
    return 1 - within / colors.var(axis=1).sum()


def adjusted_rand_index(a: Tensor, b: Tensor) -> float:
    table = np.zeros((int(a.max()) + 1, int(b.max()) + 1))
    np.add.at(table, (a.flatten().numpy(), b.flatten().numpy()), 1)
    pairs = lambda n: (n * (n - 1) / 2).sum()  # noqa: E731
    rows, cols = pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected = rows * cols / pairs(np.array([a.numel()]))
    return float((pairs(table) - expected) / ((rows + cols) / 2 - expected))


def naive_kmeans(picture: Tensor, regions: ColorPositionKMeans, centers: np.ndarray) -> np.ndarray:
    """One picture, one pixel at a time, from given centers."""
    _, height, width = picture.shape
    scale = regions.position_weight / max(height, width)
    points = np.array(
        [
            [*picture[:, y, x].double().tolist(), (y + 0.5) * scale, (x + 0.5) * scale]
            for y in range(height)
            for x in range(width)
        ]
    )
    for step in range(regions.iterations + 1):
        labels = np.array([np.argmin(((p - centers) ** 2).sum(axis=1)) for p in points])
        if step < regions.iterations:
            for k in range(len(centers)):
                if (labels == k).any():
                    centers[k] = points[labels == k].mean(axis=0)
    return labels.reshape(height, width)


def test_matches_a_plain_kmeans() -> None:
    # Four regions on a 2 x 2 grid of cells: the starting centers are the cell means.
    regions = ColorPositionKMeans(4, iterations=6, position_weight=0.4, working_size=64)
    picture = torch.rand(3, 12, 12)
    start = np.array(
        [
            [*picture[:, y : y + 6, x : x + 6].mean(dim=(1, 2)).tolist(), (y + 3) * 0.4 / 12, (x + 3) * 0.4 / 12]
            for y in (0, 6)
            for x in (0, 6)
        ]
    )
    labels = regions(picture[None])[0].numpy()
    assert (labels == naive_kmeans(picture, regions, start)).mean() > 0.98  # a tie may round to either side


def test_finds_the_colors_of_a_drawing() -> None:
    picture = torch.zeros(1, 3, 40, 60)
    picture[:, 0, :, 20:40] = 1
    picture[:, 2, :, 40:] = 1
    labels = ColorPositionKMeans(3)(picture)[0]
    stripes = [labels[:, :20], labels[:, 20:40], labels[:, 40:]]
    assert all((s == s[0, 0]).all() for s in stripes)
    assert len({int(s[0, 0]) for s in stripes}) == 3


def test_quality_on_photographs(photographs: Tensor) -> None:
    regions = ColorPositionKMeans(12)
    noise = 0.03 * torch.randn(photographs.shape, generator=torch.Generator().manual_seed(1))
    labels, again = regions(photographs), regions((photographs**1.1 + noise).clamp(0, 1))
    explained = [explained_variance(p, m) for p, m in zip(photographs, labels, strict=True)]
    stability = [adjusted_rand_index(a, b) for a, b in zip(labels, again, strict=True)]
    grid = [explained_variance(p, m) for p, m in zip(photographs, GridRegions(3, 4)(photographs), strict=True)]
    assert np.mean(explained) > 0.85
    assert min(explained) > 0.75
    assert np.mean(stability) > 0.75
    assert all(e > g + 0.15 for e, g in zip(explained, grid, strict=True))


def test_quality_on_hdr_photographs(hdri_dir: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    files = sorted(hdri_dir.glob("*.hdr"))
    assert files, f"no .hdr files in {hdri_dir}"
    for file in files:
        hdr = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)[..., ::-1]
        crop = hdr[hdr.shape[0] // 4 :][:192, :192].astype(np.float32)
        crop = np.clip(crop / np.percentile(crop, 99), 0, 1)
        tonemapped = torch.from_numpy(np.log1p(5000 * crop) / np.log1p(5000)).permute(2, 0, 1)[None].float()
        labels = ColorPositionKMeans(8)(tonemapped)
        # The plainest crops (a sky) are mostly one color, where position alone decides.
        assert explained_variance(tonemapped[0], labels[0]) > 0.5, file.name


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 1), (1, 90), (200, 3), (129, 257)])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_shape_type_and_range(size: tuple[int, int], count: int) -> None:
    labels = ColorPositionKMeans(count)(torch.rand(2, 3, *size))
    assert labels.shape == (2, *size)
    assert labels.dtype == torch.int64
    assert labels.min() >= 0
    assert labels.max() < count


def test_a_picture_does_not_depend_on_its_batch(photographs: Tensor) -> None:
    regions = ColorPositionKMeans(8)
    together = regions(photographs)
    for picture, labels in zip(photographs, together, strict=True):
        assert torch.equal(regions(picture[None])[0], labels)
    assert torch.equal(regions(photographs.flip(0)).flip(0), together)


def test_deterministic_and_indifferent_to_layout_and_dtype(photographs: Tensor) -> None:
    regions = ColorPositionKMeans(8)
    labels = regions(photographs)
    assert torch.equal(regions(photographs), labels)
    assert torch.equal(regions(photographs.to(memory_format=torch.channels_last)), labels)
    assert torch.equal(regions(photographs.double()), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(regions(photographs), labels)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_constant_picture_splits_by_position(level: float) -> None:
    labels = ColorPositionKMeans(4)(torch.full((1, 3, 32, 32), level))[0]
    assert torch.equal(labels, GridRegions(2, 2)(torch.zeros(1, 3, 32, 32))[0])


def test_empty_regions_stay_empty_without_position() -> None:
    labels = ColorPositionKMeans(5, position_weight=0)(torch.full((2, 3, 9, 9), 0.3))
    assert torch.equal(labels, torch.zeros_like(labels))  # a tie goes to the lowest index


def test_more_regions_than_pixels() -> None:
    labels = ColorPositionKMeans(20)(torch.rand(1, 3, 3, 3))
    assert labels.unique().numel() == 9


def test_values_outside_the_range_are_clamped() -> None:
    pictures = torch.randn(2, 3, 20, 20) * 2
    regions = ColorPositionKMeans(6)
    assert torch.equal(regions(pictures), regions(pictures.clamp(0, 1)))


def test_a_broken_picture_still_gets_labels_in_range() -> None:
    pictures = torch.rand(2, 3, 20, 20)
    pictures[0, :, 3] = float("nan")
    labels = ColorPositionKMeans(6)(pictures)
    assert labels.min() >= 0
    assert labels.max() < 6
    assert torch.equal(labels[1], ColorPositionKMeans(6)(pictures[1:])[0])


def test_a_large_position_weight_approaches_a_grid() -> None:
    labels = ColorPositionKMeans(4, position_weight=1000.0)(torch.rand(1, 3, 32, 32))
    assert torch.equal(labels, GridRegions(2, 2)(torch.zeros(1, 3, 32, 32)))


def test_no_value_is_read_on_the_host_and_no_gradient_flows() -> None:
    # A tensor on the meta device has no values: any look at them raises.
    assert ColorPositionKMeans(8)(torch.rand(2, 3, 90, 70, device="meta")).shape == (2, 90, 70)
    assert GridRegions()(torch.rand(2, 3, 90, 70, device="meta")).shape == (2, 90, 70)
    assert not ColorPositionKMeans(2)(torch.rand(1, 3, 8, 8, requires_grad=True)).requires_grad


def test_compiles(photographs: Tensor) -> None:
    regions = ColorPositionKMeans(8, iterations=2)
    compiled = torch.compile(lambda x: regions(x), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(photographs), regions(photographs))


@pytest.mark.gpu
def test_cuda_gives_the_same_regions(photographs: Tensor) -> None:
    regions = ColorPositionKMeans(8)
    cuda = regions(photographs.cuda()).cpu()
    assert (cuda == regions(photographs)).float().mean() > 0.999


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 20), st.integers(1, 20))
def test_grid_rectangles_are_ordered_and_even(rows: int, cols: int, height: int, width: int) -> None:
    grid = GridRegions(rows, cols)
    labels = grid(torch.zeros(2, 3, height, width))
    assert grid.num_regions == rows * cols
    assert torch.equal(labels[0], labels[1])
    row, col = labels[0] // cols, labels[0] % cols
    assert (row[:, :1] == row).all()
    assert (col[:1] == col).all()
    assert (row[:, 0].diff() >= 0).all()
    assert int(row.max()) < rows
    sizes = torch.bincount(col[0], minlength=cols)
    assert int(sizes.max() - sizes.min()) <= 1


def test_sources_are_values() -> None:
    regions = ColorPositionKMeans(5)
    assert pickle.loads(pickle.dumps(regions)) == copy.deepcopy(regions) == ColorPositionKMeans(5)
    assert "num_regions=5" in repr(regions)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_regions": 0}, ValueError, "num_regions must be a whole number >= 1, got 0"),
        ({"num_regions": 2.0}, ValueError, "num_regions must be a whole number >= 1, got 2.0"),
        ({"iterations": 0}, ValueError, "iterations must be a whole number >= 1"),
        ({"working_size": True}, ValueError, "working_size must be a whole number >= 1, got True"),
        ({"position_weight": -1.0}, ValueError, "position_weight must be a finite number"),
        ({"position_weight": float("nan")}, ValueError, "position_weight must be a finite number"),
    ],
)
def test_rejects_bad_options(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ColorPositionKMeans(**options)  # type: ignore[arg-type]


def test_rejects_a_bad_grid() -> None:
    with pytest.raises(ValueError, match="rows must be a whole number >= 1, got 0"):
        GridRegions(0, 2)
    with pytest.raises(ValueError, match="cols must be a whole number >= 1, got "):
        GridRegions(2, "2")  # type: ignore[arg-type]


@pytest.mark.parametrize("regions", [ColorPositionKMeans(5), GridRegions()])
def test_a_banks_features_make_no_difference(regions: ColorPositionKMeans | GridRegions) -> None:
    pictures = torch.rand(2, 3, 20, 24)
    assert torch.equal(regions(pictures, [torch.rand(2, 7, 3, 3)]), regions(pictures))


@pytest.mark.parametrize("regions", [ColorPositionKMeans(2), GridRegions()])
def test_rejects_bad_pictures(regions: ColorPositionKMeans | GridRegions) -> None:
    with pytest.raises(TypeError, match=r"images must be a floating-point tensor, got torch\.uint8"):
        regions(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must have 4 axes \(B, 3, H, W\), got shape \(3, 4, 4\)"):
        regions(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"images must have 3 channels .* got shape \(1, 4, 4, 4\)"):
        regions(torch.zeros(1, 4, 4, 4))
