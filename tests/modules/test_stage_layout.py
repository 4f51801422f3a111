"""Layouts of stages: what the shape of an output says, and the map that it becomes."""

from __future__ import annotations

import pytest
import torch

from skt_components.modules.stage_layout import StageLayout, agree, as_feature_map, find_layouts, halve_and_double

SIZE = (64, 96)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 12, 16, 24), StageLayout("BCHW")),
        ((2, 12, 60, 92), StageLayout("BCHW")),  # convolutions without padding
        ((2, 16, 24, 12), StageLayout("BHWC")),
        ((2, 96, 12), StageLayout("BLC")),
        ((2, 97, 12), StageLayout("BLC", prefix=1)),  # a class token
        ((2, 101, 12), StageLayout("BLC", prefix=5)),  # and four registers
        ((6, 12, 16, 24), StageLayout("BCHW", frames=3)),
        ((6, 97, 12), StageLayout("BLC", frames=3, prefix=1)),
        ((2, 12, 3, 16, 24), StageLayout("BCNHW")),
        ((2, 3, 16, 24, 12), StageLayout("BNHWC")),
    ],
)
def test_the_shape_tells_the_layout(shape, layout):
    assert find_layouts(shape, SIZE, batch=2, frames=3)[0] == layout


@pytest.mark.parametrize(
    "shape",
    [
        (),
        (2,),
        (2, 12),
        (1, 12, 16, 24),  # a constant without the batch
        (48, 12, 8, 8),  # windows in the batch
        (96, 2, 12),  # tokens before the batch
        (2, 4, 96, 8),  # heads of an attention
        (2, 48, 8, 8, 16),  # windows in an axis
        (2, 0, 16, 24),
    ],
)
def test_what_is_no_stage_has_no_layout(shape):
    assert find_layouts(shape, SIZE, batch=2, frames=3) == []


def test_a_second_picture_tells_learned_queries_from_registers():
    first = find_layouts((1, 100, 12), SIZE, 1)
    assert first[0] == StageLayout("BLC", prefix=4)
    assert agree(first, (1, 100, 12), find_layouts((2, 52, 12), (32, 96), 2), (2, 52, 12))[0] == first[0]
    assert agree(first, (1, 100, 12), find_layouts((2, 100, 12), (32, 96), 2), (2, 100, 12)) == []


@pytest.mark.parametrize("size", [(60, 64), (50, 70), (33, 96)])
@pytest.mark.parametrize("stride", [1, 4])
def test_tokens_of_a_padded_picture_become_the_map_they_came_from(size, stride):
    height, width = (-(-side // 8) * 8 // stride for side in size)
    picture = torch.rand(2, 5, height, width)
    assert torch.equal(as_feature_map(picture.flatten(2).mT, size), picture)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_leading_tokens_are_left_out(prefix):
    picture = torch.rand(2, 5, 16, 24)
    tokens = torch.cat([torch.rand(2, prefix, 5), picture.flatten(2).mT], 1)
    assert torch.equal(as_feature_map(tokens, SIZE, StageLayout("BLC", prefix=prefix)), picture)


def test_frames_become_channels_in_either_order():
    frames = torch.rand(2, 3, 5, 16, 24)
    wanted = frames.flatten(1, 2)
    for first, stage in ((False, frames.flatten(0, 1)), (True, frames.transpose(0, 1).flatten(0, 1))):
        layout = StageLayout("BCHW", 3, first)
        assert torch.equal(as_feature_map(stage, SIZE, layout), wanted)
        assert layout.count_channels(stage.shape) == 15
    for axes, stage in (("BCNHW", frames), ("BNHWC", frames.movedim(2, -1))):
        assert torch.equal(as_feature_map(stage, SIZE, StageLayout(axes)), wanted)
        assert StageLayout(axes).count_channels(stage.shape) == 15


def test_a_stage_of_another_shape_than_its_layout_is_an_error():
    for layout in (StageLayout("BLC"), StageLayout("BCNHW"), StageLayout("BCHW", frames=2)):
        with pytest.raises(ValueError, match=r"must be a map .* cover the picture \(64, 96\), got \(3, 5, 16, 24\)"):
            as_feature_map(torch.rand(3, 5, 16, 24), SIZE, layout)


def test_the_second_picture_is_the_first_twice_at_half_the_height():
    sample = torch.rand(3, 3, 6, 9, 8)
    pair = halve_and_double(sample)
    assert pair.shape == (2, 3, 6, 4, 8)
    assert all(torch.equal(picture, sample[0, ..., :4, :]) for picture in pair)
