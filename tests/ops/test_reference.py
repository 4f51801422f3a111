"""The literal equations against numbers computed by hand and facts that need no formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from skt_components.ops import reference

E = math.e


def grid(rows: list) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# eq. 4


def test_eq4_of_one_pixel_by_hand():
    # K.Q / gamma = [[0, 0], [ln 3, 0]] with rows for key channels: weights 1/4, 3/4 for the first query channel.
    query, key, value = (grid([[[[a]], [[b]]]]) for a, b in ((1.0, 0.0), (0.0, 2 * math.log(3)), (4.0, 8.0)))
    out = reference.eq4_prior_fusion(query, key, value, 2.0, 1, normalize=False)
    assert out.flatten().tolist() == pytest.approx([0.25 * 4 + 0.75 * 8, 0.5 * 4 + 0.5 * 8])


def test_eq4_normalized_sees_cosines_only():
    # Query channels point along and against the first key channel, and at a right angle to the second.
    query, key = grid([[[[3.0, 0.0]], [[-5.0, 0.0]]]]), grid([[[[7.0, 0.0]], [[0.0, 2.0]]]])
    value = grid([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    out = reference.eq4_prior_fusion(query, key, value, 1.0, 1, normalize=True)
    assert out.flatten().tolist() == pytest.approx([E / (E + 1), 1 / (E + 1), 1 / (1 + E), E / (1 + E)])


def test_eq4_heads_are_groups_of_neighboring_channels_with_their_own_gamma():
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64)
    gammas = grid([0.5, 2.0]).view(2, 1, 1)
    out = reference.eq4_prior_fusion(x, x, x, gammas, 2, normalize=False)
    for head, gamma in enumerate((0.5, 2.0)):
        part = x[:, 2 * head : 2 * head + 2]
        torch.testing.assert_close(
            out[:, 2 * head : 2 * head + 2], reference.eq4_prior_fusion(part, part, part, gamma, 1, False)
        )


# eq. 6 and 7


def test_eq6_centers_by_hand():
    assert reference.eq6_centers(4, (0.0, 1.0)).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert reference.eq6_centers(2, (-1.0, 3.0)).tolist() == [0.0, 2.0]
    assert reference.eq6_centers(1, (0.0, 1.0)).tolist() == [0.5]


def test_eq7_kernel_by_hand():
    center = grid(0.5)
    assert reference.eq7_kernel(grid([0.5, 0.7, 0.3, 0.9]), center, 0.2).tolist() == pytest.approx(
        [1.0, 1 / E, 1 / E, E**-4]
    )


# eq. 8


def test_eq8_counts_pixels_that_sit_on_centers():
    x = grid([[[0.125, 0.125], [0.875, 0.375]], [[0.625] * 2] * 2])
    histogram = reference.eq8_histogram(x, 4, (0.0, 1.0), 0.01)
    assert (histogram - grid([[2, 1, 0, 1], [0, 0, 4, 0]])).abs().max() < 1e-12


def test_eq8_between_two_centers_by_hand():
    # 0.5 lies one eighth from the centers of bins 1 and 2, three eighths from the others.
    histogram = reference.eq8_histogram(grid([[[0.5]]]), 4, (0.0, 1.0), 0.125)
    assert histogram[0].tolist() == pytest.approx([E**-9, E**-1, E**-1, E**-9])


# eq. 9 and 10


def test_eq9_by_hand():
    # Three pixels on one center against one there and two on another: (3 - 1)^2 + (0 - 2)^2, over two channels.
    student = grid([[[0.25, 0.25, 0.25]], [[0.75, 0.75, 0.75]]])
    teacher = grid([[[0.25, 0.75, 0.75]], [[0.75, 0.75, 0.75]]])
    assert reference.eq9_histogram_loss(student, teacher, 2, (0.0, 1.0), 0.01).item() == pytest.approx(8 / 2)
    assert reference.eq9_histogram_loss(teacher, student, 2, (0.0, 1.0), 0.01).item() == pytest.approx(8 / 2)
    assert reference.eq9_histogram_loss(student, student, 2, (0.0, 1.0), 0.01) == 0


def test_eq10_averages_eq9_over_the_regions_by_hand():
    student = grid([[[0.25, 0.25, 0.25, 0.75]]])
    teacher = grid([[[0.25, 0.75, 0.75, 0.75]]])
    masks = grid([[[1, 1, 0, 0]], [[0, 0, 1, 1]], [[0, 0, 0, 0]], [[1, 1, 1, 1]]])
    # Region by region, (1^2 + 1^2), (1^2 + 1^2), 0 and (2^2 + 2^2), divided by four regions. Masked pixels sit at 0.
    assert reference.eq10_color_loss(student, teacher, masks, 2, (0.0, 1.0), 0.01).item() == pytest.approx(12 / 4)


def test_eq10_multiplies_the_picture_by_a_soft_mask():
    # Half of 0.5 is 0.25, the center of bin 0; half of 1.5 is 0.75, the center of bin 1.
    student, teacher, mask = grid([[[0.5]]]), grid([[[1.5]]]), grid([[[0.5]]])
    assert reference.eq10_color_loss(student, teacher, mask, 2, (0.0, 1.0), 0.01).item() == pytest.approx(2.0)


# eq. 11 and 12


def test_eq11_by_hand():
    student, teacher, mask = grid([1.0, 2.0]), grid([10.0, 20.0]), grid([0.0, 1.0])
    enhanced = reference.eq11_enhanced_feature(student, teacher, mask, lambda x: x + 1, lambda x: 2 * x, lambda x: -x)
    assert enhanced.tolist() == [-2.0, -40.0]


def test_eq11_with_layers():
    encoder_s, encoder_t, decoder = (nn.Conv2d(3, 3, 1).double() for _ in range(3))
    student, teacher = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64).unbind(0)
    for mask, wanted in ((0.0, encoder_s(student)), (1.0, encoder_t(teacher))):
        enhanced = reference.eq11_enhanced_feature(
            student, teacher, torch.full_like(student, mask), encoder_s, encoder_t, decoder
        )
        torch.testing.assert_close(enhanced, decoder(wanted))


def test_eq12_by_hand():
    assert reference.eq12_alignment_loss(grid([1.0, 2.0, 3.0, 4.0]), grid([1.0, 0.0, 3.0, 0.0])).item() == 5.0


# all of them


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    x, y = torch.rand(2, 3, 4, 5, dtype=dtype).unbind(0)
    masks = torch.ones(2, 4, 5, dtype=torch.bool)
    results = (
        reference.eq4_prior_fusion(x[None], y[None], y[None], 1.0, 1, True),
        reference.eq8_histogram(x, 8, (0, 1), 0.1),
        reference.eq9_histogram_loss(x, y, 8, (0, 1), 0.1),
        reference.eq10_color_loss(x, y, masks, 8, (0, 1), 0.1),
        reference.eq12_alignment_loss(x, y),
    )
    assert all(result.dtype == dtype for result in results)
