import base64
import io
import os
import re

import numpy as np
import pytest
from PIL import Image

from ida_jax.common.errors import UserError
from ida_jax.data.dataset import FaceDataset
from ida_jax.metrics.evaluation import Band, Evaluation
from ida_jax.protocols.verification import evaluate_all_pairs
from ida_jax.report.page import jpeg
from ida_jax.report.pair_cards import ChangedDecisions, ChangedPairs, changed_pairs, pair_section
from ida_jax.report.run_report import DensitiesByGroup, write_protocol_report, write_run_report
from ida_jax.rescoring.pairs import score_pairs
from ida_jax.rescoring.terms import cosine_terms, dao_terms


def images(n, side=16):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(n)]


@pytest.fixture(scope="module")
def found():
    """50 identities of two faces each, close to each other, and IDA's figures on all pairs."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(50, 8)), 2, axis=0)
    faces = centres + 0.6 * rng.normal(size=(100, 8))
    faces = (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32)
    labels = np.repeat(np.arange(50, dtype=np.int32), 2)
    log_density = rng.normal(-2, 0.3, 100).astype(np.float32)
    methods = {"cosine": cosine_terms(100), "ida_r": dao_terms(log_density, tau=1.0)}
    everything = evaluate_all_pairs(faces, labels, methods, fars=(1e-3, 1e-2), resamples=10)
    return faces, labels, log_density, methods, everything


def test_changed_pairs_have_their_scores(found):
    faces, labels, _, methods, everything = found
    changed = changed_pairs(everything, faces, methods)
    assert (changed.base, changed.other, changed.far) == ("cosine", "ida_r", 0.01)
    assert sum(group.total for group in changed.groups) > 4
    for group in changed.groups:
        first, second = np.asarray(group.pairs).T
        np.testing.assert_array_equal(labels[first] == labels[second], group.genuine)
        for scores, name, threshold, right in (
            (group.base, "cosine", changed.base_threshold, group.kind == "broken"),
            (group.other, "ida_r", changed.other_threshold, group.kind == "corrected"),
        ):
            np.testing.assert_array_equal(scores, score_pairs(faces, group.pairs, methods[name]))
            np.testing.assert_array_equal((scores > threshold) == group.genuine, right)
    assert changed_pairs(everything._replace(changed=None), faces, methods) is None


def decisions(pairs, kind="corrected", *, genuine=True, total=None):
    n = len(pairs)
    group = ChangedPairs(kind, genuine, np.array(pairs, np.int64).reshape(n, 2), np.full(n, 0.25),
                         np.full(n, -1.5), n if total is None else total)  # fmt: skip
    return ChangedDecisions("cosine", "ida_l", 1e-3, 0.5, -2.0, (group,))


def test_cards_show_both_faces_and_both_decisions():
    faces = images(3)
    section = pair_section(decisions([[2, 0]], total=7), faces, people=["A_<B>", "C", "D"])
    shown = [base64.b64decode(found) for found in re.findall(r"base64,([^\"]+)", section)]
    for content, face in zip(shown, (faces[2], faces[0]), strict=True):
        assert content == jpeg(face)
        assert np.asarray(Image.open(io.BytesIO(content))).shape == face.shape
    text = re.sub(r"<[^>]*>", " ", section)
    for said in [
        "Corrected: genuine pairs that cosine rejects", "1 of 7", "A &lt;B&gt;",
        "IDA-L corrects 7 decisions and breaks 0", "FAR 1e-3",
    ]:  # fmt: skip
        assert said in text
    assert re.search(r"Cosine\s+0\.250 ≤ 0\.500\s+✗ rejected", text)
    assert re.search(r"log-DAO\s+−1\.500 &gt; −2\.000\s+✓ accepted", text)
    broken = re.sub(
        r"<[^>]*>", " ", pair_section(decisions([[0, 1]], "broken", genuine=False), faces)
    )
    assert "Broken: impostor pairs that cosine rejects" in broken
    assert "all 1" in broken
    assert re.search(r"Cosine\s+0\.250 ≤ 0\.500\s+✓ rejected", broken)
    assert re.search(r"log-DAO\s+−1\.500 &gt; −2\.000\s+✗ accepted", broken)


@pytest.mark.parametrize("n", [0, 1, 12, 13])
def test_at_most_twelve_cards_of_a_kind(n):
    section = pair_section(decisions([[0, 1]] * n), images(2))
    assert section.count('class="pair"') == min(n, 12)
    assert section.count("<section") == min(n, 1)


def test_large_faces_are_made_smaller():
    assert Image.open(io.BytesIO(jpeg(np.zeros((224, 448, 3), np.uint8)))).size == (112, 56)
    with pytest.raises(UserError, match=r"expected uint8 \[H, W, 3\]"):
        jpeg(np.zeros((4, 4, 3)))
    with pytest.raises(UserError, match="expected an image for each"):
        pair_section(decisions([[0, 2]]), images(2))


def test_run_report_has_everything(found, tmp_path):
    faces, labels, log_density, methods, everything = found
    names = tuple(f"person {i}" for i in range(50))
    domains = (labels % 2).astype(np.int32)
    data = FaceDataset(images(100), labels, names, domains=domains, domain_names=("day", "night"))
    evaluated = {"made_all_pairs": everything.evaluated._replace(notes=("Said aloud.",))}
    arguments = {
        "title": "A run",
        "settings": {"config": {"k": 10}, "commit": "abc"},
        "results": {"protocols": {"made_all_pairs": everything.evaluated.figures}},
        "evaluated": evaluated,
        "log_density": log_density,
        "dataset": data,
    }
    write_run_report(
        tmp_path / "full" / "report.html",
        **arguments,
        scores=everything.scores,
        metrics=[{"stage": "train", "step": i, "loss": 1.0} for i in range(3)],
        changed=changed_pairs(everything, faces, methods),
        sweeps={"k": {"values": [1, 2], "tar@far": {"0.01": [0.5, 0.6]}}},
    )
    assert sorted(os.listdir(tmp_path / "full")) == [
        "contact_sheet.png", "det-made_all_pairs.png", "log-f-by-domain.png", "report.html",
        "results.md", "results.tex", "roc-made_all_pairs.png", "scores-before-and-after.png",
        "sweeps-of-support-set-temperature-and-anchors.png", "training-the-backbone.png",
    ]  # fmt: skip
    page = (tmp_path / "full" / "report.html").read_text(encoding="utf-8")
    assert "Said aloud." in page
    assert "Said aloud." in (tmp_path / "full" / "results.md").read_text(encoding="utf-8")
    assert page.count('class="pair"') >= 4
    assert '<section id="picker" hidden>' in page
    assert len(page) < 3_000_000
    # A run may lack much of it.
    write_run_report(tmp_path / "bare" / "report.html", **arguments)
    assert "Pairs that" not in (tmp_path / "bare" / "report.html").read_text(encoding="utf-8")


def test_protocol_report_draws_what_its_variants_have(tmp_path):
    rates = np.geomspace(1e-3, 1, 5)
    curve = Band(rates, rates**0.1, rates**0.11, rates**0.09)
    evaluated = {
        "search": Evaluation({"cosine": {"tpir@fpir": {"0.1": 0.9}}}, {"cosine": curve}),
        "mega": Evaluation({"cosine": {"rank1@distractors": {"10": 0.9}}}, {}),
        "fold": Evaluation({"cosine": {"accuracy": 0.9}}, {}),
        "pairs": Evaluation({"cosine": {"tar@far": {"0.1": 0.9}}}, {"cosine": curve}),
    }
    write_protocol_report(
        tmp_path / "report.html",
        title="All",
        settings={},
        results={"protocols": {name: each.figures for name, each in evaluated.items()}},
        evaluated=evaluated,
        groups=DensitiesByGroup(np.array([-2.0, -2.5, np.nan]), np.array([0, 1, 1]), ("a", "b")),
    )
    assert sorted(os.listdir(tmp_path)) == [
        "det-pairs.png", "log-f-by-group.png", "rank-1-against-distractors-mega.png",
        "report.html", "results.md", "results.tex", "roc-pairs.png", "tpir-against-fpir-search.png",
    ]  # fmt: skip
