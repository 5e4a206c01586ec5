"""Degraded copies among the anchors: the flags that ask for them, their labels and provenance.

How images are degraded is `ida_jax.data.degrade`'s matter. A anchors.
"""

from argparse import ArgumentParser, Namespace
from typing import Any

import numpy as np

from ida_jax.common.errors import UserError
from ida_jax.data.degrade import VARIED, Degradation, degradation


def add_degrade_flags(parser: ArgumentParser) -> None:
    """Adds --degrade, --degrade_share and --degrade_copies."""
    add = parser.add_argument_group("degraded copies").add_argument
    add("--degrade", nargs="?", const=VARIED, default="", metavar="SPEC", help="add degraded "
        "copies of some images as anchors, for probes of varied quality: varied (if no SPEC is "
        "given), mild, medium, strong, or kinds such as blur,jpeg:strong")  # fmt: skip
    add("--degrade_share", type=float, metavar="SHARE", help="of the images that get copies (0.5)")
    add("--degrade_copies", type=int, metavar="N", help="copies of each of them (1)")


def asked_degradation(options: Namespace) -> Degradation | None:
    """What the flags ask for, None for nothing; drawn by the command's --seed.

    Raises:
      UserError: as `degradation`; a share or a number without --degrade.
    """
    for name in ("degrade_share", "degrade_copies"):
        if not options.degrade and getattr(options, name) is not None:
            raise UserError(f"--{name} goes with --degrade")
    share, copies = options.degrade_share, options.degrade_copies
    return degradation(
        options.degrade,
        share=0.5 if share is None else share,
        copies=1 if copies is None else copies,
        seed=options.seed or 0,
        what="--degrade",
    )


def copy_labels(of: np.ndarray) -> np.ndarray | None:
    """Labels int32 [A] of nobody's anchors among which are copies; None where there are none.

    A negative label is unknown and leaves nothing out; what copies share, below −1, says that they
    show one face (`AnchorSet.labels`).

    Args:
      of: int64 [A], the image that each anchor is or is a copy of, from `with_degraded`.
    """
    copied = np.bincount(of, minlength=1) > 1
    return np.where(copied[of], -2 - of, -1).astype(np.int32) if copied.any() else None


def degraded_provenance(degrade: Degradation | None, of: np.ndarray) -> dict[str, Any]:
    """What the provenance of anchors says of the degraded copies among them, if any.

    Args:
      of: as in `copy_labels`.
    """
    if degrade is None:
        return {}
    images = int(np.unique(of).size)
    return {"degraded": {**degrade.described(), "images": images, "anchors": len(of) - images}}
