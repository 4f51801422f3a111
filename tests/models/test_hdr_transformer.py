"""HDR-Transformer: the published forward, and what its output may and may not depend on."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from skt_components.models import HDRTransformer


def test_other_numbers_of_frames_have_a_branch_per_moving_frame():
    def branches(**options) -> list[str]:
        return [name for name, _ in HDRTransformer(features=4, depths=[1], num_heads=[1], **options).named_children()]

    five = branches(num_frames=5, reference=0)
    assert [name for name in five if name.startswith("att")] == [f"att_module_{k}" for k in (2, 3, 4, 5)]
    assert [name for name in five if name.startswith("conv_f")][:5] == [f"conv_f{k}" for k in (1, 2, 3, 4, 5)]
    first = HDRTransformer(features=4, depths=[1], num_heads=[1], reference=0)
    assert first._branches() == {1: "att_module_h", 2: "att_module_l"}


# matches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(16, 24), (13, 9), (8, 8)])
def test_the_forward_is_the_published_one_with_its_gradient(small, literal_swin, equal_with_gradient, dtype, size):
    # HDR-Transformer for three frames, written out from the description.
    model = small(HDRTransformer, peak=2.0).to(dtype)
    bracket = torch.rand(2, 3, 6, *size, dtype=dtype, requires_grad=True)
    by_hand = literal_swin(model, bracket)
    w, conv, norm = by_hand.w, by_hand.conv, by_hand.norm

    def block(name: str, tokens: torch.Tensor, count: int, shift: int) -> torch.Tensor:
        normed = norm(f"{name}.norm1", tokens)
        local = conv(f"{name}.lce.conv.1", conv(f"{name}.lce.conv.0", by_hand.to_planes(normed)))
        local = F.leaky_relu(conv(f"{name}.lce.conv.2", local), 0.2)
        gate = (local.mean((2, 3)) @ w[f"{name}.lce.fc.0.weight"].T).relu() @ w[f"{name}.lce.fc.2.weight"].T
        refined = by_hand.block(name, tokens, count, shift)
        return refined + by_hand.to_tokens(local * gate.sigmoid()[..., None, None])

    def gate(name: str, moving: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        hidden = F.leaky_relu(conv(f"{name}.att1", torch.cat([moving, reference], 1)), 0.01)
        return moving * conv(f"{name}.att2", hidden).sigmoid()

    f1, f2, f3 = (conv(f"conv_f{i + 1}", by_hand.padded[:, i]) for i in range(3))
    first = conv("conv_first", torch.cat([gate("att_module_h", f1, f2), f2, gate("att_module_l", f3, f2)], 1))
    tokens = norm("patch_embed.norm", by_hand.to_tokens(first))
    for i, (count, depth) in enumerate([(2, 2), (4, 1)]):
        inner = tokens
        for j in range(depth):
            inner = block(f"layers.{i}.residual_group.blocks.{j}", inner, count, 4 * (j % 2))
        tokens = tokens + by_hand.to_tokens(conv(f"layers.{i}.dilated_conv", by_hand.to_planes(inner), 2))
    body = conv("conv_after_body", by_hand.to_planes(norm("norm", tokens)) + first) + f2
    expected = 2.0 * conv("conv_last", body).sigmoid()[..., : size[0], : size[1]]
    equal_with_gradient(model, bracket, expected)


# invariants


def test_inside_a_crop_the_output_is_that_of_the_whole_picture(small):
    model = small(HDRTransformer, depths=(2,), num_heads=(2,)).double()
    for block in model.layers[0].residual_group.blocks:
        block.lce.fc[2].weight.data.zero_()  # the only part that depends on the whole picture
    # conv, attention, conv_first: 4; two blocks of windows: up to 7 and 4 + 7; dilated and last convolutions: 4
    bracket = torch.rand(1, 3, 6, 96, 88, dtype=torch.float64)
    inside = slice(32, -32)
    crop, whole = model(bracket[..., 8:88, 8:80]), model(bracket)[..., 8:88, 8:80]
    torch.testing.assert_close(crop[..., inside, inside], whole[..., inside, inside])


# training


def test_starts_from_the_weights_of_the_authors():
    torch.manual_seed(3)
    model = HDRTransformer()
    block = model.layers[2].residual_group.blocks[3]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, block.lce.fc[0].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert block.attn.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.15)
    assert block.attn.qkv.bias.abs().max() == 0
