"""A made-up release in IJB-C's form, of any size: lists, galleries, embeddings of its images.

Subjects have a random centre; an image's embedding is its subject's centre with noise, of a random
norm. N images, T templates, D embedding.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Size(NamedTuple):
    """How much there is."""

    images: int
    templates: int
    subjects: int
    pairs: int
    genuine: int
    width: int


IJBC = Size(469_375, 23_124, 3_531, 15_658_489, 19_557, 512)
_SLAB = 16_384


def write_release(folder: Path, size: Size, *, subset: str = "ijbc", seed: int = 0) -> None:
    """Writes FOLDER/meta/… and FOLDER/embeddings.npy."""
    rng = np.random.default_rng(seed)
    meta = folder / "meta"
    meta.mkdir(parents=True)
    subject_of = np.concatenate(
        [
            np.repeat(np.arange(size.subjects), 2),
            rng.integers(size.subjects, size=size.templates - 2 * size.subjects),
        ]
    )
    template_of = np.sort(
        np.concatenate(
            [
                np.arange(size.templates),
                rng.integers(size.templates, size=size.images - size.templates),
            ]
        )
    )
    ids = 1 + np.arange(size.templates) * 3  # not without gaps, as in the release
    media = template_of * 8 + rng.integers(8, size=size.images)
    names = [f"{i + 1}.jpg" for i in range(size.images)]
    with (meta / f"{subset}_face_tid_mid.txt").open("w") as file:
        for name, template, medium in zip(names, ids[template_of], media, strict=True):
            file.write(f"{name} {template} {medium}\n")
    points = rng.uniform(20, 90, (size.images, 10)).round(3)
    scores = rng.uniform(0.4, 1, size.images).round(6)
    with (meta / f"{subset}_name_5pts_score.txt").open("w") as file:
        for name, row, score in zip(names, points.tolist(), scores.tolist(), strict=True):
            file.write(f"{name} {' '.join(map(str, row))} {score}\n")
    _write_pairs(meta / f"{subset}_template_pair_label.txt", ids, subject_of, size, rng)
    # The first template of a subject is in a gallery, the others are probes.
    first = np.arange(size.subjects) * 2
    half = size.subjects // 2
    galleries = {"1N_gallery_G1": first[:half], "1N_gallery_G2": first[half : 2 * half]}
    probes = np.setdiff1d(np.arange(size.templates), first)
    for name, rows in {**galleries, "1N_probe_mixed": probes}.items():
        with (meta / f"{subset}_{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["TEMPLATE_ID", "SUBJECT_ID", "FILENAME", "SIGHTING_ID"])
            writer.writerows([ids[row], 1000 + subject_of[row], "img/1.jpg", 1] for row in rows)
    _write_embeddings(folder / "embeddings.npy", subject_of[template_of], size, rng)


def _write_pairs(
    path: Path, ids: np.ndarray, subject_of: np.ndarray, size: Size, rng: np.random.Generator
) -> None:
    order = np.argsort(subject_of, kind="stable")
    same = np.stack([order[:-1], order[1:]], axis=1)
    same = same[subject_of[same[:, 0]] == subject_of[same[:, 1]]]
    genuine = same[rng.integers(len(same), size=size.genuine)]
    with path.open("w") as file:
        for first, second in ids[genuine].tolist():
            file.write(f"{first} {second} 1\n")
        left = size.pairs - size.genuine
        while left:
            pairs = rng.integers(size.templates, size=(min(left, 1 << 20), 2))
            pairs = pairs[subject_of[pairs[:, 0]] != subject_of[pairs[:, 1]]]
            left -= len(pairs)
            file.write("".join([f"{a} {b} 0\n" for a, b in ids[pairs].tolist()]))


def _write_embeddings(
    path: Path, subject: np.ndarray, size: Size, rng: np.random.Generator
) -> None:
    centres = _unit(rng.normal(size=(size.subjects, size.width)).astype(np.float32))
    out = np.lib.format.open_memmap(path, "w+", np.float32, (size.images, size.width))
    for start in range(0, size.images, _SLAB):
        of = subject[start : start + _SLAB]
        noise = rng.standard_normal((of.size, size.width), np.float32)
        slab = _unit(centres[of] + noise * np.float32(7 / np.sqrt(size.width)))
        out[start : start + _SLAB] = slab * rng.uniform(10, 30, (of.size, 1)).astype(np.float32)
    out.flush()


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
