"""Pure functions: tensors in, tensors out."""

from skt_components.ops.attention import transposed_attention
from skt_components.ops.masking import complementary_masks, mix_features
from skt_components.ops.memory import use_huge_pages
from skt_components.ops.merge import merge_exposures, reference_exposure
from skt_components.ops.raw import apply_color_matrix, demosaic, mosaic, pack_raw, render_raw, unpack_raw, white_balance
from skt_components.ops.tone_mapping import tone_map
from skt_components.ops.transfer import linearize_ldr, mu_law, mu_law_inverse, srgb_decode, srgb_encode

__all__ = [
    "apply_color_matrix",
    "complementary_masks",
    "demosaic",
    "linearize_ldr",
    "merge_exposures",
    "mix_features",
    "mosaic",
    "mu_law",
    "mu_law_inverse",
    "pack_raw",
    "reference_exposure",
    "render_raw",
    "srgb_decode",
    "srgb_encode",
    "tone_map",
    "transposed_attention",
    "unpack_raw",
    "use_huge_pages",
    "white_balance",
]
