"""A small study to test with, its file, and how it is read."""

from __future__ import annotations

from pathlib import Path

import plan

SMALL = """
title = "T"
seeds = [3, 1]
baseline = "bare"
[base]
steps = 6
trackers = []
[arms.bare]
bare = true
[arms.ours]
content_weight = 0.5
"""
EQUAL = SMALL.replace("[base]", 'equal_compute = "ours"\n[base]', 1)


def write(path: Path, text: str = SMALL) -> Path:
    path.write_text(text)
    return path


def read(path: Path, root: Path | None = None) -> plan.Study:
    study = plan.read_study(path)
    plan.check_options(path, study, root)
    return study
