"""The section of the page where a threshold is chosen: its data, and the script that shows it.

Without script the section does not appear, and the page is as it would be without it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ida_jax.common.errors import printable
from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS, Evaluation
from ida_jax.metrics.threshold_curve import ThresholdCurve
from ida_jax.report.style import in_order, method_name, score_name
from ida_jax.rescoring.method_table import BASELINE, HEADLINE

_MOST_GROUPS = 20
_SCRIPT = Path(__file__).with_name("page.js")


def picker_section(evaluated: Mapping[str, Evaluation], *, method: str = HEADLINE) -> str:
    """The section's HTML, hidden until its script runs; "" where no variant has thresholds.

    Args:
      evaluated: {variant: its evaluation}.
      method: the one that is shown first, where it is there.
    """
    variants = [
        {"name": _shown(name), "methods": _methods(of.thresholds)}
        for name, of in evaluated.items()
        if of.thresholds
    ]
    if not variants:
        return ""
    data = {
        "variants": variants,
        "baseline": BASELINE,
        "method": method,
        "fewest": FEWEST_FALSE_ACCEPTS,
    }
    return (
        '<section id="picker" hidden>\n<h2>Choose a threshold</h2>\n<div class="card"></div>\n'
        f'</section>\n<script type="application/json" id="thresholds">{_json(data)}</script>\n'
        f"<script>\n{_SCRIPT.read_text(encoding='utf-8')}</script>"
    )


def _methods(thresholds: Mapping[str, ThresholdCurve]) -> list[dict[str, Any]]:
    return [
        {
            "key": _shown(name),
            "title": _shown(method_name(name)),
            "score": _shown(score_name(name)),
            "genuine": curve.genuine,
            "impostor": curve.impostor,
            "threshold": curve.threshold.tolist(),
            "false_accepts": curve.false_accepts.tolist(),
            "true_accepts": curve.true_accepts.tolist(),
            "tar_interval": _rounded(curve.tar_interval),
            "threshold_interval": _rounded(curve.threshold_interval),
            "groups": [
                {
                    "name": _shown(group),
                    "impostor": of.impostor,
                    "false_accepts": of.false_accepts.tolist(),
                }
                for group, of in list(curve.groups.items())[:_MOST_GROUPS]
            ],
        }
        for name, curve in in_order(thresholds).items()
        if curve.threshold.size
    ]


def _shown(name: str) -> str:
    """A name as text, at most 80 characters of it."""
    text = printable(name)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _rounded(intervals: np.ndarray) -> list[list[float] | None]:
    """Each interval to seven digits; None where an end is not finite."""
    return [
        [float(f"{end:.7g}") for end in ends] if all(map(math.isfinite, ends)) else None
        for ends in intervals.tolist()
    ]


def _json(data: Any) -> str:
    """JSON that ends no element of HTML, whatever the names in it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
