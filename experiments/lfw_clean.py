"""What people under two names do to LFW's figures: all pairs with and without them.

    PYTHONPATH=. python experiments/lfw_clean.py --data_dir=DATA \
        --output=experiments/results/lfw_clean

All pairs of the eval half (at most 10 images per identity) by the cosine, IDA-R and AS-norm,
anchors the first image of each identity of the anchor half; and the halves exchanged. Once with all
pairs, once without those between the names that experiments/lfw_same_person.csv lists as one
person, or as holding an image of each other. Nothing is chosen or fitted here. Intervals are over
identities, and gains paired with the cosine. It writes OUTPUT.json and OUTPUT.md. """

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from lfw_faces import lfw_embeddings, lfw_faces

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import real_db_rows
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.metrics.evaluation import Evaluation
from ida_jax.protocols.table import noted
from ida_jax.protocols.verification import evaluate_all_pairs
from ida_jax.rescoring.methods import make_scorers
from ida_jax.tables.identity_pairs import IdentityPairs, pairs_among, read_identity_pairs

LIST = Path(__file__).with_name("lfw_same_person.csv")
METHODS = ("cosine", "ida_r", "as_norm")
FARS = (1e-3, 1e-4, 1e-5, 1e-6)
K, IMAGES = 10, 10


def _half(root: Path, role: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows of a half's first images, their labels, and the labels' names."""
    faces = lfw_faces(root)
    chosen = faces.rows(role, images=IMAGES)
    people, labels = np.unique(faces.people[faces.labels[chosen]], return_inverse=True)
    return unit_embeddings(lfw_embeddings(root)[chosen]), labels, people


def _evaluate(
    root: Path, role: str, other: str, listed: IdentityPairs, resamples: int
) -> dict[str, Evaluation]:
    faces, labels, people = _half(root, role)
    rows, owners, _ = _half(root, other)
    anchors = AnchorSet(rows[real_db_rows(owners, size=50_000)], k=K)
    scorers = make_scorers(METHODS, anchors, k=K)
    methods = {name: scorer.terms(faces) for name, scorer in scorers.items()}
    known = pairs_among(listed, people)
    evaluated = {}
    for name, left_out in (("all pairs", None), ("without the list", known)):
        found = evaluate_all_pairs(
            faces,
            labels,
            methods,
            fars=FARS,
            ignored=None if left_out is None else left_out.codes,
            resamples=resamples,
        )
        evaluated[name] = noted(found.evaluated, left_out, found.ignored)
    return evaluated


def _page(record: dict[str, Any]) -> str:
    """TAR % with its interval by half, list, method and FAR."""
    keys = [f"{far:g}" for far in FARS]
    lines = ["| pairs of | | method | " + " | ".join(f"TAR@{key} %" for key in keys) + " |"]
    lines.append("| --- | --- | --- |" + " ---: |" * len(keys))
    for half, variants in record["halves"].items():
        for variant, of in variants.items():
            for method, figures in of["figures"].items():
                cells = []
                for key in keys:
                    low, high = figures["tar_interval@far"][key]
                    tar = figures["tar@far"][key]
                    cells.append(f"{100 * tar:.2f} ({100 * low:.2f}–{100 * high:.2f})")
                lines.append(
                    f"| the {half} half | {variant} | {method} | " + " | ".join(cells) + " |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="without .json and .md")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    listed = read_identity_pairs(LIST)
    record: dict[str, Any] = {"k": K, "resamples": options.resamples, "halves": {}}
    for role, other in (("eval", "anchor"), ("anchor", "eval")):
        evaluated = _evaluate(options.data_dir / "lfw", role, other, listed, options.resamples)
        record["halves"][role] = {
            name: {"figures": of.figures, "notes": of.notes} for name, of in evaluated.items()
        }
    record["provenance"] = provenance()
    text = json.dumps(record, indent=1).replace(str(options.data_dir), "DATA")
    options.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(_page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
