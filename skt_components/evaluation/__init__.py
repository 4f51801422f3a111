"""Evaluation: tables and pictures of a run."""

from skt_components.evaluation.report import (
    SampleRow,
    format_table,
    paired_gain,
    read_metrics,
    rewind_metrics,
    save_curves,
    save_samples,
)

__all__ = ["SampleRow", "format_table", "paired_gain", "read_metrics", "rewind_metrics", "save_curves", "save_samples"]
