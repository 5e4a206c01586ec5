"""LFW's list of people under two names, and what it leaves out of the eval half's pairs."""

import csv
from pathlib import Path

import numpy as np

from ida_jax.common.validation import unit_embeddings
from ida_jax.data.lfw_crops import read_split
from ida_jax.metrics.ignored import between
from ida_jax.metrics.roc import tar_at_far
from ida_jax.tables.identity_pairs import DECISIONS, pairs_among, read_identity_pairs

LIST = Path(__file__).parents[2] / "experiments" / "lfw_same_person.csv"


def test_each_line_is_decided_and_says_how():
    lines = LIST.read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert {row["decision"] for row in rows} == set(DECISIONS) - {""}
    assert all(row["how"] for row in rows)
    listed = read_identity_pairs(LIST)
    assert listed.kept + len(listed.pairs) == len(rows)
    assert len({frozenset((row["identity_1"], row["identity_2"])) for row in rows}) == len(rows)


def test_at_the_lowest_far_the_names_decided(shared_data):
    names = (shared_data / "lfw" / "names.txt").read_text(encoding="utf-8").split()
    listed = read_identity_pairs(LIST)
    everybody = sorted({name.split("/")[0] for name in names})
    assert pairs_among(listed, everybody).unknown == 0
    roles = read_split(shared_data / "lfw" / "split.csv")
    rows = [
        row for row, name in enumerate(names)
        if roles[name.split("/")[0]] == "eval" and int(name[-4:]) <= 10
    ]  # fmt: skip
    people, labels = np.unique([names[row].split("/")[0] for row in rows], return_inverse=True)
    faces = unit_embeddings(np.load(shared_data / "lfw" / "mobilefacenet_embeddings.npy")[rows])
    cosines = faces @ faces.T
    same = labels[:, None] == labels
    upper = np.triu(np.ones_like(same), 1)
    # No pair that decides anything is lower.
    first, second = np.nonzero(upper & ~same & (cosines > 0.4))
    apart = between(labels[np.stack([first, second], axis=1)], pairs_among(listed, people).codes)
    assert apart.sum() == np.sum(cosines[first[apart], second[apart]] > 0.4) <= 28
    rest = np.full(13_484_345 - 28 - np.count_nonzero(~apart), -1, np.float32)
    impostors = np.concatenate([cosines[first[~apart], second[~apart]], rest])
    (point,) = tar_at_far(cosines[upper & same], impostors, [1e-6])
    (dirty,) = tar_at_far(
        cosines[upper & same], np.concatenate([cosines[first, second], rest]), [1e-6]
    )
    assert (round(dirty.tar, 3), round(point.tar, 3)) == (0.367, 0.880)
