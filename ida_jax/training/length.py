"""How long a training is, in whichever unit its config says it: the one place that converts.

N images of the training set, B batch.
"""

from ml_collections import ConfigDict

from ida_jax.common.errors import UserError

# Entries in epochs, and those in steps that they stand in place of.
_IN_EPOCHS = {"epochs": "steps", "warmup_epochs": "warmup_steps", "decay_epochs": "decay_steps"}


def depends_on_images(train: ConfigDict) -> bool:
    """Whether a config's section train gives any of its lengths in epochs."""
    return any(train.get(key) is not None for key in _IN_EPOCHS)


def in_steps(train: ConfigDict, num_images: int) -> ConfigDict:
    """A config's section train with its length, warm-up and decays as steps.

    An epoch is ⌊N / B⌋ steps, as in arcface_torch; where N < B it is N / B. A part of an epoch may
    be asked for. `images` are ⌊images / B⌋ steps.

    Args:
      num_images: N; without effect where nothing is in epochs.

    Returns:
      The section itself where it gives steps alone; otherwise a copy.

    Raises:
      UserError: as `check_length`; or a warm-up as long as the training.
    """
    check_length(train)
    if not depends_on_images(train) and train.get("images") is None:
        return train
    converted = train.copy_and_resolve_references()
    epoch = num_images // train.batch_size or num_images / train.batch_size
    if train.get("images") is not None:
        converted.steps = max(1, train.images // train.batch_size)
    if train.get("epochs") is not None:
        converted.steps = max(1, int(train.epochs * epoch))
    if train.get("warmup_epochs") is not None:
        converted.warmup_steps = int(train.warmup_epochs * epoch)
    if train.get("decay_epochs") is not None:
        converted.decay_steps = tuple(int(at * epoch) for at in train.decay_epochs)
    check_warmup(converted)
    return converted


def check_length(train: ConfigDict) -> None:
    """Refuses lengths that cannot be, or contradict each other, as a UserError."""
    if train.get("epochs") is not None and train.get("images") is not None:
        raise UserError(
            f"train.epochs is {train.epochs} and train.images {train.images}: give one of them"
        )
    for key, lowest in (("epochs", 1e-9), ("images", 1), ("warmup_epochs", 0)):
        value = train.get(key)
        if value is not None and not lowest <= value < float("inf"):
            raise UserError(f"train.{key} is {value}: expected a number above 0")
    decays = train.get("decay_epochs")
    if decays is not None:
        if not all(isinstance(at, int | float) and 0 <= at < float("inf") for at in decays):
            raise UserError(f"train.decay_epochs is {decays}: expected numbers of epochs")
        if list(decays) != sorted(decays):
            raise UserError(f"train.decay_epochs is {decays}: expected ascending epochs")
    if not depends_on_images(train) and train.get("images") is None:
        check_warmup(train)


def check_warmup(train: ConfigDict) -> None:
    """Refuses a warm-up that leaves no step for the fall to 0, as a UserError."""
    if train.get("schedule", "steps") != "steps" and train.warmup_steps >= train.steps:
        raise UserError(
            f"train.warmup_steps is {train.warmup_steps} of {train.steps} steps: the fall to 0 "
            "begins after them, so take fewer"
        )
