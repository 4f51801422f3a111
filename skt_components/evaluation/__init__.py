"""Evaluation: protocols, tiles, tables, pictures and reports of a run; pictures of a bank's priors."""

from skt_components.evaluation.html_report import ReportScene, render_scene, save_report, scene_anchor
from skt_components.evaluation.inference import official_tiles, tiled_inference
from skt_components.evaluation.paired import PairedSummary, paired_summary
from skt_components.evaluation.priors import PriorsRow, save_priors
from skt_components.evaluation.protocols import Protocol
from skt_components.evaluation.report import (
    SampleRow,
    format_table,
    read_metrics,
    rewind_metrics,
    save_curves,
    save_samples,
)
from skt_components.evaluation.results import (
    EvaluationResults,
    Summary,
    bootstrap_mean,
    file_digest,
    find_suspicious,
    library_versions,
)

__all__ = [
    "EvaluationResults",
    "PairedSummary",
    "PriorsRow",
    "Protocol",
    "ReportScene",
    "SampleRow",
    "Summary",
    "bootstrap_mean",
    "file_digest",
    "find_suspicious",
    "format_table",
    "library_versions",
    "official_tiles",
    "paired_summary",
    "read_metrics",
    "render_scene",
    "rewind_metrics",
    "save_curves",
    "save_priors",
    "save_report",
    "save_samples",
    "scene_anchor",
    "tiled_inference",
]
