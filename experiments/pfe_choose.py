"""How configs/lfw_pfe.py's settings of PFE were chosen: on people held out of LFW's anchor half.

    PYTHONPATH=. python experiments/pfe_choose.py --model=runs/lfw_pfe/model.safetensors \
        --data_dir=DATA --output=experiments/results/pfe_choose.json

A fifth of the anchor half's identities with two images or more is held out, and the uncertainty
module trained on the others by each setting. Reported at several steps: minus the mean MLS of the
held-out genuine pairs, and TAR of the MLS over all held-out pairs, of the images as they are and
with every other one spoilt. The eval half is not looked at. An image's views are computed once:
itself, its mirror image, and `SPOILT` by the low_quality augmentation.

N faces, B batch.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from paper_runs import load_config

from ida_jax.artefacts.face_model import FaceModel, by_batches
from ida_jax.common.command_line import Parser
from ida_jax.common.devices import training_mesh
from ida_jax.common.errors import exit_code
from ida_jax.common.files import json_text, written_whole
from ida_jax.common.provenance import provenance
from ida_jax.data.augment import augmentation, augmented, drawn, stream
from ida_jax.data.balanced import balanced_rows
from ida_jax.data.load import load_faces
from ida_jax.metrics.roc import tar_at_far
from ida_jax.models.uncertainty_network import UncertaintyNetwork
from ida_jax.rescoring.likelihood import score_all_pairs_mls
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.runs.config import pfe_section
from ida_jax.training.pfe import make_pfe_program

FARS = (1e-2, 1e-3, 1e-4)
SPOILT, IMAGES, SEED = 4, 10, 1
# Changes to pfe_section, the share of spoilt images, and the steps that are looked at.
SETTINGS: dict[str, tuple[dict[str, Any], float, tuple[int, ...]]] = {
    "Shi & Jain's": ({}, 0.0, (25, 50, 100, 200, 400)),
    "smaller steps": ({"learning_rate": 2e-4}, 0.0, (100, 200, 300)),
    "spoilt images": ({"learning_rate": 2e-4}, 0.8, (100, 200, 300)),
    "and more decay": ({"learning_rate": 2e-4, "weight_decay": 0.5}, 0.8, (100, 200, 300)),
    "and narrower": (
        {"learning_rate": 2e-4, "weight_decay": 0.5, "hidden": 64}, 0.8, (100, 200, 300)
    ),
}  # fmt: skip


class Views:
    """Every face's views, side by side."""

    def __init__(self, images: Any, rows: np.ndarray) -> None:
        changes = augmentation("low_quality")
        self._images, self._rows, self._names = images, rows, list(changes)
        self._called = drawn(changes, seed=SEED, first=0, count=len(self))

    def __len__(self) -> int:
        return len(self._rows) * (2 + SPOILT)

    def __getitem__(self, index: int) -> np.ndarray:
        row, view = divmod(index, 2 + SPOILT)
        image = self._images[self._rows[row]]
        if view < 2:
            return np.ascontiguousarray(image[:, ::-1]) if view else image
        called = [name for name, on in zip(self._names, self._called[index], strict=True) if on]
        return augmented(image, called, stream(seed=SEED, number=index))


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="JSON")
    options = parser.parse_args()
    model = FaceModel.load(options.model)
    config = load_config("lfw_pfe")
    faces = load_faces(config.train_data, data_dir=str(options.data_dir), seed=0)
    rows = balanced_rows(faces.labels, identities=2, images=2, seed=0).rows
    labels = faces.labels[rows]
    mesh = training_mesh(1)
    freeze = make_pfe_program(model, pfe_section(), seed=0, mesh=mesh).freeze
    backbone = jax.device_put(model.variables)
    means, maps = (
        np.concatenate(each).reshape(len(rows), 2 + SPOILT, *each[0].shape[1:])
        for each in zip(
            *(
                (mean, found.astype(np.float16))
                for mean, found in by_batches(
                    lambda images: freeze(backbone, images), Views(faces.images, rows),
                    model.preprocessing, batch_size=128, progress="views",
                )
            ),
            strict=True,
        )
    )  # fmt: skip
    people = np.unique(labels)
    held = np.random.default_rng(SEED).choice(people, len(people) // 5, replace=False)
    training = np.flatnonzero(~np.isin(labels, held))
    kept = np.concatenate([np.flatnonzero(labels == person)[:IMAGES] for person in held])
    spoilt = np.where(np.arange(len(kept)) % 2, 2, 0)
    sets = {
        name: (means[kept, view], maps[kept, view].astype(np.float32), labels[kept])
        for name, view in (("as they are", 0), ("every other one spoilt", spoilt))
    }
    record: dict[str, Any] = {
        "training faces": len(training),
        "held-out faces": len(kept),
        "cosine": {name: _tars(score_all_pairs(s[0], s[2])) for name, s in sets.items()},
        "settings": {},
    }
    for name, (changes, share, steps) in SETTINGS.items():
        c = pfe_section()
        c.decay_steps = ()
        c.update(changes)
        data = means[training], maps[training], labels[training]
        record["settings"][name] = {"changes": changes, "share of spoilt images": share} | {
            "steps": _train(model, c, data, share, steps, sets, mesh)
        }
        print(name, record["settings"][name], flush=True)
    record["provenance"] = provenance()
    with written_whole(options.output) as temporary:
        temporary.write_text(json_text(record), encoding="utf-8")


def _train(model, c, data, share, steps, sets, mesh) -> dict[str, Any]:
    program = make_pfe_program(model, c, seed=0, mesh=mesh)
    module = UncertaintyNetwork(embedding_dim=model.width, hidden=c.hidden)
    apply = jax.jit(lambda variables, maps: module.apply(variables, maps, train=False))
    batch = c.identities * c.images
    means, maps, labels = data
    rows = balanced_rows(labels, identities=c.identities, images=c.images, seed=0)
    state, found = program.init(), {}
    for step in range(max(steps)):
        which, rng = rows(step * batch, batch), np.random.default_rng([0, step])
        view = np.where(
            rng.random(batch) < share, rng.integers(2, 2 + SPOILT, batch), rng.integers(0, 2, batch)
        )
        arrays = means[which, view], maps[which, view].astype(np.float32)
        own = labels[which].astype(np.int32), which.astype(np.int32)
        state, _ = program.step(state, *map(jnp.asarray, (*arrays, *own)))
        if step + 1 in steps:
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            found[step + 1] = {name: _figures(apply, variables, *s) for name, s in sets.items()}
    return found


def _figures(apply, variables, means, maps, labels) -> dict[str, Any]:
    log_variances = np.concatenate(
        [np.asarray(apply(variables, maps[i : i + 256])) for i in range(0, len(maps), 256)]
    )
    scores = score_all_pairs_mls(means, log_variances, labels)
    return {
        "loss": float(-scores.genuine.mean()),
        "tar@far": _tars(scores),
        "deviation of faces' mean log-variance": float(log_variances.mean(axis=1).std()),
    }


def _tars(scores: Any) -> dict[str, float]:
    return {f"{p.far:g}": round(p.tar, 4) for p in tar_at_far(*scores, FARS)}


if __name__ == "__main__":
    sys.exit(exit_code(main))
