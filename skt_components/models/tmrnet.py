"""TMRNet and TMRNet+, the baselines for brackets of packed RAW exposures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.data.sample import RAW_PEAK
from skt_components.files.weights import check_state_dict
from skt_components.models.alignment import DeformableAlignment
from skt_components.models.network import RAW_CHANNELS, ReconstructionNetwork, display_encode, run_block
from skt_components.models.spynet import SPyNet
from skt_components.models.upscale import PixelShufflePack, upscale_x4
from skt_components.ops.checks import check_choice, check_count

Self = TypeVar("Self", bound="TMRNet")
Plus = TypeVar("Plus", bound="TMRNetPlus")
_SLOPE = 0.1


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a residual; starts close to the identity."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(0.1)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the refined map."""
        return x + self.conv2(F.relu(self.conv1(x)))


class ResidualTrunk(nn.Module):
    """A 3x3 convolution, LeakyReLU and residual blocks."""

    def __init__(self, in_channels: int, features: int, num_blocks: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(in_channels, features, 3, padding=1),
            nn.LeakyReLU(_SLOPE),
            nn.Sequential(*(ResidualBlock(features) for _ in range(num_blocks))),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f h w"]:
        """Return the features."""
        return self.main(x)


class TMRNet(ReconstructionNetwork):
    """Temporally modulated recurrent network: align the exposures to the reference and accumulate them one by one.

    The defaults are the published network for BracketIRE. ``TMRNet(3, 6, 3)`` is our adaptation for sRGB brackets.
    Every frame must have the radiance scale of the target. The optical flow network starts with random weights. Load
    trained weights with ``network.spynet.load_official(...)`` before training.

    Args:
        num_frames, in_channels, out_channels, checkpointing: see :class:`ReconstructionNetwork`.
        features: width of the network; a multiple of 8.
        num_blocks: residual blocks in the feature extraction, the shared trunk, each frame's trunk, the reconstruction.
        reference: index of the reference exposure; None for the first of packed RAW, the middle one of sRGB.
        activation: None: a linear output, as in the authors' network. "sigmoid": an output in [0, peak]. "auto": None
            for packed RAW, "sigmoid" for sRGB.
        flow_features: channels of the first layer of :class:`SPyNet`'s levels, 32 in the published network.
        peak: largest value of the output with the sigmoid; None for 16 with packed RAW, 1 with sRGB.

    Raises:
        ValueError: an argument is out of range.
        ImportError: torchvision is not installed; when the network runs.

    Example:
        >>> TMRNet(features=8, num_blocks=(1, 1, 1, 1))(torch.rand(1, 5, 4, 12, 16)).shape
        torch.Size([1, 4, 12, 16])

    Reference:
        Z. Zhang et al., "Exposure bracketing is all you need for a high-quality image", ICLR 2025.
    """

    fusion_taps = ("state[-3]", "state[-2]", "state[-1]")
    last_layer = "conv_last"
    size_multiple = 32  # of exports only: the flow resizes to multiples of 32, and a traced program must not branch
    _scale: ClassVar[int] = 1

    def __init__(
        self,
        num_frames: int = 5,
        in_channels: int = 4,
        out_channels: int = 4,
        features: int = 64,
        num_blocks: Sequence[int] = (5, 16, 24, 5),
        flow_features: int = 32,
        reference: int | None = None,
        activation: str | None = "auto",
        peak: float | None = None,
        checkpointing: bool = False,
    ) -> None:
        config = locals() | {"num_blocks": list(num_blocks)}
        check_choice("in_channels", in_channels, (RAW_CHANNELS, 6))
        check_choice("activation", activation, (None, "sigmoid", "auto"))
        raw = in_channels == RAW_CHANNELS
        if peak is None:
            peak = RAW_PEAK if raw else 1.0
        super().__init__(config, reference=0 if reference is None and raw else reference, peak=peak, scale=self._scale)
        automatic = None if raw else "sigmoid"
        self.activation = automatic if activation == "auto" else activation
        if len(num_blocks) != 4:
            raise ValueError(f"num_blocks must be four numbers, got {num_blocks!r}")
        extraction, shared, own, reconstruction = (check_count("num_blocks", count, 0) for count in num_blocks)
        self.learn_para = nn.Parameter(torch.zeros(1, num_frames, features, 1, 1))
        self.spynet = SPyNet(flow_features)
        self.dcn_alignment = DeformableAlignment(features)
        self.feat_extract = ResidualTrunk(self.frame_channels, features, extraction)
        self.backbone = nn.ModuleDict({"backward": ResidualTrunk(3 * features, features, shared)})
        for frame in range(1, num_frames + 1):
            self.backbone[f"backward_rec_{frame}"] = ResidualTrunk(3 * features, features, own)
        self.reconstruction = ResidualTrunk(2 * features, features, reconstruction)
        self.skipup1 = PixelShufflePack(self.frame_channels // 2, features, 1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, out_channels, 3, padding=1)
        self.state = nn.Identity()  # for taps: the accumulated features after each exposure
        if self.scale == 4:
            self.up_para = nn.Parameter(torch.zeros(1, features, 1, 1))
            self.upsample1 = PixelShufflePack(features, features, 2)
            self.upsample2 = PixelShufflePack(features, features, 2)

    def _reconstruct(self, bracket: Tensor) -> Tensor:
        frames = bracket
        if self.reference > 0:
            order = [self.reference, *self.moving_frames]
            frames = torch.stack([bracket[:, frame] for frame in order], dim=1)
        if self.in_channels == RAW_CHANNELS:  # the display-encoded copy of each channel follows it
            linear, frames = frames, torch.stack([frames, display_encode(frames)], dim=3).flatten(2, 3)
        else:
            linear = frames[:, :, :3]
        features = run_block(self, self.feat_extract, frames.flatten(0, 1)).unflatten(0, (-1, self.num_frames))
        base = features[:, 0]
        state = self._propagate(features, self._flows(linear))
        body = run_block(self, self.reconstruction, torch.cat([base, state], dim=1))
        skip = self.skipup1(linear[:, 0])
        body = upscale_x4(body, skip, self.upsample1, self.upsample2, self.up_para) if self.scale == 4 else body + skip
        hdr: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(body), _SLOPE))
        return hdr if self.activation is None else torch.sigmoid(hdr) * self.peak

    def make_fusion_module(self) -> nn.Module:
        """Return a new fusion module of this network's kind and size, for a stage of the SPGRM."""
        return ResidualTrunk(self.features, self.features, self.config["num_blocks"][3])

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Module.to(memory_format=torch.channels_last) rejects tensors of five axes, which learn_para has.
        def apply(tensor: Tensor) -> Tensor:
            return fn(tensor.flatten(0, 1)).unflatten(0, (1, -1)) if tensor.ndim == 5 else fn(tensor)

        return super()._apply(apply, recurse)

    def _flows(self, linear: Tensor) -> Tensor | None:
        """Flow from the reference to each other exposure, (B, N - 1, 2, H, W)."""
        if self.num_frames == 1:
            return None
        if self.in_channels == RAW_CHANNELS:
            linear = torch.stack([linear[:, :, 0], linear[:, :, 1:3].mean(dim=2), linear[:, :, 3]], dim=2)
        pictures = display_encode(linear.clamp_max(1.0))
        reference = pictures[:, :1].expand_as(pictures[:, 1:]).flatten(0, 1)
        flow: Tensor = self.spynet(reference, pictures[:, 1:].flatten(0, 1))
        return flow.unflatten(0, (-1, self.num_frames - 1))

    def _propagate(self, features: Tensor, flows: Tensor | None) -> Tensor:
        base = features[:, 0]
        state = torch.zeros_like(base)
        for frame in range(self.num_frames):
            current = base
            if frame > 0 and flows is not None:
                current = self.dcn_alignment(features[:, frame], base, flows[:, frame - 1])
            state = state + run_block(self, self.backbone["backward"], torch.cat([base, current, state], dim=1))
            own = run_block(self, self.backbone[f"backward_rec_{frame + 1}"], torch.cat([base, current, state], dim=1))
            state = self.state(state + own * self.learn_para[:, frame])
        return state


class TMRNetPlus(TMRNet):
    """Enlarge the output of :class:`TMRNet`, whose arguments it takes, to four times the size (BracketIRE+).

    Example:
        >>> TMRNetPlus(features=8, num_blocks=(1, 1, 1, 1))(torch.rand(1, 5, 4, 12, 16)).shape
        torch.Size([1, 4, 48, 64])
    """

    _scale = 4

    @classmethod
    def from_tmrnet(cls: type[Plus], network: TMRNet, **options: Any) -> Plus:
        """Make the network from a trained :class:`TMRNet`, as its authors do before they train this one.

        The upsampling layers start as bilinear interpolation; ``options`` are constructor arguments that differ.

        Raises:
            ValueError: the options change the layers of ``network``; the message lists them.

        Example:
            >>> small = TMRNet(features=8, num_blocks=(1, 1, 1, 1))
            >>> TMRNetPlus.from_tmrnet(small).up_para.abs().sum().item()
            0.0
        """
        plus = cls(**{**network.config, **options}).to(network.learn_para)
        state = {**plus.state_dict(), **network.state_dict()}
        check_state_dict(type(network).__name__, state, plus.state_dict())
        plus.load_state_dict(state)
        return plus.train(network.training)
