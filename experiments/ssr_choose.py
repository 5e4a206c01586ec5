"""Which SSR settings LFW's anchor half alone would choose; the eval half is not read.

    PYTHONPATH=. python experiments/ssr_choose.py --data_dir=DATA \
        > experiments/results/ssr_choose.json

For each seed a tenth of the anchor half's identities is held out: they are neither trained on nor
among the anchors. The criterion is R² of F on their faces, a mean over the seeds, with shortened
schedules. Settings differ from those of configs/lfw_pretrained.py in what their name says. "paper"
is the paper's recipe, `ida_jax.runs.config.ssr_section`.
"""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
from lfw_faces import lfw_embeddings, lfw_faces
from ml_collections import ConfigDict

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import real_db_rows
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.metrics.evaluation import regression_quality
from ida_jax.rescoring.density import searched_log_density
from ida_jax.runs.config import ssr_section
from ida_jax.training.ssr import train_ssr, with_copies

K, TAU, HELD_OUT = 10, 1.0, 0.1
CHANGES = {
    "as configured": {},
    "copies 0": {"copies": 0},
    "copies 10": {"copies": 10},
    "hidden 256": {"hidden": 256},
    "input unit": {"input": "unit"},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "weight decay 5e-4": {"weight_decay": 5e-4},
    "copies 0, learning rate 1e-3": {"copies": 0, "learning_rate": 1e-3},
    "copies 10, hidden 256, weight decay 5e-4": {
        "copies": 10, "hidden": 256, "weight_decay": 5e-4
    },
    "paper": dict(ssr_section().items()),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    faces, labels = _anchor_half(options.data_dir / "lfw")
    configured = _configured()
    found: dict[str, list] = {name: [] for name in CHANGES}
    targets: dict[tuple[int, int], tuple] = {}
    for seed in range(options.seeds):
        split = _split(faces, labels, seed)
        for name, changes in CHANGES.items():
            ssr = configured.copy_and_resolve_references()
            ssr.update(changes)
            shorter = options.steps / ssr.steps
            ssr.decay_steps = tuple(int(step * shorter) for step in ssr.decay_steps)
            ssr.steps = options.steps
            if (seed, ssr.copies) not in targets:
                targets[seed, ssr.copies] = _targets(split, ssr, seed)
            found[name].append(_quality(split, targets[seed, ssr.copies], ssr, seed))
    means = {
        name: {
            "r2": float(np.mean([each.r2 for each in found[name]])),
            "rank_correlation": float(np.mean([each.rank_correlation for each in found[name]])),
            "r2 of each seed": [round(each.r2, 4) for each in found[name]],
        }
        for name in CHANGES
    }
    record = {
        "faces": len(faces), "held out": HELD_OUT, "steps": options.steps, "seeds": options.seeds,
        "configured": configured.to_dict(), "changes": CHANGES,
        "settings, best first": dict(sorted(means.items(), key=lambda item: -item[1]["r2"])),
        "provenance": provenance(),
    }  # fmt: skip
    text = json.dumps(record, indent=1)
    print(text.replace(str(options.data_dir), "DATA"))


def _anchor_half(root: Path) -> tuple[np.ndarray, np.ndarray]:
    faces = lfw_faces(root)
    chosen = faces.rows("anchor")
    return unit_embeddings(lfw_embeddings(root)[chosen]), faces.labels[chosen]


def _configured() -> ConfigDict:
    path = Path(__file__).parents[1] / "configs" / "lfw_pretrained.py"
    spec = importlib.util.spec_from_file_location("lfw_pretrained", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().ssr


def _split(faces: np.ndarray, labels: np.ndarray, seed: int) -> dict:
    people = np.unique(labels)
    rng = np.random.default_rng(seed)
    held = np.isin(labels, rng.permutation(people)[: round(HELD_OUT * len(people))])
    rows = real_db_rows(labels[~held], size=50_000, seed=0)
    anchors = AnchorSet.from_embeddings(
        faces[~held][rows], labels=labels[~held][rows], k=K, tau=TAU
    )
    return {
        "faces": faces[~held], "labels": labels[~held], "anchors": anchors,
        "held": faces[held], "searched": searched_log_density(faces[held], anchors),
    }  # fmt: skip


def _targets(split: dict, ssr: ConfigDict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    made = with_copies(
        split["faces"], split["labels"], copies=ssr.copies, mix=ssr.mix, noise=ssr.noise, seed=seed
    )
    found = searched_log_density(made.embeddings, split["anchors"], labels=made.labels)
    return made.embeddings, found


def _quality(split: dict, targets: tuple, ssr: ConfigDict, seed: int):
    with tempfile.TemporaryDirectory() as folder:
        module = train_ssr(*targets, ssr, k=K, tau=TAU, workdir=folder, seed=seed)
    regressed = module.log_density(split["held"])
    return regression_quality(np.exp(regressed), np.exp(split["searched"]))


if __name__ == "__main__":
    main()
