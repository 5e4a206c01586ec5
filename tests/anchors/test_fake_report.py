"""What a fake-db says of itself: the set's provenance, and the report."""

import json

import numpy as np
import pytest
import reference
from test_fake_anchors import MODEL, OPTIONS, PEOPLE, _mixture

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.fake import fake_anchors, provenance_line
from ida_jax.anchors.fake_rules import KEPT, NEAR_TRAINING
from ida_jax.common.files import save_tensors
from ida_jax.report.fake_report import fake_json, write_fake_report


def test_provenance_stays_with_the_set(tmp_path):
    training, candidates = _mixture()
    anchors, report = fake_anchors(candidates, MODEL, count=60, training=training, **OPTIONS)
    anchors.save(tmp_path / "A.safetensors")
    loaded = AnchorSet.load(tmp_path / "A.safetensors")
    assert loaded.provenance == report.provenance == anchors.provenance
    assert loaded.provenance["candidates"] == candidates.provenance
    assert loaded.provenance["flip"] is True
    assert loaded.provenance["drawn"] == len(report.verdicts)
    assert sum(loaded.provenance["dropped"].values()) + 60 == len(report.verdicts)
    assert loaded.provenance["training"]["faces"] == 3 * PEOPLE
    assert loaded.provenance["training"]["people"] == PEOPLE
    assert {"command", "commit", "versions"} <= set(loaded.provenance["run"])
    quantiles = loaded.provenance["nearest_training_cosine"]
    kept = report.nearest[report.numbers(KEPT)]
    assert quantiles["kept"]["50 %"] == pytest.approx(np.median(kept), abs=1e-6)
    assert quantiles["kept"]["100 %"] < loaded.provenance["thresholds"]["privacy_cosine"]
    assert quantiles["candidates"]["100 %"] == pytest.approx(np.nanmax(report.nearest), abs=1e-6)
    line = provenance_line(loaded.provenance)
    assert "generator fedcba9876543210, ψ = 0.7, seed 3" in line
    assert f"{quantiles['kept']['100 %']:.3f} at most" in line


def test_a_set_of_an_older_version_has_no_provenance(tmp_path):
    metadata = {"source": "real_db", "fingerprint": "", "k": 10, "tau": 1.0}
    embeddings = reference.unit((12, 4), 0).astype(np.float32)
    path = tmp_path / "A.safetensors"
    save_tensors(path, {"embeddings": embeddings}, kind="anchor_set", metadata=metadata)
    assert AnchorSet.load(path).provenance == {}


def test_the_report_holds_the_numbers_and_no_training_image(tmp_path):
    training, candidates = _mixture()
    _, report = fake_anchors(candidates, MODEL, count=80, training=training, **OPTIONS)
    page = tmp_path / "A.report.html"
    write_fake_report(page, report, candidates)
    written = json.loads((tmp_path / "A.report.json").read_text())
    assert len(written["anchors"]) == 80
    assert written["near_training"] == report.numbers(NEAR_TRAINING).tolist()
    histogram = written["nearest_training_histogram"]
    assert sum(histogram["kept"]) == 80
    assert sum(histogram["candidates"]) == np.isfinite(report.nearest).sum()
    assert sum(histogram["strangers"]) == report.strangers.size == 3 * PEOPLE
    text = page.read_text()
    assert f"<td>{report.provenance['drawn']}</td><td>100.0 %</td>" in text
    assert "The anchors nearest to a training face" in text
    assert f"The {report.numbers(NEAR_TRAINING).size:,} that were dropped as too near" in text
    assert text.count("data:image/jpeg") == 4  # first, nearest, implausible, near-duplicates
    assert text.count("data:image/png") == 1
    assert "http" not in text


def test_the_report_without_training_faces(tmp_path):
    _, candidates = _mixture()
    _, report = fake_anchors(candidates, MODEL, count=60, **OPTIONS)
    write_fake_report(tmp_path / "A.report.html", report, candidates)
    text = (tmp_path / "A.report.html").read_text()
    assert "Not checked: there were no training faces" in text
    assert "data:image/png" not in text
    assert not np.any(fake_json(report, candidates)["nearest_training_histogram"]["candidates"])
