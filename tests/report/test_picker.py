import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from ida_jax.metrics.decisions import Failure
from ida_jax.metrics.groups import FaceGroups, named_cells
from ida_jax.protocols.group_figures import with_listed_groups
from ida_jax.protocols.verification import evaluate_labelled_pairs
from ida_jax.report.failures import failure_section
from ida_jax.report.page import write_report
from ida_jax.report.picker import picker_section

HOSTILE = '</script><script>document.title="bad"</script>"\'\x1b[31m&' + "x" * 500
FARS = (1e-2, 1e-3)
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")


@pytest.fixture(scope="module")
def evaluated():
    """50 people; the hostile method is the better one."""
    rng = np.random.default_rng(0)
    same = np.repeat([True, False], [301, 12_003])
    first = rng.integers(0, 50, same.size)
    second = np.where(same, first, (first + rng.integers(1, 50, same.size)) % 50)
    cosine = np.where(same, 2.0, 0.0) + rng.normal(size=same.size)
    scores = {"cosine": cosine, HOSTILE: 3 * same + rng.normal(size=same.size)}
    people = np.stack([first, second], axis=1)
    evaluated = evaluate_labelled_pairs(scores, same, people, fars=FARS, resamples=20)
    groups = FaceGroups(np.arange(50) % 2, named_cells(("<b>even", "odd")))
    return with_listed_groups(
        evaluated, scores, same, people, groups.listed(np.stack([first, second], axis=1)),
        group_thresholds=False, fars=FARS, resamples=0, seed=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory, evaluated):
    path = tmp_path_factory.mktemp("picker") / "report.html"
    picker = picker_section({"pairs": evaluated, HOSTILE: evaluated}, method=HOSTILE)
    listed = [
        Failure(method, "worst", False, (HOSTILE, "b"), 0.5, None, 0.5)
        for method in (HOSTILE, "cosine")
    ]
    failures = failure_section({"pairs": evaluated._replace(failures=tuple(listed))})
    write_report(
        path, title="T", settings={}, results={}, figures={}, picker=picker, failures=failures
    )
    return path


def test_no_thresholds_no_section(evaluated):
    assert picker_section({}) == ""
    assert picker_section({"search": evaluated._replace(thresholds={})}) == ""


def test_names_end_no_element(report):
    page = report.read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert "\x1b" not in page
    data = json.loads(re.search(r'id="thresholds">(.*?)</script>', page, re.DOTALL)[1])
    assert len(data["variants"][1]["name"]) == 80
    assert page.index("<section id=") < page.index("hidden>") < page.index("Choose a threshold")


def opened(report, folder, fragment):
    """{method: {column: text}} of the table, and the whole page, as Chromium shows them."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-sync", "--no-first-run", f"--user-data-dir={folder}"]  # fmt: skip
    shown = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", f"{report.as_uri()}#{fragment}"],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    rows = {}
    for method, row in re.findall(r'<tr data-method="(.*?)">(.*?)</tr>', shown):
        cells = re.findall(r'data-name="(\w+)">(.*?)</td>', row)
        texts = {
            name: re.sub(r"<small>", " ", cell).replace("</small>", "") for name, cell in cells
        }
        rows[html.unescape(method)] = texts
    row = html.unescape(re.search(r'id="picker-row".*?>(.*?)</pre>', shown)[1])
    return rows, json.loads(row), shown


def check_row(shown, figures, key):
    far, tar = figures["realised_far"][key], figures["tar@far"][key]
    low, high = figures["tar_interval@far"][key]
    counts = figures["false_accepts"][key], figures["impostor"]
    few = " †" if counts[0] < 10 else ""
    assert shown["false_accepts"] == f"{counts[0]:,}{few} of {counts[1]:,}"
    assert shown["tar"] == f"{100 * tar:.2f} % {100 * low:.2f}–{100 * high:.2f}"
    assert float(shown["far"].replace("−", "-")) == pytest.approx(far, rel=0.006)
    threshold = shown["threshold"].split()[0].replace("−", "-")
    assert float(threshold) == pytest.approx(figures["threshold@far"][key], abs=6e-5)


@needs_browser
@pytest.mark.parametrize("key", ["0.01", "0.001"])
def test_a_far_gives_the_figures_of_results_json(report, evaluated, tmp_path, key):
    rows, row, shown = opened(report, tmp_path, f"far={key}")
    cells = re.findall(r'data-group="(.*?)">.*?<small>(.*?) of (.*?)<', shown)
    expected = [
        (html.escape(name), own["groups"][name])
        for name in evaluated.figures["cosine"]["groups"]
        for own in (evaluated.figures[HOSTILE], evaluated.figures["cosine"])
    ]
    assert len(cells) == len(expected) == 6
    for (name, wrong, impostor), (group, figures) in zip(cells, expected, strict=True):
        assert name in (group, html.unescape(group))
        count = figures["false_accepts"][key]
        assert wrong == f"{count:,}" + " †" * (count < 10)
        assert impostor == f"{figures['impostor']:,}"
    assert "hidden" not in re.search(r'<section id="picker".*?>', shown)[0]
    assert "<title>bad" not in shown
    own, base = rows.values()
    check_row(own, evaluated.figures[HOSTILE], key)
    check_row(base, evaluated.figures["cosine"], key)
    assert row["far"] == key
    entry = row["threshold"][key]
    assert entry["threshold"] == evaluated.figures[HOSTILE]["threshold@far"][key]
    assert entry["false_accepts"] == evaluated.figures[HOSTILE]["false_accepts"][key]


@needs_browser
def test_the_slider_gives_the_figures_of_results_json(report, evaluated, tmp_path):
    figures = evaluated.figures["cosine"]
    threshold = figures["threshold@far"]["0.01"]
    rows, row, _ = opened(report, tmp_path, f"method=cosine&score={threshold!r}")
    assert list(rows) == ["cosine"]
    check_row(rows["cosine"], figures, "0.01")
    assert row["threshold"][row["far"]]["threshold"] == threshold


_ACTS = """<script>
addEventListener("DOMContentLoaded", () => {
const at = (id) => document.getElementById("picker-" + id), said = [];
const threshold = () => Object.values(JSON.parse(at("row").textContent).threshold)[0].threshold;
const input = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("input")); };
const press = (key) => at("score").dispatchEvent(new KeyboardEvent("keydown", { key }));
input("far", "0.01"); said.push(threshold());
input("far", "two"); said.push(threshold(), at("far").getAttribute("aria-invalid"));
input("score", at("score").max); said.push(threshold());
press("ArrowRight"); said.push(threshold());
press("ArrowLeft"); said.push(threshold());
at("method").value = 0; at("method").dispatchEvent(new Event("change")); said.push(threshold());
const box = document.getElementById("failures-method");
box.value = 1; box.dispatchEvent(new Event("change"));
said.push([...document.querySelectorAll("#failures details")].map((list) => list.hidden));
at("row").insertAdjacentHTML("afterend", "<i id=said></i>");
document.getElementById("said").textContent = JSON.stringify(said);
});
</script></main>"""


@needs_browser
def test_slider_box_and_keys(report, evaluated, tmp_path):
    page = report.read_text(encoding="utf-8").replace("</main>", _ACTS)
    acted = tmp_path / "acted.html"
    acted.write_text(page, encoding="utf-8")
    _, _, shown = opened(acted, tmp_path / "profile", "variant=pairs")
    said = json.loads(html.unescape(re.search(r'<i id="said">(.*?)</i>', shown)[1]))
    own, cosine = (evaluated.thresholds[name].threshold for name in (HOSTILE, "cosine"))
    wanted = evaluated.figures[HOSTILE]["threshold@far"]["0.01"]
    # A FAR that is none changes nothing; no key goes beyond the strictest threshold.
    assert said == [wanted, wanted, "true", own[0], own[0], own[1], cosine[1], [False, True]]
