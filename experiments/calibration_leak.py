r"""What a calibration is worth whose people are among the anchors, or that is used with other ones.

    PYTHONPATH=. python experiments/calibration_leak.py --data_dir=DATA \
        > experiments/results/calibration_leak.json

On LFW (DATA/lfw, MobileFaceNet's embeddings, at most 10 images per identity), both ways round:
anchors are the first image of each identity of one half, the tested pairs all pairs of every second
identity of the other half. The threshold of each FAR comes from all impostor pairs of

- leak: the anchors' people, as `rescore` scores them where it is not told who they are;
- labels: the same, each face's own identity left out (`rescore --labels`);
- no leak: the other identities of the tested half, who are not among the anchors.

It tells the FAR that each threshold realises on the tested pairs, with the anchors that it was made
with, and the share of faces by which `rescore` tells of a leak. Nothing was chosen on the tested
pairs; the share from which a leak is told (1 % of the faces) was set with those of both halves in
view.

Then what a mismatch does where nobody checks: a logistic calibration fitted at k = 10 with all
anchors (no leak) is applied to the tested pairs' scores at k = 20, or with every second anchor. It
tells the mean shift of their LLRs in nats, and the FAR at the thresholds of the fit.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from lfw_faces import HALVES, lfw_embeddings, lfw_faces

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import real_db_rows
from ida_jax.anchors.supported_weight import supported_weight
from ida_jax.artefacts.calibration import fit_calibration
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.shared_people import shared_people

FARS = (1e-2, 1e-3, 1e-4)
METHODS = ("ida_r", "ida_r_fallback", "as_norm", "s_norm")
IMAGES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    options = parser.parse_args()
    halves = _halves(options.data_dir / "lfw")
    record = {
        f"anchors of the {own} half": _case(halves[own], halves[other])
        for own, other in (("anchor", "eval"), ("eval", "anchor"))
    }
    record["provenance"] = provenance()
    print(json.dumps(record, indent=1).replace(str(options.data_dir), "DATA"))


def _halves(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{role: unit rows and labels}, first images."""
    faces, embeddings = lfw_faces(root), unit_embeddings(lfw_embeddings(root))
    chosen = {half: faces.rows(half, images=IMAGES) for half in HALVES}
    return {half: (embeddings[rows], faces.labels[rows]) for half, rows in chosen.items()}


def _case(own: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]) -> dict:
    faces, labels = own
    rows = real_db_rows(labels, size=50_000)
    anchors = AnchorSet.from_embeddings(faces[rows], labels=labels[rows])
    second = np.isin(others[1], np.unique(others[1])[1::2])
    development = tuple(values[~second] for values in others)
    tested = tuple(values[second] for values in others)
    record: dict = {
        "anchors": len(anchors),
        "faces": {"anchors' people": len(faces), "no leak": len(development[0]),
                  "tested": len(tested[0])},
        "faces likely among the anchors": {
            "leak": _told(anchors, faces, None),
            "labels": _told(anchors, faces, labels),
            "no leak": _told(anchors, development[0], None),
        },
        "realised FAR": {},
    }  # fmt: skip
    weight = supported_weight(development[0], anchors).weight
    for method in METHODS:
        top_n = 300 if method == "as_norm" else None
        scorer = Rescorer(anchors, method=method, weight=weight, top_n=top_n)
        made = {
            "leak": score_all_pairs(*own, scorer.terms(faces)),
            "labels": score_all_pairs(*own, scorer.terms(faces, labels=labels)),
            "no leak": score_all_pairs(*development, scorer.terms(development[0])),
        }
        if method == "s_norm":  # its cohort is the whole set, whatever the labels
            del made["labels"]
        impostors = np.sort(score_all_pairs(*tested, scorer.terms(tested[0])).impostor)
        record["realised FAR"][method] = {
            name: _realised(scores.impostor, impostors) for name, scores in made.items()
        }
    record["mismatch"] = _mismatch(anchors, development, tested)
    return record


def _told(anchors: AnchorSet, faces: np.ndarray, labels: np.ndarray | None) -> dict:
    _, nearest = Rescorer(anchors).searched_terms(faces, labels=labels)
    shared = shared_people(nearest, anchors, labels=labels, known=np.zeros(0, bool))
    return {"share": round(shared.share, 5), "threshold": round(shared.threshold, 4)}


def _threshold(impostor: np.ndarray, far: float) -> float:
    place = len(impostor) - 1 - int(far * len(impostor))
    return float(np.partition(impostor, place)[place])


def _realised(made_of: np.ndarray, tested: np.ndarray) -> dict[str, float]:
    """{FAR asked for: the share of the ascending tested scores above the threshold for it}."""
    found = {}
    for far in FARS:
        above = len(tested) - np.searchsorted(tested, _threshold(made_of, far), "right")
        found[f"{far:g}"] = float(f"{above / len(tested):.4g}")
    return found


def _mismatch(anchors: AnchorSet, development: tuple, tested: tuple) -> dict:
    fitted = Rescorer(anchors, k=10)
    scores = score_all_pairs(*development, fitted.terms(development[0]))
    calibration = fit_calibration(*scores, kind="logistic", origin=fitted.origin())
    right = score_all_pairs(*tested, fitted.terms(tested[0]))
    half = AnchorSet.from_embeddings(anchors.embeddings[::2])
    wrong = {"k = 20": Rescorer(anchors, k=20), "every second anchor": Rescorer(half, k=10)}
    record = {}
    for name, scorer in wrong.items():
        given = score_all_pairs(*tested, scorer.terms(tested[0]))
        record[name] = {
            "LLR shift of genuine pairs, nats": _shift(calibration, right.genuine, given.genuine),
            "LLR shift of impostor pairs, nats": _shift(
                calibration, right.impostor, given.impostor
            ),
            "realised FAR": _realised(scores.impostor, np.sort(given.impostor)),
        }
    record["none"] = {"realised FAR": _realised(scores.impostor, np.sort(right.impostor))}
    return record


def _shift(calibration, right: np.ndarray, given: np.ndarray) -> float:
    return round(float(np.mean(calibration.llr(given) - calibration.llr(right))), 3)


if __name__ == "__main__":
    main()
