"""skt_components: semantic knowledge transfer for HDR reconstruction in PyTorch."""

import warnings
from typing import TYPE_CHECKING

from skt_components import training as training
from skt_components.banks import (
    CachedBank,
    ColorPositionKMeans,
    EmptyBank,
    FastSAMFeatureExtractor,
    FeatureKMeans,
    KnowledgeBank,
    SemanticPriors,
    TimmFeatureExtractor,
    VGG19Features,
    priors_from_labels,
    priors_from_masks,
)
from skt_components.data import BracketIRE, HDRSample, Kalantari17, Tel23, make_bracket, read_image, write_image
from skt_components.evaluation import Protocol, tiled_inference
from skt_components.framework import LossWeights, SemanticKnowledgeTransfer, StepOutput
from skt_components.histogram import HistogramTarget, soft_histogram
from skt_components.losses import (
    ContentLoss,
    HistogramLoss,
    MuL1Loss,
    PerceptualLoss,
    SemanticHistogramLoss,
    content_loss,
    histogram_loss,
    mu_l1_loss,
    perceptual_loss,
    semantic_histogram_loss,
)
from skt_components.metrics import hdr_vdp2, lpips, psnr, psnr_l, psnr_mu, psnr_pu21, ssim, ssim_l, ssim_mu, ssim_pu21
from skt_components.models import (
    SPGRM,
    AHDRNet,
    HDRTransformer,
    SCTNet,
    TMRNet,
    TMRNetPlus,
    export_onnx,
    export_program,
    fit_last_layer,
    load_model,
    load_pretrained,
    load_weights,
    save_weights,
)
from skt_components.modules import (
    SKAM,
    DilatedResidualDenseBlock,
    DomainTransfer,
    FeaturePyramid,
    FeatureTaps,
    PriorFusionBlock,
    SemanticGuidedFusion,
    suggest_taps,
)
from skt_components.ops import (
    complementary_masks,
    demosaic,
    linearize_ldr,
    merge_exposures,
    mix_features,
    mu_law,
    mu_law_inverse,
    pack_raw,
    reference_exposure,
    render_raw,
    tone_map,
    transposed_attention,
    unpack_raw,
)
from skt_components.simulation import (
    Camera,
    HDRFolder,
    Motion,
    RawCamera,
    SyntheticScenes,
    simulate_bracket,
    simulate_raw_bracket,
)

__version__ = "0.1.0"

__all__ = [
    "SKAM",
    "SPGRM",
    "AHDRNet",
    "BracketIRE",
    "CachedBank",
    "Camera",
    "ColorPositionKMeans",
    "ContentLoss",
    "DilatedResidualDenseBlock",
    "DomainTransfer",
    "EmptyBank",
    "FastSAMFeatureExtractor",
    "FeatureKMeans",
    "FeaturePyramid",
    "FeatureTaps",
    "HDRFolder",
    "HDRSample",
    "HDRTransformer",
    "HistogramLoss",
    "HistogramTarget",
    "Kalantari17",
    "KnowledgeBank",
    "LossWeights",
    "Motion",
    "MuL1Loss",
    "PerceptualLoss",
    "PriorFusionBlock",
    "Protocol",
    "RawCamera",
    "SCTNet",
    "SemanticGuidedFusion",
    "SemanticHistogramLoss",
    "SemanticKnowledgeTransfer",
    "SemanticPriors",
    "StepOutput",
    "SyntheticScenes",
    "TMRNet",
    "TMRNetPlus",
    "Tel23",
    "TimmFeatureExtractor",
    "VGG19Features",
    "complementary_masks",
    "content_loss",
    "demosaic",
    "export_onnx",
    "export_program",
    "fit_last_layer",
    "hdr_vdp2",
    "histogram_loss",
    "linearize_ldr",
    "load_model",
    "load_pretrained",
    "load_weights",
    "lpips",
    "make_bracket",
    "merge_exposures",
    "mix_features",
    "mu_l1_loss",
    "mu_law",
    "mu_law_inverse",
    "pack_raw",
    "perceptual_loss",
    "priors_from_labels",
    "priors_from_masks",
    "psnr",
    "psnr_l",
    "psnr_mu",
    "psnr_pu21",
    "read_image",
    "reference_exposure",
    "render_raw",
    "save_weights",
    "semantic_histogram_loss",
    "simulate_bracket",
    "simulate_raw_bracket",
    "soft_histogram",
    "ssim",
    "ssim_l",
    "ssim_mu",
    "ssim_pu21",
    "suggest_taps",
    "tiled_inference",
    "tone_map",
    "transposed_attention",
    "unpack_raw",
    "write_image",
]

if not TYPE_CHECKING:  # type checkers would accept every name

    def __getattr__(name: str) -> object:
        if name == "NoKnowledge":
            warnings.warn("NoKnowledge is now called EmptyBank", DeprecationWarning, stacklevel=2)
            return EmptyBank
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
