"""The section of the page where a threshold is chosen: its data, and the script that shows it.

Without script the section does not appear, and the page is as it would be without it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ida_jax.common.errors import printable
from ida_jax.metrics.evaluation import FEWEST_FALSE_ACCEPTS, Evaluation
from ida_jax.metrics.threshold_curve import ThresholdCurve
from ida_jax.report.page import data_script, script
from ida_jax.report.style import in_order, method_name, score_name
from ida_jax.rescoring.method_table import BASELINE, HEADLINE

_MOST_GROUPS = 20
_SECTION = """<section id="picker" hidden>
<h2>Choose a threshold</h2>
<div class="card">
<div class="controls">
<label{one}><span>Protocol</span><select id="picker-variant">{variants}</select></label>
<label><span>Method</span><select id="picker-method"></select></label>
<label><span>FAR wanted, at most</span><input id="picker-far" type="text" inputmode="decimal"
 size="9" autocomplete="off" spellcheck="false"></label>
<span class="presets" id="picker-presets"></span>
</div>
<label class="slider"><span id="picker-label"></span>
<input id="picker-score" type="range" step="any"></label>
<div class="wide"><table class="results">
<thead><tr><th scope="col">Method</th><th scope="col">Threshold</th><th scope="col">FAR</th>
<th scope="col">False accepts</th><th scope="col">TAR</th><th scope="col">False rejects</th></tr>
</thead><tbody id="picker-rows"></tbody></table></div>
<div class="wide"><table class="results" id="picker-groups"></table></div>
<svg id="picker-plot" viewBox="0 -10 640 240" role="img"
 aria-label="TAR against FAR, and the chosen threshold"></svg>
<p class="soft" id="picker-notes" aria-live="polite"></p>
<p class="soft">For a config, as in deploy.json:
<button type="button" id="picker-copy">Copy</button></p>
<pre id="picker-row" tabindex="0"></pre>
</div>
</section>
"""


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
        "method": _shown(method),
        "fewest": FEWEST_FALSE_ACCEPTS,
    }
    names = "".join(
        f'<option value="{i}">{html.escape(variant["name"])}</option>'
        for i, variant in enumerate(variants)
    )
    section = _SECTION.format(variants=names, one=" hidden" * (len(variants) == 1))
    return f"{section}{data_script('thresholds', data)}\n{script('picker.js')}"


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
