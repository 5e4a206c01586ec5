"""IJB 1:1 with PFE: fused templates by cosine, by likelihood and in DAO, on a made-up release."""

import numpy as np
import pytest
import reference
from ijb_release import Size, write_release

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import UserError
from ida_jax.protocols.ijb import evaluate_ijb
from ida_jax.protocols.ijb_files import read_ijb
from ida_jax.protocols.pfe_methods import ImageVariances, pfe_scores
from ida_jax.rescoring.methods import make_scorers


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ijb") / "release"
    size = Size(images=210, templates=60, subjects=20, pairs=700, genuine=40, width=16)
    write_release(folder, size)
    return folder


def test_pfe_s_methods_are_those_of_the_fused_templates(written):
    meta = read_ijb(written, subset="ijbc")
    embeddings = np.load(written / "embeddings.npy")
    rng = np.random.default_rng(3)
    log_variances = rng.normal(-6, 1, embeddings.shape).astype(np.float32)
    anchors = reference.gaussians((40, 16), 5)
    scorers = make_scorers(("cosine", "ida_r"), AnchorSet.from_embeddings(anchors[0]), k=4, tau=1.5)
    variances = ImageVariances(log_variances, anchors[1])
    found = evaluate_ijb(embeddings, meta, scorers, subset="ijbc", variances=variances, resamples=0)
    figures = found["ijbc_1to1_norm_detector"].figures
    assert set(figures) == {"cosine", "ida_r", "pfe_fusion", "pfe_ida_r", "pfe", "pfe_mls_ida_r"}

    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    fused = [
        reference.fused_gaussian(unit[meta.templates == t], log_variances[meta.templates == t])
        for t in range(60)
    ]
    mean, log_variance = (np.stack(each) for each in zip(*fused, strict=True))
    scale = 1 / np.mean(np.exp(-anchors[1].astype(np.float64)))
    likelihood = [
        np.sort([scale * reference.mutual_likelihood(mean[t], a, log_variance[t], v)
                 for a, v in zip(*anchors, strict=True)])[-4:]
        for t in range(60)
    ]  # fmt: skip
    cosines = [np.sort(anchors[0] @ m)[-4:] for m in mean]
    by_cosine, by_likelihood = (
        -np.log(np.sum(np.exp(1.5 * np.array(nearest)), axis=1))
        for nearest in (cosines, likelihood)
    )
    i, j = meta.pairs.T
    cosine = np.sum(mean[i] * mean[j], axis=1)
    mls = np.array([
        scale * reference.mutual_likelihood(mean[a], mean[b], log_variance[a], log_variance[b])
        for a, b in meta.pairs
    ])  # fmt: skip
    expected = {
        "pfe_fusion": cosine,
        "pfe_ida_r": 1.5 * cosine + np.logaddexp(by_cosine[i], by_cosine[j]),
        "pfe": mls,
        "pfe_mls_ida_r": 1.5 * mls + np.logaddexp(by_likelihood[i], by_likelihood[j]),
    }
    for name, scores in expected.items():
        given = pfe_scores(
            embeddings, variances, meta.templates, meta.pairs, scorers, rows=np.arange(210)
        )[name]
        np.testing.assert_allclose(given, scores, rtol=1e-4, atol=2e-4)
        auc = np.mean(scores[meta.same][:, None] > scores[~meta.same][None, :])
        assert 0 < auc < 1  # the figures below tell something
        for far, tar in figures[name]["tar@far"].items():
            threshold = np.sort(scores[~meta.same])[::-1][int(float(far) * np.sum(~meta.same))]
            assert tar == pytest.approx(np.mean(scores[meta.same] > threshold), abs=0.03)


def test_pfe_s_mistakes_are_told(written):
    meta = read_ijb(written, subset="ijbc")
    embeddings = np.load(written / "embeddings.npy")
    good = np.zeros_like(embeddings)
    scorers = make_scorers(
        ("cosine", "ida_r"), AnchorSet.from_embeddings(reference.unit((40, 16), 5)), k=4
    )
    for variances, flip, told in (
        (ImageVariances(good[:, :9], None), "added", "log σ² is"),
        (ImageVariances(good[5:], None), "added", "log σ² is"),
        (ImageVariances(good, np.zeros((39, 16))), "added", "the anchors' log σ² is"),
        (ImageVariances(np.full_like(good, np.nan), None), "added", "its log σ² is not finite"),
        (ImageVariances(good, None), "halves", "not as halves"),
    ):
        with pytest.raises(UserError, match=told):
            evaluate_ijb(embeddings, meta, scorers, subset="ijbc", variances=variances, flip=flip)
