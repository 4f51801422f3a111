"""The soft histogram: differentiable kernel density counts per region."""

from skt_components.histogram.soft_histogram import soft_histogram
from skt_components.histogram.target import HistogramTarget

__all__ = [
    "HistogramTarget",
    "soft_histogram",
]
