"""Vision transformers of timm as banks: maps of one stride, made into four levels without weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.banks.resizing import enlarge
from skt_components.banks.timm_weights import create_timm_model
from skt_components.files.weights import check_state_dict
from skt_components.ops.checks import float_dtype

LEVELS = 4


class TransformerLevels(nn.Module):
    """Run a vision transformer and make four levels of the maps of four of its blocks, without any weights.

    The picture is padded to a multiple of the coarsest stride. It is resized so that a patch covers this stride: 16
    pixels, for every patch size of the network. The blocks at a quarter, a half, three quarters and the end of the
    depth give the levels. The last block is the coarsest level. The others are enlarged bilinearly to the finer
    strides. All levels have the channels of the transformer. Class and register tokens are removed. The maps pass the
    final layer norm (SAM's encoder has none).

    Args:
        name: a timm model.
        reduction: four strides, coarse to fine, each a divisor of the first.
        state: state dict of the whole network; None: random weights.
        source: source of the state, for messages.

    Raises:
        ValueError: the strides do not divide the coarsest, the state does not fit, or the layers differ from a ViT's.
    """

    def __init__(self, name: str, reduction: tuple[int, ...], state: dict[str, Tensor] | None, source: str) -> None:
        super().__init__()
        if any(reduction[0] % stride for stride in reduction):
            raise ValueError(f"reduction must be divisors of the coarsest stride for a transformer, got {reduction}")
        network = _create(name)
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        if not (hasattr(network, "blocks") and isinstance(patch, tuple)):
            raise ValueError(f"{name!r} cannot be a bank: it must have the layers of a ViT, blocks and patch_embed")
        if state is not None:
            heads = tuple(f"{layer}." for layer in ("head", "fc_norm", "neck", "attn_pool"))
            own = {key: value for key, value in network.state_dict().items() if not key.startswith(heads)}
            found = {key: value for key, value in state.items() if not key.startswith(heads)}
            check_state_dict(source, found, own)
            network.load_state_dict(found, strict=False)
        depth = len(network.blocks)
        self.blocks = [depth * (level + 1) // LEVELS - 1 for level in range(LEVELS)]  # fine to coarse
        network.prune_intermediate_layers(self.blocks, prune_norm=False, prune_head=True)
        self.network, self.reduction = network, reduction
        self.normalized = isinstance(getattr(network, "norm", None), nn.Module)
        self.patch = int(patch[0])
        self.channels = (int(network.embed_dim if hasattr(network, "embed_dim") else network.num_features),) * LEVELS

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the levels, coarse to fine, of normalized pictures (B, 3, H, W) padded to the coarsest stride."""
        stride = self.reduction[0]
        rows, columns = images.shape[-2] // stride, images.shape[-1] // stride
        if self.patch != stride:
            size = (rows * self.patch, columns * self.patch)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=self.patch < stride)
        maps = self.network.forward_intermediates(
            images, indices=self.blocks, norm=self.normalized, output_fmt="NCHW", intermediates_only=True
        )
        factors = [stride // own for own in self.reduction]
        return [enlarge(m.to(float_dtype(m)), f) for m, f in zip(reversed(maps), factors, strict=True)]


def is_transformer(strides: list[int]) -> bool:
    """Return True for the strides of a network all of whose maps have one stride."""
    return len(set(strides)) == 1


def _create(name: str) -> Any:
    try:
        return create_timm_model(name, num_classes=0, dynamic_img_size=True)
    except ValueError:  # SAM's encoder takes any size without the option
        return create_timm_model(name, num_classes=0)
