"""How much of IDA-R's gain IDA-L keeps on LFW, over seeds.

    PYTHONPATH=. python experiments/ssr_lfw.py --data_dir=DATA > experiments/results/ssr_lfw.json

The SSR module of configs/lfw_pretrained.py (and, beside it, the paper's own recipe) is trained on
the embeddings of the anchor half and evaluated on all pairs of the eval half, whose identities it
has never seen. Embeddings are DATA/lfw/mobilefacenet_embeddings.npy in the order of names.txt.
"""

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from lfw_faces import lfw_embeddings, lfw_faces

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import real_db_rows
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.metrics.evaluation import regression_quality
from ida_jax.metrics.roc import tar_at_far
from ida_jax.rescoring.density import searched_log_density
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.rescoring.terms import dao_terms
from ida_jax.training.ssr import train_ssr, with_copies

FARS = (1e-3, 1e-4, 1e-5)
K, TAU, IMAGES = 10, 1.0, 10
PAPER = {"hidden": 256, "input": "unit", "copies": 0, "learning_rate": 1e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    train, evaluation = _halves(options.data_dir / "lfw")
    rows = real_db_rows(train[1], size=50_000, seed=0)
    anchors = AnchorSet.from_embeddings(train[0][rows], labels=train[1][rows], k=K, tau=TAU)
    searched = searched_log_density(evaluation[0], anchors)
    cosine, ida_r = (_tars(*evaluation, log_f) for log_f in (None, searched))
    config = _config()
    recipes = {"ours": {}, "paper": PAPER}
    record = {"anchors": len(anchors), "faces": len(evaluation[0]), "cosine": _by_far(cosine),
              "ida_r": _by_far(ida_r), "recipes": {}}  # fmt: skip
    for name, changes in recipes.items():
        ssr = config.copy_and_resolve_references()
        ssr.update(changes)
        runs = [
            _run(train, evaluation, anchors, searched, ssr, seed) for seed in range(options.seeds)
        ]
        tars = np.array([run["tar"] for run in runs])
        record["recipes"][name] = {
            "ssr": ssr.to_dict(),
            "seeds": options.seeds,
            "tar@far": _by_far(tars.mean(axis=0)),
            "share of IDA-R's gain kept": _by_far((tars.mean(axis=0) - cosine) / (ida_r - cosine)),
            "tar@far of each seed": tars.round(5).tolist(),
            "r2": float(np.mean([run["r2"] for run in runs])),
            "rank_correlation": float(np.mean([run["rank_correlation"] for run in runs])),
            "seconds": float(np.mean([run["seconds"] for run in runs])),
        }
    record["provenance"] = provenance()
    print(json.dumps(record, indent=1))


def _halves(root: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(unit rows, labels) of the anchor half, and of the eval half's first images."""
    faces, embeddings = lfw_faces(root), unit_embeddings(lfw_embeddings(root))
    chosen = faces.rows("anchor"), faces.rows("eval", images=IMAGES)
    return [(embeddings[rows], faces.labels[rows]) for rows in chosen]


def _config():
    path = Path(__file__).parents[1] / "configs" / "lfw_pretrained.py"
    spec = importlib.util.spec_from_file_location("lfw_pretrained", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().ssr


def _run(train, evaluation, anchors, searched, ssr, seed) -> dict:
    start = time.perf_counter()
    made = with_copies(*train, copies=ssr.copies, mix=ssr.mix, noise=ssr.noise, seed=seed)
    targets = searched_log_density(made.embeddings, anchors, labels=made.labels)
    with tempfile.TemporaryDirectory() as folder:
        module = train_ssr(made.embeddings, targets, ssr, k=K, tau=TAU, workdir=folder, seed=seed)
    seconds = time.perf_counter() - start
    regressed = module.log_density(evaluation[0])
    quality = regression_quality(np.exp(regressed), np.exp(searched))
    return {"tar": _tars(*evaluation, regressed), "seconds": seconds, **quality._asdict()}


def _tars(faces: np.ndarray, labels: np.ndarray, log_density: np.ndarray | None) -> np.ndarray:
    terms = None if log_density is None else dao_terms(log_density, tau=TAU)
    return np.array([p.tar for p in tar_at_far(*score_all_pairs(faces, labels, terms), FARS)])


def _by_far(values: np.ndarray) -> dict[str, float]:
    return {f"{far:g}": round(float(value), 5) for far, value in zip(FARS, values, strict=True)}


if __name__ == "__main__":
    main()
