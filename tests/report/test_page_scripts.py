"""The page's scripts, in a real browser: the picker of a threshold and the pairs to look at."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.common.files import json_text
from ida_jax.metrics.decisions import Failure, Failures
from ida_jax.metrics.groups import FaceGroups, named_cells
from ida_jax.protocols.group_figures import with_listed_groups
from ida_jax.protocols.verification import evaluate_labelled_pairs
from ida_jax.report import failures, picker
from ida_jax.report.report_page import write_report
from ida_jax.runs.workdir import figures_and_notes

HOSTILE = '</script><script>document.title="bad"</script>"\'\x1b[31m&' + "x" * 500
FARS = (1e-2, 1e-3)
GROUPS = ("<b>even", "odd")
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")


@pytest.fixture(scope="module")
def evaluated():
    """50 people; the hostile method is the better one. And 144 pairs to look at."""
    rng = np.random.default_rng(0)
    same = np.repeat([True, False], [301, 12_003])
    first = rng.integers(0, 50, same.size)
    second = np.where(same, first, (first + rng.integers(1, 50, same.size)) % 50)
    cosine = np.where(same, 2.0, 0.0) + rng.normal(size=same.size)
    scores = {"cosine": cosine, HOSTILE: 3 * same + rng.normal(size=same.size)}
    people = np.stack([first, second], axis=1)
    evaluated = evaluate_labelled_pairs(scores, same, people, fars=FARS, resamples=20)
    groups = FaceGroups(np.arange(50) % 2, named_cells(GROUPS))
    evaluated = with_listed_groups(
        evaluated, scores, same, people, groups.listed(np.stack([first, second], axis=1)),
        group_thresholds=False, fars=FARS, resamples=0, seed=0,
    )  # fmt: skip
    listed = [
        Failure(
            method, kind, genuine,
            tuple(f"{who}/{method[:2]}{kind}{genuine}{place}" for who in (HOSTILE, "b")),
            0.5 - place / 9, None if method == "cosine" else (-2.0, -float(place)),
            float("nan") if place == 11 else 1.5 - place / 7,
            1 / (1 + place) if method == HOSTILE else None, GROUPS[place % 2],
        )
        for method in ("cosine", HOSTILE)
        for kind, genuine in failures._KINDS
        for place in range(12)
    ]  # fmt: skip
    return evaluated._replace(failures=Failures(tuple(listed), "Both at FAR 0.01."))


def image(name):
    if name == "b/</worstFalse3":
        raise UserError("damaged")
    return np.full((90, 70, 3), len(name) % 256, np.uint8)


@pytest.fixture(scope="module")
def report(tmp_path_factory, evaluated):
    path = tmp_path_factory.mktemp("picker") / "report.html"
    both = {"pairs": evaluated, HOSTILE: evaluated}
    write_report(
        path, title="T", settings={}, results={}, figures={},
        picker=picker.picker_section(both, method=HOSTILE),
        failures=failures.failure_section(both, image, method=HOSTILE),
    )  # fmt: skip
    return path


def test_no_data_no_section(evaluated):
    assert picker.picker_section({}) == failures.failure_section({}) == ""
    assert picker.picker_section({"search": evaluated._replace(thresholds={})}) == ""
    assert failures.failure_section({"a": evaluated._replace(failures=Failures())}) == ""


def test_scripts_are_short():
    scripts = Path(picker.__file__).parent.glob("*.js")
    assert sum(len(path.read_text().splitlines()) for path in scripts) <= 300


def test_names_end_no_element(report):
    page = report.read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 5
    assert "\x1b" not in page
    assert "x" * 100 not in page
    data = json.loads(re.search(r'id="thresholds">(.*?)</script>', page, re.DOTALL)[1])
    assert len(data["variants"][1]["name"]) == 80


def test_first_pairs_and_pictures_without_script(report, evaluated):
    page = report.read_text(encoding="utf-8")
    section = re.search(r'<section id="failures">(.*?)</section>', page, re.DOTALL)[1]
    rows = re.findall("<tr>.*?</tr>", section)[1:]
    assert len(rows) == 6 * 5
    assert '<div class="controls" hidden>' in section
    assert "<td>✗ broken, genuine</td><td>&lt;b&gt;even</td><td>−0.6111</td>" in section
    assert "Both at FAR 0.01." in section
    pictures = set(re.findall(r"data:image/jpeg;base64,[\w+/=]+", page))
    data = json.loads(re.search(r'id="pairs">(.*?)</script>', page, re.DOTALL)[1])
    count = int(re.search(r"Names and the (\d+) pictures", section)[1])
    assert count == 199  # a pair more would make 201: one picture is damaged
    assert len(data["images"]) + len(set(re.findall(r'data-face="(\d+)"', section))) == count
    assert all(src in pictures for src in data["images"].values())
    assert "personal data" in section
    assert "1 image could not be read" in section
    assert "jpeg" not in failures.failure_section({"pairs": evaluated})


_ACTS = """<script>
addEventListener("DOMContentLoaded", () => {
const at = (id) => document.getElementById(id), said = {};
const change = (box, value) => { box.value = value; box.dispatchEvent(new Event("change")); };
const input = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("input")); };
const press = (key) => at("picker-score").dispatchEvent(new KeyboardEvent("keydown", { key }));
const entry = () => JSON.parse(at("picker-row").textContent);
const threshold = () => Object.values(entry().threshold)[0].threshold;
const go = (hash) => { location.hash = hash; dispatchEvent(new Event("hashchange")); };
const texts = (row) => [...row.cells].map((cell) => [cell.dataset.name ?? cell.dataset.group ?? "",
  cell.firstChild.textContent, cell.querySelector("small")?.textContent ?? ""]);
for (const hash of HASHES) {
  go(hash);
  said[hash] = { entry: entry(),
    rows: [...at("picker-rows").rows].map((row) => [row.dataset.method, texts(row)]),
    groups: [...at("picker-groups").tBodies[0].rows].map((row) => texts(row).slice(1)) };
}
go("variant=pairs"); const steps = said.steps = [];
input("picker-far", "0.01"); steps.push(threshold());
input("picker-far", "two");
steps.push(threshold(), at("picker-far").getAttribute("aria-invalid"));
input("picker-score", at("picker-score").max); steps.push(threshold());
press("ArrowRight"); steps.push(threshold());
press("ArrowLeft"); steps.push(threshold());
change(at("picker-method"), 0); steps.push(threshold());
said.start = at("failures-count").textContent; said.pairs = [];
const boxes = ["method", "kind", "group"].map((name) => at(`failures-${name}`));
const order = at("failures-order");
for (const method of boxes[0].options) for (const kind of boxes[1].options)
  for (const group of boxes[2].options) {
    [method, kind, group].forEach((option, i) => change(boxes[i], option.value));
    const rows = [...document.querySelectorAll("#failures tbody tr")];
    said.pairs.push([at("failures-count").textContent, order.value, rows.map((row) => [
      [...row.querySelectorAll("div")].map((name) => name.textContent),
      [...row.cells].slice(1).map((cell) => cell.textContent)])]);
  }
said.pictures = [...document.querySelectorAll("#failures img")].every((img) => img.src.length > 99);
said.shown = ["picker", "failures"].every((id) => !at(id).hidden)
  && !document.querySelector("#failures .controls").hidden;
document.body.insertAdjacentHTML("beforeend", "<i id=said></i>");
at("said").textContent = JSON.stringify(said);
});
</script></main>"""
_HASHES = ["far=0.01", "far=0.001"]


@pytest.fixture(scope="module")
def said(report, evaluated, tmp_path_factory):
    """What the page shows, one step after the other, in Chromium."""
    folder = tmp_path_factory.mktemp("browser")
    threshold = evaluated.figures["cosine"]["threshold@far"]["0.01"]
    hashes = [*_HASHES, f"method=cosine&score={threshold!r}"]
    acts = _ACTS.replace("HASHES", json.dumps(hashes))
    acted = folder / "acted.html"
    acted.write_text(report.read_text(encoding="utf-8").replace("</main>", acts), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-sync", "--no-first-run", f"--user-data-dir={folder}"]  # fmt: skip
    shown = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", acted.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert "<title>T</title>" in shown
    return json.loads(html.unescape(re.search(r'<i id="said">(.*?)</i>', shown)[1]))


def check_row(cells, figures, key):
    shown = {name: (text.replace("−", "-"), below) for name, text, below in cells}
    far, tar = figures["realised_far"][key], figures["tar@far"][key]
    low, high = figures["tar_interval@far"][key]
    count = figures["false_accepts"][key]
    few = " †" if count < 10 else ""
    assert shown["false_accepts"] == (f"{count:,}{few}", f"of {figures['impostor']:,}")
    assert shown["tar"] == (f"{100 * tar:.2f} %", f"{100 * low:.2f}–{100 * high:.2f}")
    assert float(shown["far"][0]) == pytest.approx(far, rel=0.006)
    assert float(shown["threshold"][0]) == pytest.approx(figures["threshold@far"][key], abs=6e-5)


@needs_browser
@pytest.mark.parametrize("key", ["0.01", "0.001"])
def test_a_far_gives_the_figures_of_results_json(said, evaluated, key):
    shown, figures = said[f"far={key}"], evaluated.figures
    (own, cells), (base, base_cells) = shown["rows"]
    assert own.startswith("</script><script>")
    assert base == "cosine"
    check_row(cells, figures[HOSTILE], key)
    check_row(base_cells, figures["cosine"], key)
    assert shown["entry"]["far"] == key
    entry = shown["entry"]["threshold"][key]
    assert entry["threshold"] == figures[HOSTILE]["threshold@far"][key]
    assert entry["false_accepts"] == figures[HOSTILE]["false_accepts"][key]
    assert len(shown["groups"]) == 3
    for row, name in zip(shown["groups"], figures["cosine"]["groups"], strict=True):
        for (group, _, below), method in zip(row, (HOSTILE, "cosine"), strict=True):
            of = figures[method]["groups"][name]
            count = of["false_accepts"][key]
            assert group == name
            assert below == f"{count:,}{' †' * (count < 10)} of {of['impostor']:,}"


@needs_browser
def test_slider_box_and_keys(said, evaluated):
    figures = evaluated.figures["cosine"]
    threshold = figures["threshold@far"]["0.01"]
    shown = said[f"method=cosine&score={threshold!r}"]
    ((method, cells),) = shown["rows"]
    assert method == "cosine"
    check_row(cells, figures, "0.01")
    entry = shown["entry"]
    assert entry["threshold"][entry["far"]]["threshold"] == threshold
    own, cosine = (evaluated.thresholds[name].threshold for name in (HOSTILE, "cosine"))
    wanted = evaluated.figures[HOSTILE]["threshold@far"]["0.01"]
    # A FAR that is none changes nothing; no key goes beyond the strictest threshold.
    assert said["steps"] == [wanted, wanted, "true", own[0], own[0], own[1], cosine[1]]


@needs_browser
def test_filters_show_the_pairs_of_results_json(said, evaluated):
    results = json.loads(json_text(figures_and_notes({"pairs": evaluated})))
    pairs = results["failures"]["pairs"]["pairs"]
    shown = iter(said["pairs"])

    def number(value, text="{:.4f}"):
        return "–" if value is None else text.format(value).replace("-", "−")

    for method in ("cosine", HOSTILE):
        for (kind, genuine), (title, _) in failures._KINDS.items():
            for group in (None, *GROUPS):
                expected = [
                    pair for pair in pairs
                    if (pair["method"], pair["kind"], pair["genuine"]) == (method, kind, genuine)
                    and group in (None, pair["group"])
                ]  # fmt: skip
                expected.sort(key=lambda p: -np.inf if p["score"] is None else p["score"])
                count, order, rows = next(shown)
                assert order == ("-1" if genuine else "1")
                if not genuine:
                    expected.reverse()
                assert count == f"{len(expected)} pairs"
                for (names, cells), pair in zip(rows, expected, strict=True):
                    assert names[0].startswith("</script><script>")
                    assert names[1] == pair["names"][1]
                    densities = pair["log_density"] or (None, None)
                    numbers = map(number, (pair["cosine"], *densities, pair["score"]))
                    chance = pair["probability"]
                    assert cells == [
                        title, pair["group"], *numbers,
                        number(chance and 100 * chance, "{:.2f} %"),
                    ]  # fmt: skip
    assert next(shown, None) is None
    assert said["start"] == "12 pairs"
    assert said["pictures"]
    assert said["shown"]
