"""skt_components: semantic knowledge transfer for HDR reconstruction in PyTorch."""

__version__ = "0.1.0"
