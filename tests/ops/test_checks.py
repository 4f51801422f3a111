"""Checks of arguments: accepted values, rejected values, and the argument's name in the message."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from skt_components.ops.checks import (
    at_least_float32,
    check_batch,
    check_broadcast,
    check_choice,
    check_count,
    check_exposure_times,
    check_fraction,
    check_non_negative,
    check_not_empty,
    check_output_type,
    check_per_picture,
    check_picture,
    check_positive,
    check_range,
    check_same_dtype,
    check_same_shape,
    check_scale,
    check_sides,
    check_tensor,
    clone_inference_tensor,
    float_dtype,
    read_extremes,
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
    assert at_least_float32(torch.zeros(1, dtype=dtype)).dtype == wanted


@pytest.mark.parametrize("value", [0, 0.25, 1, np.float32(0.5)])
def test_fractions_include_both_ends(value):
    check_fraction("mask_ratio", value)


@pytest.mark.parametrize("value", [1, 2, np.int64(3)])
def test_a_count_comes_back_as_an_int(value):
    assert type(check_count("stride", value, 1)) is int
    assert check_count("stride", value, 1) == value


@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (4, 1), (2, 3, 4, 5), (1, 1, 1, 1)])
def test_shapes_that_broadcast_pass(shape):
    check_broadcast("mask", torch.zeros(shape), picture.shape)


def test_one_for_all_pictures_or_one_for_each():
    for shape in ((3,), (2, 3)):
        check_per_picture("gains", torch.zeros(shape), (3,), 2)


def test_autocast_may_mix_all_dtypes_but_float64():
    single, half, double = (torch.zeros(1, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64))
    check_same_dtype("a", single, "b", single)
    with torch.autocast("cpu", torch.bfloat16):
        check_same_dtype("a", single, "b", half)
        for mixed in ((single, double), (double, half)):
            with pytest.raises(TypeError, match=r"^a and b must have one dtype, got torch\.float"):
                check_same_dtype("a", mixed[0], "b", mixed[1])
    for other in (half, half.to("meta")):
        with pytest.raises(TypeError, match=r"^a and b must have one dtype, got torch\.float32 and torch\.bfloat16$"):
            check_same_dtype("a", single, "b", other)


def test_extremes_are_read_where_that_is_free():
    values = torch.tensor([[0.5, -2.0], [3.0, 0.0]])
    assert read_extremes(values.requires_grad_()) == (-2.0, 3.0)
    assert read_extremes(values[:0]) is read_extremes(values.to("meta")) is None
    assert torch.vmap(lambda x: x + (read_extremes(x) is None))(values)[0, 0] == 1.5


def test_only_tensors_of_inference_mode_are_cloned():
    plain = torch.zeros(2)
    with torch.inference_mode():
        frozen = torch.ones(2)
        assert clone_inference_tensor(frozen) is frozen
    assert clone_inference_tensor(plain) is plain
    assert clone_inference_tensor(None) is None
    clone = clone_inference_tensor(frozen)
    assert not clone.is_inference()
    assert torch.equal(clone, frozen)


# scales of pictures


def test_values_beyond_the_limits_warn_with_the_worse_end():
    few = torch.zeros(1, 3, 10, 10)
    few[..., 0, :2] = 7.25
    with pytest.warns(UserWarning, match=r"^target must be linear, got values up to 7\.25$") as caught:
        check_scale("target", few, "linear", high=7.0)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"^target must be linear, got values down to -7\.25$"):
        check_scale("target", -few, "linear", low=-7.0)
    with pytest.warns(UserWarning, match=r"values up to 7\.249$"):
        check_scale("target", few - 1e-3, "linear", low=-1e-4, high=1.0)  # both: the upper end is named
    with pytest.warns(UserWarning, match="values up to 7.25"):
        check_scale("target", few, "linear", high=1.0, share=0.019)
    with pytest.warns(UserWarning, match="values up to 0.5"):
        check_scale("target", torch.full((4,), 0.5), "linear", dim=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_scale("target", few, "linear", low=0.0, high=7.25)
        check_scale("target", few, "linear", high=1.0, share=0.02)  # exactly that share
        check_scale("target", few, "linear", dim=7.0)
        check_scale("target", few.to("meta"), "linear", high=1.0)


def test_whole_numbers_of_a_file_warn():
    codes = torch.arange(256.0)
    with pytest.warns(UserWarning, match="values up to 255"):
        check_scale("hdr", codes, "linear", codes=True)
    with pytest.warns(UserWarning, match="values up to 6.554e"):
        check_scale("hdr", codes * 257, "linear", codes=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_scale("hdr", codes, "linear")
        for other in (codes + 0.5, codes / 255, codes.clamp(0, 15), codes * 258):
            check_scale("hdr", other, "linear", codes=True)
    with pytest.warns(UserWarning, match="values up to 16"):
        check_scale("hdr", codes.clamp(0, 16), "linear", codes=True)  # 17 different numbers


def test_exposure_times_are_finite_and_above_zero():
    check_exposure_times("times", torch.tensor([0.25, 1.0]))
    check_exposure_times("times", torch.empty(2, device="meta"))
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"^times must be finite and above zero, got \[1\.0, .*\]: exp"):
            check_exposure_times("times", torch.tensor([1.0, wrong]))


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


def test_the_output_of_a_network_is_a_picture():
    check_output_type(picture)
    check_picture(picture)
    for check in (check_output_type, check_picture):
        with pytest.raises(TypeError, match=r"^the network must return a tensor .*, got tuple: .*forward_orm="):
            check((picture, picture))
    with pytest.raises(ValueError, match=r"^the network's output must have 4 axes .*, got shape \(3, 4, 5\)$"):
        check_picture(picture[0])


@pytest.mark.parametrize("shape", [(3,), (3, 5), (1, 2, 3, 4, 5), (3, 3, 4, 5)])
def test_shapes_that_do_not_broadcast_are_rejected(shape):
    with pytest.raises(ValueError, match=r"^mask must broadcast to the picture's \(2, 3, 4, 5\), got shape \("):
        check_broadcast("mask", torch.zeros(shape), picture.shape, "the picture's ")


def test_emptiness_is_named():
    with pytest.raises(ValueError, match=r"^batch must not be empty: hdr must have B >= 1, got shape \(0, 3\)$"):
        check_batch("hdr", torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"^hdr must not be empty, got shape \(2, 0\)$"):
        check_not_empty("hdr", torch.zeros(2, 0))
    for size in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match=r"^hdr must have H, W >= 1, got shape \(2, 3, "):
            check_sides("hdr", torch.zeros(2, 3, *size))
    check_batch("hdr", picture[:1])
    check_not_empty("hdr", picture[:1, :1, :1, :1])
    check_sides("hdr", torch.zeros(0, 3, 1, 1))


@pytest.mark.parametrize("shape", [(), (2,), (1, 3), (3, 2)])
def test_other_shapes_than_one_for_each_picture_are_rejected(shape):
    with pytest.raises(ValueError, match=r"^gains must have shape \(3,\) or \(2, 3\), got \("):
        check_per_picture("gains", torch.zeros(shape), (3,), 2)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), "0.5", True, None])
def test_a_fraction_is_wanted(value):
    with pytest.raises(ValueError, match=r"^mask_ratio must be in \[0, 1\], got "):
        check_fraction("mask_ratio", value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None])
def test_a_whole_number_is_wanted(value):
    with pytest.raises(ValueError, match=r"^stride must be a whole number >= 1, got "):
        check_count("stride", value, 1)


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
