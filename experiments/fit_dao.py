"""What IDA-R gains when its constants are fitted: the density's weight, the support set's size, τ.

    PYTHONPATH=. python experiments/fit_dao.py --data_dir=DATA > experiments/results/fit_dao.json

`ida_jax.rescoring.dao_fit.fit_dao` on one half of LFW's identities, evaluated on all pairs of the
other half's first 10 images, identities that the fit has never seen; anchors are the first image of
each identity of the fitted half. Both ways round: the fit's options (temperature, ridge) were
settled while looking at the way from the anchor half to the eval half alone, so that the other way
is a test of them too. Embeddings: MobileFaceNet's as they are (DATA/lfw), and two weaker models
made of them, where IDA has more to do: their first 32 principal components (of the fitted half),
and noise of 0.06 in each of the 128 components of the unit vectors.

Development faces have their own identity's anchor left out of the support set, and the partner's:
holding development identities and anchors apart would fit on half as many anchors as are in use,
and κ is a matter of their number.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from lfw_faces import HALVES, lfw_embeddings, lfw_faces

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.search import support_sets
from ida_jax.anchors.sources import real_db_rows
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.metrics.bootstrap import bootstrap_deepening
from ida_jax.metrics.resampling import (
    Tail,
    all_pairs_total,
    genuine_rows,
    impostor_rows,
    split_tail,
)
from ida_jax.metrics.roc import tar_at_far
from ida_jax.rescoring.cohort_scores import nearest_statistics
from ida_jax.rescoring.dao_fit import fit_dao
from ida_jax.rescoring.density import log_density_of
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.rescoring.terms import FaceTerms, cosine_terms, dao_terms

FARS = (1e-3, 1e-4, 1e-5)
IMAGES, TOP_N, WIDTH, NOISE = 10, 300, 32, 0.06
ABLATION = {
    "tau alone": ("tau",),
    "weight alone": ("weight",),
    "support alone": ("support",),
    "tau, weight and support": ("tau", "weight", "support"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    halves = _halves(options.data_dir / "lfw")
    record = {}
    for way in (("anchor", "eval"), ("eval", "anchor")):
        for name, made in EMBEDDINGS.items():
            (train, own), (test, others) = (halves[role] for role in way)
            train, test = made(train, test)
            ablation = ABLATION if way[0] == "anchor" else {}
            case = _case(train, own, test, others, ablation, options.resamples)
            record[f"{name}, {way[0]} to {way[1]}"] = case
            print(f"{name}, {way}: {case['tar@far']}", file=sys.stderr)
    record["provenance"] = provenance()
    print(json.dumps(record, indent=1))


def _halves(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{role: unit rows and labels}."""
    faces, embeddings = lfw_faces(root), unit_embeddings(lfw_embeddings(root))
    return {half: (embeddings[faces.rows(half)], faces.labels[faces.rows(half)]) for half in HALVES}


def _projected(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = train.mean(axis=0)
    directions = np.linalg.svd(train - mean, full_matrices=False)[2][:WIDTH].T
    return tuple(unit_embeddings((faces - mean) @ directions) for faces in (train, test))


def _noisy(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(
        unit_embeddings(faces + rng.normal(scale=NOISE, size=faces.shape).astype(np.float32))
        for faces in (train, test)
    )


EMBEDDINGS = {
    "MobileFaceNet": lambda *faces: faces,
    f"{WIDTH} principal components": _projected,
    f"noise {NOISE}": _noisy,
}


def _case(train, own, test, others, ablation: dict, resamples: int) -> dict:
    rows = real_db_rows(own, size=50_000, seed=0)
    anchors = AnchorSet.from_embeddings(train[rows], labels=own[rows])
    kept = _first(others, IMAGES)
    faces, labels = test[kept], np.unique(others[kept], return_inverse=True)[1]
    found = support_sets(faces, anchors, k=TOP_N).similarities
    terms = {
        "cosine": cosine_terms(len(faces)),
        "ida_r": dao_terms(log_density_of(found[:, :10], tau=1.0), tau=1.0),
        "as_norm": FaceTerms("s_norm", np.stack(nearest_statistics(found), axis=1)),
    }
    # k is the paper's one number that a user sets: is a larger one the whole gain?
    terms |= {
        f"ida_r, k = {k}": dao_terms(log_density_of(found[:, :k], tau=1.0), tau=1.0)
        for k in (20, 40)
    }
    fits = {}
    asked = {f"fitted at {far:g}": {"far": far} for far in FARS[:2]}
    asked |= {name: {"far": 1e-4, "fitted": constants} for name, constants in ablation.items()}
    for name, options in asked.items():
        start = time.perf_counter()
        fit = fit_dao(train, own, anchors, images_per_identity=IMAGES, **options)
        fits[name] = {
            "tau": fit.tau, "weight": fit.weight, "support": fit.support,
            "seconds": time.perf_counter() - start,
        }  # fmt: skip
        terms[name] = fit.terms(found[:, : fit.neighbours])
    tails, tars = {}, {}
    for name, each in terms.items():
        scores = score_all_pairs(faces, labels, each)
        tars[name] = _by_far(point.tar for point in tar_at_far(*scores, FARS))
        tails[name] = _tail(scores, labels)
    return {
        "anchors": len(anchors), "identities": int(labels.max()) + 1, "faces": len(faces),
        "genuine": int(scores.genuine.size), "impostor": int(scores.impostor.size),
        "fits": fits, "tar@far": tars,
        **{
            f"gain over {base}": _gains(tails, labels, base, resamples)
            for base in ("cosine", "ida_r")
        },
    }  # fmt: skip


def _first(labels: np.ndarray, most: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(labels == each)[:most] for each in np.unique(labels)])


def _tail(scores, labels: np.ndarray) -> Tail:
    of_genuine = labels[genuine_rows(labels, np.arange(scores.genuine.size)).first]
    return split_tail(
        *scores,
        genuine_units=np.repeat(of_genuine[:, None], 2, axis=1),
        impostor_units=lambda at: labels[np.stack(impostor_rows(labels, at), axis=1)],
        highest_far=2 * max(FARS),
    )


def _gains(tails: dict[str, Tail], labels: np.ndarray, base: str, resamples: int) -> dict:
    """{method: {FAR: [gain, 95 % interval's low and high]}}, paired, over identities."""
    found = bootstrap_deepening(
        lambda _: tails, fars=FARS, units=int(labels.max()) + 1, total=all_pairs_total(labels),
        baseline=base, resamples=resamples,
    )  # fmt: skip
    return {
        name: {f"{p.far:g}": [round(x, 5) for x in (p.gain, *p.tar)] for p in points}
        for name, points in found.differences.items()
    }


def _by_far(values) -> dict[str, float]:
    return {f"{far:g}": round(float(value), 5) for far, value in zip(FARS, values, strict=True)}


if __name__ == "__main__":
    main()
