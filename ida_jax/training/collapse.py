"""Whether the training of a GAN has collapsed, by the statistics of its records.

A healthy StyleGAN2 training with R1 has logits within about ±5 that differ over a batch by some
tenths or more, real ones up to a few units above generated ones, and generated images about as
diverse as real ones. A training may be far from that at its start or for some steps later, and
recover. So a collapse is what a whole window of records shows, by thresholds about ten times beyond
what healthy trainings reach; a number that is not finite never recovers and is reported at once.

Not detected: a generator limited to a few images rather than one, and a discriminator that has
memorised a small training set (its gap grows slowly, and the Fréchet distance with it).
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np

WINDOW = 10  # successive records that must all show the collapse

# Healthy logits have a deviation of 0.1 or more. With R1 20,000 times too strong it was 0.015, and
# the generator still learned: the size of Adam's steps does not depend on the gradient's. Below
# this threshold there is no signal.
_SAME_LOGIT = 1e-3
# softplus(−25) is 1e-11: no image has any loss left, and the margin keeps growing only because Adam
# amplifies any gradient.
_HUGE_GAP = 50.0
_ALL = 0.99  # mean sign of logits that all have the same one
# Whatever the signs. At 80 times the usual learning rate logits started at −8,000 and were healthy
# 40 steps later; those that do not recover go on to 1e12.
_DIVERGED_LOGIT = 1e3
# Real images have 1, an untrained generator's 2 to 6; half black, half white pixels have 2 to 5.
_SAME_IMAGE, _DIVERGED_IMAGES = 0.05, 10.0

_STATISTICS = (
    "real_logit", "real_logit_std", "real_sign", "fake_logit", "fake_logit_std", "fake_sign",
    "diversity",
)  # fmt: skip


def collapse_reason(records: Sequence[Mapping[str, float]]) -> str | None:
    """What has collapsed in the training that wrote these records, or None.

    Args:
      records: a training's, oldest first, each of one batch: real_logit and fake_logit (means),
        real_logit_std and fake_logit_std, real_sign and fake_sign (means of the logits' signs),
        diversity (the generated images' standard deviation over the batch, averaged over pixels,
        relative to the real ones'), and other numbers. Records that lack a statistic, such as an
        evaluation's, are skipped.

    Returns:
      A phrase with figures, for an error message.
    """
    complete = [record for record in records if all(name in record for name in _STATISTICS)]
    if not complete:
        return None
    broken = [
        f"{name} is {value}"
        for name, value in complete[-1].items()
        if isinstance(value, Real) and not math.isfinite(value)
    ]
    if broken:
        return ", ".join(broken)
    if len(complete) < WINDOW:
        return None
    last = {
        name: np.array([record[name] for record in complete[-WINDOW:]], np.float64)
        for name in _STATISTICS
    }
    gap = last["real_logit"] - last["fake_logit"]
    size = np.maximum(np.abs(last["real_logit"]), np.abs(last["fake_logit"]))
    spread = np.maximum(last["real_logit_std"], last["fake_logit_std"])
    all_right = (last["real_sign"] >= _ALL) & (last["fake_sign"] <= -_ALL)
    all_wrong = (last["real_sign"] <= -_ALL) & (last["fake_sign"] >= _ALL)
    grows = gap[WINDOW // 2 :].mean() >= gap[: WINDOW // 2].mean()
    logits = (
        f"(real {_mean(last['real_logit'])} ± {_mean(last['real_logit_std'])}, generated "
        f"{_mean(last['fake_logit'])} ± {_mean(last['fake_logit_std'])} in the last {WINDOW} "
        "records)"
    )
    diversity = (
        f"(they differ {_mean(last['diversity'])} times as much as real ones in the last {WINDOW} "
        "records)"
    )
    if np.all(np.abs(gap) < _SAME_LOGIT) and np.all(spread < _SAME_LOGIT):
        return f"the discriminator gives every image the same logit {logits}"
    if np.all(all_right) and np.all(gap > _HUGE_GAP) and grows:
        return f"the discriminator separates all images by a huge and growing margin {logits}"
    if np.all(all_wrong):
        return f"the discriminator takes all images for their opposite {logits}"
    if np.all(size > _DIVERGED_LOGIT):
        return f"the discriminator's logits have diverged {logits}"
    if np.all(last["diversity"] < _SAME_IMAGE):
        return f"the generator makes the same image of every latent {diversity}"
    if np.all(last["diversity"] > _DIVERGED_IMAGES):
        return f"the generator's images have diverged {diversity}"
    return None


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.2g}"
