"""Losses: a function and a module each."""

from skt_components.losses.content import ContentLoss, content_loss
from skt_components.losses.histogram import (
    HistogramLoss,
    SemanticHistogramLoss,
    histogram_loss,
    semantic_histogram_loss,
)
from skt_components.losses.perceptual import PerceptualLoss, perceptual_loss
from skt_components.losses.reconstruction import MuL1Loss, mu_l1_loss, mu_rms_loss

__all__ = [
    "ContentLoss",
    "HistogramLoss",
    "MuL1Loss",
    "PerceptualLoss",
    "SemanticHistogramLoss",
    "content_loss",
    "histogram_loss",
    "mu_l1_loss",
    "mu_rms_loss",
    "perceptual_loss",
    "semantic_histogram_loss",
]
