"""Aligned text tables of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

from skt_components.evaluation.statistics import Summary


def format_table(rows: Mapping[str, Mapping[str, float]], digits: int = 3) -> str:
    """Format an aligned text table.

    Args:
        rows: title of each row -> column -> value; a missing value is shown as a dash.
        digits: decimals.

    Example:
        >>> print(format_table({"ORM": {"PSNR-mu": 40.0}, "SPGRM": {}}, digits=1))
               PSNR-mu
        ORM       40.0
        SPGRM        -
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [["", *columns]]
    cells += [[title, *(f"{row[c]:.{digits}f}" if c in row else "-" for c in columns)] for title, row in rows.items()]
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    lines = ("  ".join([title.ljust(first), *map(str.rjust, line, others)]) for title, *line in cells)
    return "\n".join(line.rstrip() for line in lines)


def format_summary(summary: Mapping[str, Mapping[str, Summary]]) -> str:
    """Format the means of an evaluation with the ends of their 95 % intervals below them.

    Args:
        summary: model -> metric -> mean and interval, as :meth:`EvaluationResults.summary` returns them; an interval
            of nan is shown as dashes.

    Example:
        >>> print(format_summary({"ours": {"PSNR-mu": Summary(40.0, 39.0, 41.5)}}))
                        PSNR-mu
        ours             40.000
        ours, 95% low    39.000
        ours, 95% high   41.500
    """
    rows: dict[str, dict[str, float]] = {}
    for model, row in summary.items():
        known = {metric: value for metric, value in row.items() if not math.isnan(value.low)}
        rows[model] = {metric: value.mean for metric, value in row.items()}
        rows[f"{model}, 95% low"] = {metric: value.low for metric, value in known.items()}
        rows[f"{model}, 95% high"] = {metric: value.high for metric, value in known.items()}
    return format_table(rows)
