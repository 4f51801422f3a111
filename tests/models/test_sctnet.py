"""SCTNet: the published forward, and what its output may and may not depend on."""

from __future__ import annotations

import pytest
import torch

from skt_components.models import SCTNet


def test_other_numbers_of_frames_have_a_branch_per_moving_frame():
    options = {"features": 20, "depths": [1], "num_heads": [1]}
    five = [name for name, _ in SCTNet(num_frames=5, reference=0, **options).named_children()]
    assert [name for name in five if name.startswith("channel")] == [f"channel_layers_{k}" for k in (2, 3, 4, 5)]
    assert five[:6] == ["conv1", "conv2", "conv3", "conv4", "conv5", "conv_end"]
    options["features"] = 12
    assert SCTNet(reference=0, **options)._branches() == {1: "channel_layers_lm", 2: "channel_layers_rm"}


# matches_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(16, 24), (13, 9), (8, 8)])
def test_the_forward_is_the_published_one_with_its_gradient(small, literal_swin, equal_with_gradient, dtype, size):
    # SCTNet for three frames, written out from the description.
    model = small(SCTNet, peak=2.0).to(dtype)
    bracket = torch.rand(2, 3, 6, *size, dtype=dtype, requires_grad=True)
    by_hand = literal_swin(model, bracket)
    w, conv, norm, mlp = by_hand.w, by_hand.conv, by_hand.norm, by_hand.mlp

    def across(name: str, query: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        inner = {"q": norm(f"{name}.norm1_x.body", query), "k": norm(f"{name}.norm1_y.body", other)}
        inner["v"] = inner["k"]
        q, k, v = (inner[kind] @ w[f"{name}.attn.{kind}.weight"][:, :, 0, 0].T for kind in "qkv")
        outputs = []
        for head in range(2):
            a, b, c = (part[..., 2 * head : 2 * head + 2].transpose(1, 2) for part in (q, k, v))
            a, b = (part / part.square().sum(-1, keepdim=True).sqrt() for part in (a, b))
            outputs.append((a @ b.transpose(1, 2) * w[f"{name}.attn.temperature"][head]).softmax(-1) @ c)
        attended = torch.cat(outputs, 1).transpose(1, 2) @ w[f"{name}.attn.project_out.weight"][:, :, 0, 0].T
        tokens = query + attended
        return tokens + mlp(f"{name}.ffn", norm(f"{name}.norm2", tokens))

    encoded = [conv(f"conv{i + 1}", by_hand.padded[:, i]) for i in range(3)]
    tokens = norm("patch_embed.norm", by_hand.to_tokens(torch.cat(encoded, 1)))
    x1, x2, x3 = tokens.chunk(3, 2)
    tokens = mlp("conv_first", tokens)
    for i, (count, depth) in enumerate([(2, 2), (3, 1)]):
        inner = tokens
        for j in range(depth):
            inner = by_hand.block(f"layers.{i}.residual_group.blocks.{j}", inner, count, 4 * (j % 2))
        tokens = tokens + by_hand.to_tokens(conv(f"layers.{i}.conv", by_hand.to_planes(inner)))
        x11, x22, x33 = tokens.chunk(3, 2)
        left = across(f"channel_layers_lm.{i}", x2 + x22, x1 + x11)
        right = across(f"channel_layers_rm.{i}", x2 + x22, x3 + x33)
        tokens = mlp(f"mlps.{i}", torch.cat([left, x2 + x22, right], 2))
    body = conv("conv_after_body", by_hand.to_planes(norm("norm", tokens))) + conv("conv_end", encoded[1])
    expected = 2.0 * conv("upsample.0", body).sigmoid()[..., : size[0], : size[1]]
    equal_with_gradient(model, bracket, expected)


# invariants


def test_inside_a_crop_the_output_is_that_of_the_whole_picture(small):
    model = small(SCTNet, depths=(2,), num_heads=(2,)).double()
    for blocks in (model.channel_layers_lm, model.channel_layers_rm):
        blocks[0].attn.project_out.weight.data.zero_()  # the only part that depends on the whole picture
    # first convolution: 1; two blocks of windows: up to 7 and 4 + 7; three more convolutions: 3
    inside = slice(24, -24)
    bracket = torch.rand(1, 3, 6, 96, 88, dtype=torch.float64)
    whole, crop = model(bracket)[..., 8:88, 8:80], model(bracket[..., 8:88, 8:80])
    torch.testing.assert_close(crop[..., inside, inside], whole[..., inside, inside])


# training


def test_starts_from_the_weights_of_the_authors():
    torch.manual_seed(3)
    model = SCTNet()
    attention = model.layers[2].residual_group.blocks[3].attn
    matrices = (attention.qkv.weight, model.mlps[3].fc2.weight, model.channel_layers_rm[1].ffn.fc1.weight)
    for weight in (*matrices, attention.relative_position_bias_table):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert attention.qkv.bias.abs().max() == 0


# rejects_bad_input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_heads": 3}, r"channel_heads must divide the 4 channels of a frame, got 3"),
        ({"num_frames": 5}, r"features must be a multiple of num_frames=5, got 12"),
    ],
)
def test_rejects_channels_that_cannot_be_divided(small, options, message):
    with pytest.raises(ValueError, match=message):
        small(SCTNet, **options)
