"""Evaluation: protocols, tiles, tables, pictures and reports of a run; pictures of a bank's priors."""

from skt_components.evaluation.html_report import ReportScene, render_scene, save_report, scene_anchor
from skt_components.evaluation.priors import PriorsRow, save_priors
from skt_components.evaluation.protocols import Protocol
from skt_components.evaluation.report import (
    SampleRow,
    format_table,
    rewind_metrics,
    save_curves,
    save_samples,
)
from skt_components.evaluation.results import (
    EvaluationResults,
    Summary,
    bootstrap_mean,
    find_suspicious,
)
from skt_components.evaluation.statistics import PairedSummary, paired_summary
from skt_components.evaluation.tiling import official_tiles, tiled_inference

__all__ = [
    "EvaluationResults",
    "PairedSummary",
    "PriorsRow",
    "Protocol",
    "ReportScene",
    "SampleRow",
    "Summary",
    "bootstrap_mean",
    "find_suspicious",
    "format_table",
    "official_tiles",
    "paired_summary",
    "render_scene",
    "rewind_metrics",
    "save_curves",
    "save_priors",
    "save_report",
    "save_samples",
    "scene_anchor",
    "tiled_inference",
]
