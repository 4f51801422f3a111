"""Evaluation: protocols, tiles, statistics, results, tables, figures and the HTML report."""

from skt_components.evaluation.baselines import BASELINES, baseline_pictures, baseline_predictions
from skt_components.evaluation.figures import (
    PriorsRow,
    SampleRow,
    save_curves,
    save_priors,
    save_samples,
)
from skt_components.evaluation.html_report import (
    ReportScene,
    SceneSections,
    render_scene,
    save_report,
    scene_anchor,
)
from skt_components.evaluation.networks import EvaluatedNetwork, load_networks
from skt_components.evaluation.protocols import PROTOCOLS, Protocol
from skt_components.evaluation.results import EvaluationResults, picture_source
from skt_components.evaluation.statistics import PairedSummary, Summary, bootstrap_mean, paired_summary
from skt_components.evaluation.suspicious import find_suspicious
from skt_components.evaluation.tables import format_summary, format_table
from skt_components.evaluation.tiling import official_tiles, tiled_inference

__all__ = [
    "BASELINES",
    "PROTOCOLS",
    "EvaluatedNetwork",
    "EvaluationResults",
    "PairedSummary",
    "PriorsRow",
    "Protocol",
    "ReportScene",
    "SampleRow",
    "SceneSections",
    "Summary",
    "baseline_pictures",
    "baseline_predictions",
    "bootstrap_mean",
    "find_suspicious",
    "format_summary",
    "format_table",
    "load_networks",
    "official_tiles",
    "paired_summary",
    "picture_source",
    "render_scene",
    "save_curves",
    "save_priors",
    "save_report",
    "save_samples",
    "scene_anchor",
    "tiled_inference",
]
