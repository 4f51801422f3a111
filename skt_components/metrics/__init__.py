"""Picture metrics, one value per picture, and their mean over pictures."""

from skt_components.metrics.average import MeanMetric
from skt_components.metrics.psnr import psnr, psnr_l, psnr_mu
from skt_components.metrics.ssim import ssim, ssim_l, ssim_mu

__all__ = [
    "MeanMetric",
    "psnr",
    "psnr_l",
    "psnr_mu",
    "ssim",
    "ssim_l",
    "ssim_mu",
]
