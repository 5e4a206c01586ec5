"""Norms of raw embeddings reach the scores of every protocol: a method that is nothing else."""

import itertools

import numpy as np
import pytest
from ijb_release import Size, write_release

from ida_jax.metrics.evaluation import Evaluation
from ida_jax.metrics.templates import pool_templates, pooling_matrix
from ida_jax.protocols import face_blocks, ijb, megaface, ytf
from ida_jax.protocols.ijb_files import read_ijb
from ida_jax.rescoring import method_table, terms
from ida_jax.rescoring.rescorer import Rescorer

D = 6


@pytest.fixture
def scorers(monkeypatch):
    """l₁ + l₂."""
    rule = terms.Rule(1, 0, lambda c, f, g, w: 0 * c + f[..., 0] + g[..., 0])
    method = method_table.Method(
        "Norms",
        "The logarithms of the norms.",
        rule="norms",
        values=lambda scorer, faces, _: np.empty((len(faces), 0), np.float32),
        log_norm=lambda scorer, log_norms: log_norms,
    )
    monkeypatch.setitem(terms.RULES, "norms", rule)
    monkeypatch.setitem(method_table.METHODS, "norms", method)
    return {name: Rescorer(None, method=name) for name in ("cosine", "norms")}


def _raw(count, seed, width=D):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, width)) * rng.uniform(0.5, 9, (count, 1))
    return rows.astype(np.float32)


def _log_norms(rows):
    return np.log(np.linalg.norm(rows.astype(np.float64), axis=-1))


@pytest.mark.parametrize(("norm", "flip"), [("keep", "none"), ("unit", "none"), ("unit", "halves")])
def test_ijb_takes_the_pooled_raw_embeddings_norm(norm, flip, scorers, tmp_path, monkeypatch):
    size = Size(images=210, templates=60, subjects=20, pairs=700, genuine=40, width=D)
    write_release(tmp_path / "release", size)
    meta = read_ijb(tmp_path / "release", subset="ijbc")
    taken = {}

    def captured(scores, *args, **options):
        taken.update(scores)
        return Evaluation({}, {}, ())

    monkeypatch.setattr(ijb, "evaluate_scored_pairs", captured)
    raw = _raw(210, 1, D * (1 + (flip == "halves")))
    ijb.evaluate_ijb(raw, meta, scorers, subset="ijbc", norm=norm, flip=flip)
    matrix = pooling_matrix(meta.templates, meta.media, weights=meta.detector)
    whole = pool_templates(matrix, raw, halves=flip == "halves")
    expected = _log_norms(whole / matrix.sum(axis=1)[:, None])
    np.testing.assert_allclose(taken["norms"], expected[meta.pairs].sum(axis=1), rtol=1e-5)


def test_ytf_takes_the_norm_of_the_mean_and_of_single_frames(scorers, monkeypatch):
    monkeypatch.setattr(ytf, "_FIRST", 4)
    monkeypatch.setattr(face_blocks, "SIZES", (8, 16))
    taken = []
    monkeypatch.setattr(
        ytf, "kfold_figures", lambda scores, *_, **__: taken.append(scores) or Evaluation({}, {})
    )
    counts = [1, 3, 5, 7, 2]
    raw = _raw(sum(counts), 2)
    starts = np.cumsum([0, *counts])
    listed = ytf.VideoPairs(
        tuple(f"P{i}/0" for i in range(5)), np.arange(5, dtype=np.int32),
        np.int32([[0, 1], [2, 3], [4, 2]]), np.zeros(3, bool), np.int32([0, 0, 1]),
    )  # fmt: skip
    ytf.evaluate_ytf(raw, ytf.Frames(np.arange(len(raw)), starts), listed, scorers)
    means, frames = taken
    videos = [raw[a:b] for a, b in itertools.pairwise(starts)]
    of_mean = np.array([_log_norms(video.astype(np.float64).mean(axis=0)) for video in videos])
    np.testing.assert_allclose(means["norms"], of_mean[listed.pairs].sum(axis=1), atol=1e-4)
    of_frames = np.array([_log_norms(video[:4]).mean() for video in videos])
    np.testing.assert_allclose(frames["norms"], of_frames[listed.pairs].sum(axis=1), atol=1e-4)


@pytest.mark.parametrize("split", [7, 16, 53])
def test_megaface_takes_probes_and_distractors_norms(split, scorers, monkeypatch):
    monkeypatch.setattr(face_blocks, "SIZES", (8, 16))
    monkeypatch.setattr(megaface, "_PROBES", 4)
    labels = np.repeat([5, 2, 9], [4, 3, 6])
    probes, distractors = 3 * _raw(13, 3), _raw(53, 4)
    distractors[20:] *= 1.5
    distractors[11] = np.nan
    blocks = [distractors[i : i + split] for i in range(0, 53, split)]
    found = megaface.evaluate_megaface(
        probes, labels, blocks, scorers, sizes=(10, 53), resamples=5, skip_bad=True
    )
    own, others = _log_norms(probes), _log_norms(distractors)
    faults = {
        str(size): sum(
            own[g] <= np.nanmax(others[:size])
            for p in range(13)
            for g in range(13)
            if p != g and labels[p] == labels[g]
        )
        for size in (10, 53)
    }
    assert 0 < faults["10"] < faults["53"]
    assert found.figures["norms"]["faults@distractors"] == faults
