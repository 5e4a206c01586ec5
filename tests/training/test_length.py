"""A training's length in steps, epochs and images."""

import pytest

from ida_jax.common.errors import UserError
from ida_jax.runs.config import train_section
from ida_jax.training.length import in_steps


def _section(**changes):
    train = train_section()
    for key, value in changes.items():
        train[key] = value
    return train


def test_epochs_are_arcface_torchs():
    """num_image // total_batch_size * num_epoch, and the same of warmup_epoch."""
    images, batch = 5_179_510, 1024  # MS1MV3 on eight GPUs
    given = _section(batch_size=batch, epochs=25.0, warmup_epochs=2.0, schedule="linear")
    found = in_steps(given, images)
    assert (found.steps, found.warmup_steps) == (images // batch * 25, images // batch * 2)
    assert given.steps == 200_000
    found = in_steps(_section(batch_size=100, epochs=2.5, decay_epochs=(1, 1.5)), 1099)
    assert (found.steps, found.decay_steps) == (25, (10, 15))


def test_images_and_sets_smaller_than_a_batch():
    assert in_steps(_section(batch_size=100, images=1099), 5).steps == 10
    assert in_steps(_section(batch_size=100, images=9), 5).steps == 1
    assert in_steps(_section(batch_size=100, epochs=10.0), 55).steps == 5
    alone = _section(steps=7)
    assert in_steps(alone, 55) is alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 2.0, "images": 5}, "train.epochs is 2.0 and train.images 5: give one"),
        ({"epochs": 0.0}, "train.epochs is 0.0: expected a number above 0"),
        ({"images": -1}, "train.images is -1"),
        ({"warmup_epochs": -1.0}, "train.warmup_epochs is -1.0"),
        ({"decay_epochs": (2, 1)}, "train.decay_epochs is (2, 1): expected ascending"),
        ({"decay_epochs": ("x",)}, "expected numbers of epochs"),
        ({"epochs": 2.0, "warmup_epochs": 2.0, "schedule": "polynomial"},
         "train.warmup_steps is 4 of 4 steps"),
        ({"steps": 5, "warmup_steps": 5, "schedule": "linear"}, "warmup_steps is 5 of 5 steps"),
    ],
)  # fmt: skip
def test_lengths_that_cannot_be(changes, message):
    with pytest.raises(UserError) as raised:
        in_steps(_section(batch_size=10, **changes), 20)
    assert message in str(raised.value)
