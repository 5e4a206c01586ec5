import base64
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import Band
from ida_jax.report.density_plots import histogram_figure, log_density_figure
from ida_jax.report.rate_plots import roc_figure
from ida_jax.report.report_page import write_report
from ida_jax.report.training_plots import training_figure

BOTH = {
    "false_accepts": {"1e-05": 134, "0.001": 13484},
    "genuine": 7070,
    "impostor": 13484345,
}
RESULTS = {
    "model": {"fingerprint": "sha256:ab<cd"},
    "protocols": {
        "LFW": {
            "ida_r": BOTH
            | {"accuracy": 0.9903, "accuracy_deviation": 0.0045, "eer": 0.00612}
            | {"tar@far": {"1e-05": 0.94088, "0.001": 0.98883}}
            | {"tar_interval@far": {"1e-05": [0.93, 0.9512]}}
            | {"tar_gain_interval@far": {"1e-05": [0.001, 0.012]}},
            "cosine": BOTH
            | {"accuracy": 0.9873, "accuracy_deviation": 0.0051, "eer": 0.00598}
            | {"tar@far": {"1e-05": 0.93465, "0.001": 0.98883}},
            "my<method>": {"tar@far": {"1e-05": float("nan")}, "eer": None},
        },
        "Rendered": {"cosine": {"eer": 0.25}, "ida_l": {"eer": 0.2}},
    },
    "notes": {"LFW": ("few <said>",)},
    "anchors": {"source": "real_db", "size": 50000},
    "ssr": {"r2": 0.712, "rank_correlation": 0.8534},
}


@pytest.fixture(scope="module")
def figures():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(0.6, 0.1, 401), rng.normal(0, 0.1, 5003)
    scores = {"cosine": (genuine, impostor), "ida_r": (genuine - 2.4, impostor - 2.45)}
    rates = np.geomspace(1e-4, 1, 9)
    none = np.full(9, np.nan)
    curves = {method: Band(rates, rates**0.1, none, none) for method in scores}
    domains = np.repeat([0, 2], 50)
    return {
        "ROC": roc_figure(curves),
        "Scores & thresholds": histogram_figure(scores),
        "log_density": log_density_figure(
            rng.normal(-2.5, 0.1, 100) - 0.3 * (domains == 2), domains, ["plain", "none", "dim"]
        ),
        "Training <loss>": training_figure(
            [{"step": i, "loss": 9.0 / (i + 1), "learning_rate": 0.1 ** (1 + i // 50)}
             for i in range(100)]
        ),
    }  # fmt: skip


class Page(HTMLParser):
    """What a page refers to and what it says."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.text, self.strong, self._open = [], [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._open.append(tag)
        self.references += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data
        if "strong" in self._open:
            self.strong.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory, figures):
    folder = tmp_path_factory.mktemp("report") / "made" / "here"
    sheet = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    write_report(
        folder / "report.html",
        title="Faces <script>alert(1)</script>",
        results=RESULTS,
        figures=figures,
        contact_sheet=sheet,
        settings={
            "margin": {"name": "arc & cos", "m": 0.5},
            "note": "<i>no</i>",
            "seed": 3,
            "command": "python -m x <y>",
            "versions": {"jax": "0.10.2", "numpy": "2.4"},
        },
        pairs="<h2>Pairs here</h2>",
    )
    return folder, sheet


def test_page_is_self_contained(report, figures):
    folder, _ = report
    source = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", source)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in source
    assert "@import" not in source
    assert len(page.references) == len(figures) + 1
    for reference in page.references:
        kind, data = reference.split(",", 1)
        assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
        Image.open(io.BytesIO(base64.b64decode(data))).verify()


def test_pictures_lie_beside_the_page(report):
    folder, sheet = report
    names = ["log_density", "roc", "scores-thresholds", "training-loss"]
    expected = sorted(["contact_sheet.png", "report.html", *(f"{name}.png" for name in names)])
    assert sorted(os.listdir(folder)) == expected
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    inside = [base64.b64decode(reference.split(",")[1]) for reference in page.references]
    for name in names:
        content = (folder / f"{name}.png").read_bytes()
        assert content in inside
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert pixels.shape[1] >= 900
        assert (pixels[0, 0] == 255).all()
        assert pixels.std() > 5
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "contact_sheet.png")), sheet)
    # The page's own copy is a JPEG of the same faces.
    shown = np.asarray(Image.open(io.BytesIO(inside[-1])))
    assert shown.shape == sheet.shape


def test_page_says_everything(report, figures):
    page = Page((report[0] / "report.html").read_text(encoding="utf-8"))
    for text in ["Faces <script>alert(1)</script>", "sha256:ab<cd", "my<method>", "IDA-L", "LFW"]:
        assert text in page.text
    for caption, figure in figures.items():
        assert caption in page.text
        assert figure.get_label()
        assert figure.get_label() in page.text
    for text in ["margin.name", "arc & cos", "<i>no</i>", "DAO(f₁, f₂)", "R² 0.712"]:
        assert text in page.text
    for text in ["few <said>", "50,000", "python -m x <y>", "jax 0.10.2, numpy 2.4", "Pairs here"]:
        assert text in page.text
    for text in ["134 false accepts", "93.00–95.12", "▲ above cosine"]:
        assert text in page.text
    assert "▼" not in page.text
    assert page.text.count("▲") == 2  # one cell, and the legend
    assert "TPIR" not in page.text
    assert page.strong == ["0.60", "99.03 ± 0.45", "94.09", "20.00"]
    assert "details" in page.tags


def test_a_bare_report_is_still_a_page(tmp_path):
    write_report(
        tmp_path / "r.html", title="T", results={}, figures={}, contact_sheet=None, settings={}
    )
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.text.split() == ["T", "T"]
    assert os.listdir(tmp_path) == ["r.html"]


def write(folder: Path, **changes):
    options = {"title": "T", "results": {}, "figures": {}, "contact_sheet": None, "settings": {}}
    write_report(folder / "r.html", **(options | changes))


def test_a_failure_leaves_the_old_page(tmp_path):
    write(tmp_path, title="old")
    before = (tmp_path / "r.html").read_bytes()
    broken = Figure()
    broken.text(0.5, 0.5, "$\\nosuchsymbol$")
    with pytest.raises(ValueError, match="nosuchsymbol"):
        write(tmp_path, title="new", figures={"good": Figure(), "broken": broken})
    assert (tmp_path / "r.html").read_bytes() == before
    assert os.listdir(tmp_path) == ["r.html"]


def test_figures_that_share_a_file_are_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="same PNG twice"):
        write(tmp_path, figures={"ROC: LFW": Figure(), "roc lfw": Figure()})
    with pytest.raises(UserError, match="same PNG twice"):
        write(tmp_path, figures={"contact_sheet": Figure()})
    with pytest.raises(UserError, match="no letter or digit"):
        write(tmp_path, figures={"…": Figure()})
    with pytest.raises(UserError, match=r"uint8 \[H, W, 3\]"):
        write(tmp_path, contact_sheet=np.zeros((4, 4, 3)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="writable folder"):
        write(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_drawing_leaves_no_state(figures):
    before = matplotlib.rcParams.copy()
    curve = Band(*(np.array(ends) for ends in ([0.1, 1], [0.5, 1], [0.4, 1], [0.6, 1])))
    roc_figure({"cosine": curve})
    assert matplotlib.rcParams == before
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []
