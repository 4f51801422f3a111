"""Picture metrics with one value per picture, and their mean over pictures."""

from skt_components.metrics.average import MeanMetric
from skt_components.metrics.cvvdp import color_video_vdp
from skt_components.metrics.hdrvdp2 import HDRVDP2Loss, HDRVDP2Output, hdr_vdp2, hdr_vdp_pix_per_deg
from skt_components.metrics.lpips import lpips
from skt_components.metrics.psnr import psnr, psnr_l, psnr_mu
from skt_components.metrics.pu21 import display_luminance, psnr_pu21, pu21_decode, pu21_encode, ssim_pu21
from skt_components.metrics.ssim import ssim, ssim_l, ssim_mu

__all__ = [
    "HDRVDP2Loss",
    "HDRVDP2Output",
    "MeanMetric",
    "color_video_vdp",
    "display_luminance",
    "hdr_vdp2",
    "hdr_vdp_pix_per_deg",
    "lpips",
    "psnr",
    "psnr_l",
    "psnr_mu",
    "psnr_pu21",
    "pu21_decode",
    "pu21_encode",
    "ssim",
    "ssim_l",
    "ssim_mu",
    "ssim_pu21",
]
