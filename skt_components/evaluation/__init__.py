"""Evaluation: tables and pictures of a run, pictures of a bank's priors."""

from skt_components.evaluation.priors import PriorsRow, save_priors
from skt_components.evaluation.report import (
    SampleRow,
    format_table,
    paired_gain,
    read_metrics,
    rewind_metrics,
    save_curves,
    save_samples,
)

__all__ = [
    "PriorsRow",
    "SampleRow",
    "format_table",
    "paired_gain",
    "read_metrics",
    "rewind_metrics",
    "save_curves",
    "save_priors",
    "save_samples",
]
