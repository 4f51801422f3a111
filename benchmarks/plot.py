"""Draw the figure of the docs from the histogram benchmark: `python benchmarks/plot.py [results/histogram--X.json]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
SMALLEST = 0.1  # what the measurement of memory can tell from nothing
OURS, OTHERS = "tab:green", "tab:gray"


def shown(value: float) -> str:
    """What stands beside a bar."""
    return f" below {SMALLEST}" if value <= SMALLEST else f" {value:.0f}" if value >= 100 else f" {value:.3g}"


def bars(axes: plt.Axes, rows: dict[str, float], unit: str, title: str) -> None:
    """One bar per row on a logarithmic axis, the value beside it."""
    names = list(rows)[::-1]
    values = [max(rows[name], SMALLEST) for name in names]
    axes.barh(names, values, color=[OURS if name.startswith("ours") else OTHERS for name in names])
    for place, value in enumerate(values):
        axes.text(value, place, shown(value), va="center", fontsize=8)
    axes.set(xscale="log", xlim=(min(values) / 2, max(values) * 6), title=title, xlabel=unit)
    axes.spines[["top", "right"]].set_visible(False)


def draw(result: dict, out: Path) -> None:
    """Write the figure: time and memory of the methods, and what regions cost."""
    times = next(result[key] for key in ("time, retained allocator", "time, cuda allocator") if key in result)
    one = next(rows for name, rows in times.items() if name.startswith("1x3x256x256, 1 region"))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    bars(left, {name: row["median_ms"] for name, row in one.items()}, "ms", "forward + backward, 1 x 3 x 256 x 256")
    regions = {
        "ours, " + name.partition(", ")[2]: rows["ours"]["median_ms"]
        for name, rows in times.items()
        if name.startswith("1x3x256x256")
    }
    loops = {
        "class loop, " + name.partition(", ")[2]: rows["class loop"]["median_ms"]
        for name, rows in times.items()
        if name.startswith("1x3x256x256") and "class loop" in rows
    }
    bars(middle, regions | loops, "ms", "more regions")
    memory = result["extra memory in MiB"].items()
    bars(
        right,
        {
            name.partition(", 1 region, ")[2]: value
            for name, value in memory
            if name.startswith("1x3x256x256, 1 region,")
        },
        "MiB",
        "extra memory at the peak",
    )
    figure.suptitle(
        f"{result['device']}, {result['threads']} thread(s), torch {result['packages']['torch']}", fontsize=9
    )
    figure.savefig(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    found = sorted((ROOT / "benchmarks" / "results").glob("histogram--*.json"))
    if not sys.argv[1:] and not found:
        sys.exit("no benchmarks/results/histogram--*.json; run python benchmarks/test_histogram.py first")
    source = Path(sys.argv[1]) if sys.argv[1:] else found[-1]
    draw(json.loads(source.read_text()), ROOT / "docs" / "_static" / "histogram.svg")
