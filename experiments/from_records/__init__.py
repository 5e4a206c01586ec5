"""What README and docs/ say of the records in results/, so that no figure there is typed by hand.

The pages hold calls of these functions in comments, and cog (cogapp) writes what they return below:

  cog -r -I experiments -p "import from_records as r" README.md docs/*.md        # writes
  cog --check -I experiments -p "import from_records as r" README.md docs/*.md   # as CI does
"""

from from_records.accuracy import (
    calibration_leak,
    calibration_shift,
    dao_fit_gain,
    interval_coverage,
    lfw_10fold,
    lfw_gain,
    lfw_pretrained,
    lfw_two_models,
    ssr_auto_gain,
    table1_small,
    table4_lfw,
    table5_lfw,
    trial_verdict,
)
from from_records.anchors import (
    anchor_checks,
    degraded_fallback,
    degraded_gain,
    group_ratios,
    quality_gain,
    quality_limits,
    quality_of_few_people,
)
from from_records.speed import (
    billion_costs,
    gallery_on_disk,
    gpu_bounds,
    index_at_the_same_recall,
    index_speed,
    rescore_speed,
    ssr_speed,
)
from from_records.training import (
    finetune_choice,
    finetune_lfw,
    insightface_networks,
    insightface_parity,
    networks,
)

__all__ = [
    "anchor_checks",
    "billion_costs",
    "calibration_leak",
    "calibration_shift",
    "dao_fit_gain",
    "degraded_fallback",
    "degraded_gain",
    "finetune_choice",
    "finetune_lfw",
    "gallery_on_disk",
    "gpu_bounds",
    "group_ratios",
    "index_at_the_same_recall",
    "index_speed",
    "insightface_networks",
    "insightface_parity",
    "interval_coverage",
    "lfw_10fold",
    "lfw_gain",
    "lfw_pretrained",
    "lfw_two_models",
    "networks",
    "quality_gain",
    "quality_limits",
    "quality_of_few_people",
    "rescore_speed",
    "ssr_auto_gain",
    "ssr_speed",
    "table1_small",
    "table4_lfw",
    "table5_lfw",
    "trial_verdict",
]
