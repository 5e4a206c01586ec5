import numpy as np
import pytest

from ida_jax.training.collapse import WINDOW, collapse_reason


def _history(length=WINDOW, *, seed=0, **statistics):
    """Records of a healthy training at its equilibrium, or of another by values or functions of n.

    Values are the means of noisy ones, as those of a batch of 16 are.
    """
    rng = np.random.default_rng(seed)
    means = {
        "real_logit": 0.3, "real_logit_std": 0.5, "real_sign": 0.4, "fake_logit": -0.3,
        "fake_logit_std": 0.4, "fake_sign": -0.4, "diversity": 0.95,
    } | statistics  # fmt: skip
    records = []
    for n in range(length):
        at = {name: value(n) if callable(value) else value for name, value in means.items()}
        for kind in ("real", "fake"):
            at[f"{kind}_logit"] += rng.normal() * at[f"{kind}_logit_std"] / 4
        records.append({"step": 50 * n, "generator_loss": 0.7, **at})
    return records


def _first_reason(records):
    """The first reason in a training that is asked at each record, and at which."""
    for count in range(1, len(records) + 1):
        if reason := collapse_reason(records[:count]):
            return count, reason
    return None


_SEPARATED = {"real_sign": 1.0, "fake_sign": -1.0, "real_logit_std": 4.0, "fake_logit_std": 5.0}
_SAME_LOGIT = {"real_logit": 0.0013, "fake_logit": 0.0013, "real_logit_std": 1e-4,
               "fake_logit_std": 1e-4, "real_sign": 1.0, "fake_sign": 1.0}  # fmt: skip


def test_no_records_are_no_collapse():
    assert collapse_reason([]) is None
    assert collapse_reason([{"step": 0, "frechet": 1.0}]) is None


@pytest.mark.parametrize(
    "statistics",
    [
        {},
        # The equilibrium: no gap, but logits that spread.
        {"real_logit": 0.0, "fake_logit": 0.0, "real_logit_std": 1.0, "fake_logit_std": 1.0},
        # A strong R1: flat at real images, and a small gap.
        {"real_logit": 0.02, "fake_logit": -0.02, "real_logit_std": 0.02, "fake_logit_std": 0.15},
        # Few training images, known by heart.
        {"real_logit": lambda n: n / 20, "fake_logit": lambda n: -n / 20, **_SEPARATED},
        # Augmentation at its bound: the discriminator sees little, and images differ less.
        {"real_logit_std": 0.05, "fake_logit_std": 0.05, "diversity": 0.4},
        # Images of the start, which then become as diverse as real ones.
        {"diversity": lambda n: 1 + 5 * 0.8**n},
        {"diversity": lambda n: 0.01 + 0.99 * min(1, n / 40)},
        # All told apart at the start, by a margin that shrinks as the generator learns.
        {"real_logit": lambda n: 60 * 0.95**n, "fake_logit": lambda n: -60 * 0.95**n, **_SEPARATED},
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_healthy_trainings(statistics, seed):
    assert _first_reason(_history(200, seed=seed, **statistics)) is None


def test_same_logit():
    count, reason = _first_reason(_history(40, **_SAME_LOGIT))
    assert count == WINDOW
    assert reason == (
        "the discriminator gives every image the same logit (real 0.0013 ± 0.0001, generated "
        "0.0013 ± 0.0001 in the last 10 records)"
    )


def test_huge_and_growing_margin():
    statistics = {"real_logit": lambda n: 2 * n, "fake_logit": lambda n: -3 * n, **_SEPARATED}
    count, reason = _first_reason(_history(60, **statistics))
    assert reason.startswith("the discriminator separates all images by a huge and growing margin")
    # 5·n passes 50 at n = 11, and a whole window is beyond it ten records later.
    assert WINDOW + 9 <= count <= WINDOW + 14
    # A training that found back may fall again.
    assert collapse_reason(_history(60, **statistics) + _history(1)) is None


def test_all_images_for_their_opposite():
    # What an absurd R1 does: the discriminator cannot follow the generator any more.
    inverted = {"real_logit": -1.5, "real_logit_std": 0.02, "real_sign": -1.0,
                "fake_logit": 14.0, "fake_logit_std": 4.0, "fake_sign": 1.0}  # fmt: skip
    count, reason = _first_reason(_history(40, **inverted))
    assert count == WINDOW
    assert reason.startswith("the discriminator takes all images for their opposite (real -1.5 ±")
    assert _first_reason(_history(40, **inverted | {"fake_sign": 0.9})) is None


def test_diverged_logits():
    records = _history(20, real_logit=-6e9, fake_logit=-1e11, real_sign=-1.0, fake_sign=-1.0)
    count, reason = _first_reason(records)
    assert count == WINDOW
    assert reason.startswith("the discriminator's logits have diverged (real -6e+09 ± 0.5,")


def test_same_image():
    count, reason = _first_reason(_history(40, diversity=lambda n: max(0.9 * 0.8**n, 0.012)))
    # Below 0.05 from n = 13 on.
    assert count == 13 + WINDOW
    assert reason == (
        "the generator makes the same image of every latent (they differ 0.023 times as much as "
        "real ones in the last 10 records)"
    )


def test_diverged_images():
    _, reason = _first_reason(_history(WINDOW, diversity=120.0))
    assert reason.startswith("the generator's images have diverged (they differ 1.2e+02 times")


@pytest.mark.parametrize(
    "collapsed",
    [
        _SAME_LOGIT,
        {"real_logit": 100.0, "fake_logit": -100.0, **_SEPARATED},
        {"real_logit": 1e6},
        {"real_sign": -1.0, "fake_sign": 1.0},
        {"diversity": 0.001},
        {"diversity": 100.0},
    ],
)
def test_one_healthy_record_in_the_window_is_enough(collapsed):
    sick = _history(WINDOW, **collapsed)
    # Of equal halves of the window the later one is as high: the margin, too, does not shrink.
    sick[WINDOW // 2 :] = sick[: WINDOW - WINDOW // 2]
    assert collapse_reason(sick)
    assert collapse_reason(sick[1:]) is None
    for place in range(WINDOW):
        assert collapse_reason(sick[:place] + _history(1) + sick[place + 1 :]) is None
    # An evaluation among them is no record of a batch.
    assert collapse_reason([*sick[:4], {"step": 3, "frechet": 0.2}, *sick[4:]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.float32("inf")])
def test_a_number_that_is_not_finite_is_reported_at_once(value):
    records = [*_history(3), *_history(1, fake_logit_std=0.0, fake_logit=value)]
    assert collapse_reason(records) == f"fake_logit is {value}"
    records = [*_history(1), {**_history(1)[0], "r1": value, "generator_loss": float("nan")}]
    assert collapse_reason(records) == f"generator_loss is nan, r1 is {value}"
    # Only the last one: an evaluation's figures may be missing, as may a name be no number.
    assert collapse_reason([*_history(1), {"step": 2, "frechet": value}]) is None
    assert collapse_reason([{**_history(1)[0], "stage": "gan"}]) is None
