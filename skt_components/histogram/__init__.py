"""The soft histogram: differentiable kernel density counts per region."""

from skt_components.histogram.kernels import sigmoid_bandwidth
from skt_components.histogram.soft_histogram import soft_histogram
from skt_components.histogram.target import HistogramTarget

__all__ = [
    "HistogramTarget",
    "sigmoid_bandwidth",
    "soft_histogram",
]
