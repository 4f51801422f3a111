"""Checks of arguments: accepted values, rejected values, and the argument's name in the message."""

from __future__ import annotations

import pytest
import torch

from skt_components.ops.checks import (
    check_choice,
    check_non_negative,
    check_positive,
    check_range,
    check_same_shape,
    check_tensor,
    float_dtype,
)

picture = torch.zeros(2, 3, 4, 5)

# invariants


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_passes(dtype):
    check_tensor("x", picture.to(dtype), ndim=4, layout="(B, C, H, W)", channels=3)


def test_any_number_of_axes_passes_when_none_is_asked():
    check_tensor("x", torch.tensor(0.0))
    check_tensor("x", torch.zeros(0, 1, 2, 3, 4, 5))


def test_values_are_never_read():
    # A meta tensor has no values: a check that reads one fails here, and would stall an accelerator.
    meta = torch.empty(2, 3, 4, 5, device="meta")
    check_tensor("x", meta, ndim=4, channels=3)
    check_same_shape("a", meta, "b", meta.clone())


@pytest.mark.parametrize("value", [1, 0.5, 1e-300])
def test_positive_numbers_pass(value):
    check_positive("mu", value)


def test_a_range_comes_back_as_two_floats():
    assert check_range("value_range", (0, 1)) == (0.0, 1.0)
    assert check_range("value_range", [-2, 3.5]) == (-2.0, 3.5)
    assert all(type(v) is float for v in check_range("value_range", (0, 1)))


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_computation_is_in_float32_unless_the_input_is_float64(dtype, wanted):
    assert float_dtype(torch.zeros(1, dtype=dtype)) == wanted


# rejects_bad_input


@pytest.mark.parametrize("value", [None, 1.0, [[1.0]], "x"])
def test_a_tensor_is_wanted(value):
    with pytest.raises(TypeError, match=rf"^student must be a torch.Tensor \(B, C\), got {type(value).__name__}$"):
        check_tensor("student", value, layout="(B, C)")
    with pytest.raises(TypeError, match=r"^student must be a torch\.Tensor"):
        check_tensor("student", value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_a_floating_dtype_is_wanted(dtype):
    with pytest.raises(TypeError, match=f"^student must be a floating-point tensor, got {dtype}$"):
        check_tensor("student", picture.to(dtype))


def test_the_number_of_axes_is_checked():
    with pytest.raises(ValueError, match=r"^hdr must have 3 axes \(C, H, W\), got shape \(2, 3, 4, 5\)$"):
        check_tensor("hdr", picture, ndim=3, layout="(C, H, W)")


def test_the_number_of_channels_is_checked():
    with pytest.raises(ValueError, match=r"^raw must have 4 channels \(B, 4, h, w\), got shape \(2, 3, 4, 5\)$"):
        check_tensor("raw", picture, ndim=4, layout="(B, 4, h, w)", channels=4)


def test_equal_shapes_are_checked():
    with pytest.raises(ValueError, match=r"^a and b must have the same shape, got \(2, 3, 4, 5\) and \(1, 3, 4, 5\)$"):
        check_same_shape("a", picture, "b", picture[:1])


def test_one_device_is_checked():
    with pytest.raises(ValueError, match=r"^a and b must be on one device, got cpu and meta$"):
        check_same_shape("a", picture, "b", picture.to("meta"))


def test_choices_are_named():
    with pytest.raises(ValueError, match=r"^reduction must be one of \['mean', 'sum'\], got 'avg'$"):
        check_choice("reduction", "avg", ("sum", "mean"))
    check_choice("soft_masks", None, (None, "weighted"))


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "1", None, torch.tensor(1.0)])
def test_a_finite_number_above_zero_is_wanted(value):
    with pytest.raises(ValueError, match=r"^mu must be a finite number > 0, got "):
        check_positive("mu", value)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), "1", None, True])
def test_a_finite_number_of_at_least_zero_is_wanted(value):
    check_non_negative("weight", 0)
    with pytest.raises(ValueError, match=r"^weight must be a finite number >= 0, got "):
        check_non_negative("weight", value)


@pytest.mark.parametrize("value", [1.0, None, (0,), (0, 1, 2), ("a", "b")])
def test_a_range_is_a_pair(value):
    with pytest.raises(ValueError, match=r"^value_range must be a pair \(low, high\), got "):
        check_range("value_range", value)


@pytest.mark.parametrize("value", [(1, 0), (0, 0), (0, float("inf")), (float("-inf"), 0), (float("nan"), 1)])
def test_a_range_is_finite_and_increasing(value):
    with pytest.raises(ValueError, match=r"^value_range must be finite with low < high, got "):
        check_range("value_range", value)
