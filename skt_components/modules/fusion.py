"""Fusion modules: the dilated residual dense block, the prior fusion block (eq. 4), and both together."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.ops.attention import transposed_attention
from skt_components.ops.checks import check_count, check_same_dtype, check_same_shape, check_sides, check_tensor


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map ``(B, C, H, W)``; the result is channels-last in memory."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the normalized map."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, growth, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Return ``x`` and the new channels; with ``features``, whose first channels are ``x``, write them there."""
        added = F.relu(self.conv(x))
        if features is None:
            return torch.cat([x, added], dim=1)
        width = x.shape[1] + added.shape[1]
        features[:, x.shape[1] : width] = added
        return features[:, :width]


class _DenseLayers(nn.Sequential):
    def __init__(self, channels: int, num_layers: int, growth: int, dilation: int) -> None:
        super().__init__(*(_DenseLayer(channels + growth * i, growth, dilation) for i in range(num_layers)))
        self.out_channels = channels + growth * num_layers

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().forward(x)
        # One tensor for all layers: a concatenation in each would copy the channels before it again.
        features = x.new_empty(len(x), self.out_channels, *x.shape[2:])
        features[:, : x.shape[1]] = x
        x = features[:, : x.shape[1]]
        for layer in self:
            x = layer(x, features)
        return x


class DilatedResidualDenseBlock(nn.Module):
    """Densely connected dilated convolutions with a residual: the fusion module of AHDRNet (DRDB).

    Args:
        channels: channels in and out.
        num_layers: dilated 3x3 convolutions.
        growth: channels that each convolution adds.
        dilation: dilation of the convolutions.

    Raises:
        ValueError: an argument is not a whole number, or is below 1 (``num_layers``: below 0).

    Example:
        >>> import torch
        >>> DilatedResidualDenseBlock(8, num_layers=2, growth=4)(torch.rand(1, 8, 16, 16)).shape
        torch.Size([1, 8, 16, 16])

    Reference:
        Q. Yan et al., "Attention-guided network for ghost-free high dynamic range imaging", CVPR 2019.
    """

    def __init__(self, channels: int, num_layers: int = 6, growth: int = 32, dilation: int = 2) -> None:
        super().__init__()
        check_count("channels", channels, 1)
        check_count("num_layers", num_layers, 0)
        check_count("growth", growth, 1)
        check_count("dilation", dilation, 1)
        self.growth = growth
        self.dense_layers = _DenseLayers(channels, num_layers, growth, dilation)
        self.conv_1x1 = nn.Conv2d(self.dense_layers.out_channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the refined features, same shape.

        Raises TypeError unless ``x`` is a floating-point tensor, ValueError unless it is ``(B, channels, H, W)``.
        """
        check_tensor("x", x, ndim=4, layout="(B, C, H, W)", channels=self.conv_1x1.out_channels)
        check_sides("x", x)
        return x + self.conv_1x1(self.dense_layers(x))


class PriorFusionBlock(nn.Module):
    """Mix the channels of the image features, guided by the semantic prior (eq. 4).

    ``out = W_c V . Softmax(K . Q / gamma) + F``. Q comes from the prior. K and V come from the features F. Each is made
    by a 1x1 and a depth-wise 3x3 convolution. The attention is over channels, so its cost is linear in the pixels.

    Args:
        channels: channels of the image features.
        prior_channels: channels of the prior.
        num_heads: groups of channels that attend among themselves; divides ``channels``.
        normalize: layer-normalize both inputs and L2-normalize Q and K, as in Restormer. False is eq. 4 literally.
        bias: give the convolutions a bias.

    Raises:
        ValueError: ``num_heads`` does not divide ``channels``.

    Example:
        >>> import torch
        >>> block = PriorFusionBlock(8, 4, num_heads=2)
        >>> block(torch.rand(1, 8, 16, 16), torch.rand(1, 4, 8, 8)).shape
        torch.Size([1, 8, 16, 16])

    Reference:
        Eq. 4 of the paper.
    """

    def __init__(
        self,
        channels: int,
        prior_channels: int,
        num_heads: int = 1,
        normalize: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_count("channels", channels, 1)
        check_count("prior_channels", prior_channels, 1)
        check_count("num_heads", num_heads, 1)
        if channels % num_heads:
            raise ValueError(f"num_heads must divide channels={channels}, got {num_heads}")
        self.channels, self.prior_channels = channels, prior_channels
        self.num_heads, self.normalize = num_heads, normalize
        self.norm = ChannelNorm(channels) if normalize else nn.Identity()
        self.prior_norm = ChannelNorm(prior_channels) if normalize else nn.Identity()
        self.to_query = _projection(prior_channels, channels, channels, bias)
        self.to_key_value = _projection(channels, 2 * channels, 2 * channels, bias)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(
        self, features: Float[Tensor, "b c h w"], prior: Float[Tensor, "b p _h _w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the fused features; ``prior`` is resized bilinearly to their size.

        Raises:
            TypeError: an argument is not a floating-point tensor, or has another dtype than the block without autocast.
            ValueError: wrong axes, channels or batch sizes.
        """
        self.check_inputs(features, prior)
        prior = self.prior_norm(prior)  # before the resizing, while it is small
        if prior.shape[-2:] != features.shape[-2:]:
            prior = F.interpolate(prior, size=features.shape[-2:], mode="bilinear", align_corners=False)
        key, value = self.to_key_value(self.norm(features)).chunk(2, dim=1)
        # gamma is a divisor, kept away from 0, where the softmax has no gradient. The clamp's gradient is bypassed, so
        # that a gamma below the limit can grow again.
        below = (self.temperature.clamp_min(1e-2) - self.temperature).detach()
        attended = transposed_attention(
            self.to_query(prior),
            key,
            value,
            temperature=self.temperature + below,
            num_heads=self.num_heads,
            normalize=self.normalize,
        )
        return features + self.project_out(attended)

    def check_inputs(self, features: Tensor, prior: Tensor) -> None:
        """Raise TypeError/ValueError unless :meth:`forward` takes these ``features`` and ``prior``."""
        for name, value, channels in [("features", features, self.channels), ("prior", prior, self.prior_channels)]:
            check_tensor(name, value, ndim=4, layout="(B, C, H, W)", channels=channels)
            check_sides(name, value)
            check_same_dtype(name, value, "the module's parameters", self.temperature)
        if prior.shape[0] != features.shape[0]:
            raise ValueError(
                f"features and prior must have one batch size, got {tuple(features.shape)} and {tuple(prior.shape)}"
            )


class SemanticGuidedFusion(nn.Module):
    """Apply a fusion module and a prior fusion block: one stage of the SPGRM.

    Args:
        channels: channels of the image features.
        prior_channels: channels of the prior.
        fusion: the inner fusion module, ``(B, C, H, W) -> (B, C, H, W)``. None: a dilated residual dense block. The
            paper uses the same kind as the ORM.
        num_heads: heads of the prior fusion block.

    Example:
        >>> import torch
        >>> stage = SemanticGuidedFusion(8, 4, fusion=torch.nn.Conv2d(8, 8, 3, padding=1))
        >>> stage(torch.rand(1, 8, 16, 16), torch.rand(1, 4, 8, 8)).shape
        torch.Size([1, 8, 16, 16])
    """

    def __init__(self, channels: int, prior_channels: int, fusion: nn.Module | None = None, num_heads: int = 1) -> None:
        super().__init__()
        self.fusion = fusion if fusion is not None else DilatedResidualDenseBlock(channels)
        self.prior_fusion = PriorFusionBlock(channels, prior_channels, num_heads)

    def forward(
        self, features: Float[Tensor, "b c h w"], prior: Float[Tensor, "b p _h _w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the refined features, same shape.

        Raises:
            TypeError: an argument is not a floating-point tensor, or has another dtype than the module without
                autocast.
            ValueError: wrong axes, channels or batch sizes, or the inner fusion module changes the shape.
        """
        self.prior_fusion.check_inputs(features, prior)  # before the inner module, which may not check
        fused = self.fusion(features)
        check_tensor("the output of fusion", fused)
        check_same_shape("features", features, "the output of fusion", fused)
        return self.prior_fusion(fused, prior)


def _projection(in_channels: int, hidden: int, out_channels: int, bias: bool) -> nn.Sequential:
    """1x1 convolution, then depth-wise 3x3."""
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 1, bias=bias),
        nn.Conv2d(hidden, out_channels, 3, padding=1, groups=hidden, bias=bias),
    )
