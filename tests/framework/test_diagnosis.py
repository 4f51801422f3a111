"""Gradients side by side, and colors of regions."""

import pytest
import torch

from skt_components.banks.priors import priors_from_labels, priors_from_masks
from skt_components.framework import compare_gradients, region_distance


def test_norms_and_cosines_are_those_of_the_formulas():
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    y = torch.tensor([1.0], requires_grad=True)
    terms = {
        "org": (x * x).sum() / 2,
        "same": (x * x).sum(),
        "against": -x.sum() - y.sum(),
        "across": 4 * x[0] - 3 * x[1],
    }
    found = compare_gradients(terms, {"x": [x], "both": [x, y], "y": [y]})
    assert found["x"]["org"] == (5.0, 1.0)
    assert found["x"]["same"] == (10.0, 1.0)
    assert found["x"]["against"] == pytest.approx((2**0.5, -7 / (5 * 2**0.5)))
    assert found["x"]["across"] == pytest.approx((5.0, 0.0))
    assert found["both"]["against"] == pytest.approx((3**0.5, -7 / (5 * 3**0.5)))
    assert found["y"]["org"] == (0.0, 0.0)
    assert found["y"]["against"] == (1.0, 0.0)  # nothing to have an angle with
    assert x.grad is None
    sum(terms.values()).backward()


def test_places_and_terms_without_a_gradient():
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    found = compare_gradients({"org": x.sum(), "constant": torch.tensor(2.0)}, {"x": [x], "frozen": [torch.ones(2)]})
    assert set(found) == {"x"}
    assert found["x"]["constant"] == (0.0, 0.0)
    assert compare_gradients({"org": x.sum()}, {"nothing": []}) == {}


def test_a_scale_keeps_small_gradients_of_half_precision():
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    term = (x * torch.tensor(3e-5, dtype=torch.float16)).sum() * torch.tensor(1e-4, dtype=torch.float16)
    lost = compare_gradients({"org": term}, {"x": [x]})["x"]["org"].norm
    kept = compare_gradients({"org": term}, {"x": [x]}, scale=1024.0)["x"]["org"].norm
    assert lost == 0
    assert kept == pytest.approx(2 * 3e-9, rel=0.1)


def test_the_distance_of_shifted_colors_is_the_shift_and_stays_in_its_region():
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    labels[:, :8] = 1
    priors = priors_from_labels([], labels, 3)
    target = torch.rand(2, 3, 16, 16) / 2
    picture = target.clone()
    picture[1, :, :8] += 0.25
    found = region_distance(picture, target, priors)
    assert found.shape == (2, 3)
    assert found[0].tolist() == [0, 0, 0]
    assert found[1].tolist() == pytest.approx([0, 0.25, 0], abs=1 / 256)


def test_where_the_colors_are_in_a_region_does_not_matter():
    target = torch.rand(1, 3, 8, 8)
    picture = target.flatten(2)[..., torch.randperm(64)].view(1, 3, 8, 8)
    whole = priors_from_labels([], torch.zeros(1, 8, 8, dtype=torch.long), 1)
    assert region_distance(picture, target, whole).item() == pytest.approx(0, abs=1e-6)


def test_overlapping_regions_and_values_outside():
    masks = torch.ones(1, 2, 8, 8, dtype=torch.bool)
    masks[:, 1, 4:] = False
    priors = priors_from_masks([], masks)
    distance = region_distance(torch.full((1, 3, 8, 8), 3.0), torch.full((1, 3, 8, 8), -1.0), priors)
    assert distance.tolist() == [[pytest.approx(255 / 256), pytest.approx(255 / 256)]]


def test_nan_stays_in_its_region():
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[:, :4] = 1
    picture = torch.rand(2, 3, 8, 8)
    picture[1, 2, 0, 0] = torch.nan
    found = region_distance(picture, picture.nan_to_num(), priors_from_labels([], labels, 3))
    assert found.isnan().tolist() == [[False] * 3, [False, True, False]]


def test_pictures_must_fit():
    whole = priors_from_labels([], torch.zeros(1, 8, 8, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="pictures"):
        region_distance(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 4), whole)
