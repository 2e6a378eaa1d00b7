"""Accuracy against latency, and against what the large model writes: a picture of loadtest.quality's results.

    python -m loadtest.frontier quality.json frontier.png

Bars are 95 % intervals. Routed runs are joined in the order of the large model's share, and so are the random ones that
match them; the line between the models alone is what a coin that picks a model for each whole request would get, the
oracle what is got by knowing beforehand which requests only the large model gets right.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.command import MeasuringError, run
from router.glimpse import MAX_ENTROPY

COLOURS = {
    "small": "tab:green",
    "large": "tab:red",
    "routed": "tab:blue",
    "by token": "tab:orange",
    "random": "tab:gray",
    "oracle": "tab:purple",
}
COSTS = {"mean_latency_s": (1.0, "seconds a request"), "large_token_share": (100.0, "% of the tokens by large")}


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """rows: as in loadtest.quality's JSON; the oracle's may be among them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, sharey=True, figsize=(10, 4.5), layout="constrained")
    for axis, (cost, (scale, label)) in zip(axes, COSTS.items(), strict=True):
        alone = [one for one in rows if one["mode"] in ("small", "large")]
        axis.plot([scale * one[cost] for one in alone], [100 * one["accuracy"] for one in alone], ":", color="black")
        for mode, colour in COLOURS.items():
            runs = sorted((one for one in rows if series(one) == mode), key=lambda one: one["large_token_share"])
            if not runs:
                continue
            at, right = [scale * one[cost] for one in runs], [100 * one["accuracy"] for one in runs]
            lows, highs = zip(*(one["accuracy_interval"] for one in runs), strict=True)
            below = [value - 100 * low for value, low in zip(right, lows, strict=True)]
            above = [100 * high - value for value, high in zip(right, highs, strict=True)]
            axis.errorbar(at, right, yerr=(below, above), fmt="o-", capsize=3, color=colour, label=mode)
            if mode in ("routed", "by token"):
                for x, y, one in zip(at, right, runs, strict=True):
                    gate = one["threshold"] if mode == "routed" else one["token_threshold"]
                    axis.annotate(f"{gate:g}", (x, y), textcoords="offset points", xytext=(6, 6))
        # A little to the left of nothing: else the axis cuts the small model's own point in two.
        axis.set_xlim(left=-0.03 * axis.get_xlim()[1])
        axis.set_xlabel(label)
    axes[0].set_ylabel("% right")
    axes[1].legend()
    figure.savefig(path, dpi=120)


def series(row: Mapping[str, Any]) -> str:
    """The name of what a row is a point of."""
    token = row.get("token_threshold")
    return "by token" if row["mode"] == "routed" and token is not None and token < MAX_ENTROPY else str(row["mode"])


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser("loadtest.frontier", description=__doc__.partition("\n")[0])
    options.add_argument("results", type=Path, metavar="RESULTS.json", help="what loadtest.quality --json wrote")
    options.add_argument("picture", type=Path, metavar="PICTURE", help="where to write it (PNG, SVG, PDF)")
    asked = options.parse_args(arguments)
    try:
        results = json.loads(asked.results.read_text())
        rows = results["rows"] + ([results["oracle"]] if results.get("oracle") else [])
    except (OSError, ValueError, KeyError, TypeError):
        raise MeasuringError(f"{asked.results} holds no results of loadtest.quality --json") from None
    plot(rows, asked.picture)


if __name__ == "__main__":
    run(main)
