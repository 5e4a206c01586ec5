"""ida-jax check_labels: candidates for one person under two names."""

import csv
import re

import cv2
import numpy as np
import pytest

from ida_jax import check_labels
from ida_jax.anchors import one_person
from ida_jax.anchors.one_person import impostor_threshold, one_person_candidates
from ida_jax.common.errors import UserError
from ida_jax.tables.identity_pairs import read_identity_pairs

D = 16


def _faces(seed=0, people=30, images=3):
    """Unit rows in which person 1 is person 0, and one image of person 3 is of person 2."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(people, D)), images, axis=0)
    centres[images : 2 * images] = centres[0]
    centres[3 * images] = centres[2 * images]
    faces = centres + 0.25 * rng.normal(size=centres.shape)
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    return faces.astype(np.float32), np.repeat(np.arange(people), images)


@pytest.mark.parametrize("far", [1.0, 0.3, 0.01, 1e-9])
@pytest.mark.parametrize("rows", [1, 7, 512])
def test_threshold_is_the_fars(monkeypatch, far, rows):
    monkeypatch.setattr(one_person, "_ROWS", rows)
    faces, labels = _faces()
    cosines = (faces @ faces.T)[np.triu_indices(len(faces), 1)]
    apart = (labels[:, None] != labels)[np.triu_indices(len(faces), 1)]
    ranked = np.sort(cosines[apart])[::-1]
    found = impostor_threshold(faces, labels, far=far)
    # Each pair is met from both sides.
    rank = (max(1, int(far * 2 * ranked.size)) + 1) // 2
    assert found == pytest.approx(ranked[rank - 1], abs=1e-6)
    # Of many faces every so many-th row stands for all.
    monkeypatch.setattr(one_person, "_MOST_COSINES", 90 * 90 // 3)
    some = impostor_threshold(faces, labels, far=0.05)
    near = np.mean(ranked >= some)
    assert 0.02 < near < 0.1
    with pytest.raises(UserError, match="90 faces are of one identity"):
        impostor_threshold(faces, 0 * labels, far=far)


def _slowly(models, labels, thresholds):
    """{identities: (pairs, between, highest cosine)} in the order of the best pair's worse rank."""
    n = len(labels)
    listed = [
        (i, j) for i in range(n) for j in range(i + 1, n)
        if labels[i] != labels[j] and min(labels[i], labels[j]) >= 0
        and all(f[i] @ f[j] >= t for f, t in zip(models, thresholds, strict=True))
    ]  # fmt: skip
    cosines = np.array([[f[i] @ f[j] for i, j in listed] for f in models])
    worse = np.argsort(np.argsort(-cosines, axis=1), axis=1).max(axis=0)
    found = {}
    for place in np.argsort(worse, kind="stable"):
        key = tuple(sorted(labels[list(listed[place])].tolist()))
        found.setdefault(key, [0, cosines[0, place]])[0] += 1
    return found


def test_candidates_against_slow_loops():
    faces, labels = _faces()
    other, _ = _faces()
    other = other + 0.05 * np.random.default_rng(5).normal(size=other.shape).astype(np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    labels[-4:] = -1
    order = np.random.default_rng(1).permutation(len(labels))
    faces, other, labels = faces[order], other[order], labels[order]
    for models in ([faces], [faces, other]):
        thresholds = [impostor_threshold(m, labels, far=0.02) for m in models]
        found = one_person_candidates(models, labels, thresholds)
        slow = _slowly(models, labels, thresholds)
        assert {c.identities: c.pairs for c in found} == {k: v[0] for k, v in slow.items()}
        assert {found[i].identities for i in range(2)} == {(0, 1), (2, 3)}
        for c in found:
            assert tuple(labels[list(c.rows)]) == c.identities
            assert len(c.cosines) == len(models)
            assert c.cosines[0] == pytest.approx(faces[c.rows[0]] @ faces[c.rows[1]], abs=1e-6)
            sides = [faces[labels == label] for label in c.identities]
            assert c.between == pytest.approx(np.mean(sides[0] @ sides[1].T), abs=1e-6)
    by_identities = {c.identities: c for c in found}
    # The image of another under the name of person 3 is told, and no image of one person twice.
    odd = by_identities[2, 3].odd
    assert np.flatnonzero(order == 9).tolist() == [odd]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    faces, labels = _faces()
    names = [f"#p{label:02}/{i}.jpg" for i, label in enumerate(labels)]
    np.save(tmp_path / "E.npy", 7 * faces)
    (tmp_path / "E.names.txt").write_text("\n".join(names))
    for i, name in enumerate(names):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True, parents=True)
        cv2.imwrite(str(tmp_path / "images" / name), np.full((20, 20, 3), 2 * i, np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_list_to_judge_and_its_page(folder, capsys):
    check_labels.main(["--embeddings=E.npy", "--images=images", "--output=out", "--far=0.01"])
    rows = _rows(folder / "out" / "candidates.csv")
    assert {(r["identity_1"], r["identity_2"]) for r in rows[:2]} == {
        ("#p00", "#p01"), ("#p02", "#p03")
    }  # fmt: skip
    assert all(r["decision"] == "" for r in rows)
    (odd,) = (r["odd_image"] for r in rows if r["identity_2"] == "#p03")
    assert odd == "#p03/9.jpg"
    page = (folder / "out" / "candidates.html").read_text()
    assert page.count('<figure class="pair">') == len(rows)
    # Two large images per pair, and the others of both identities below.
    assert page.count("data:image/jpeg;base64,") == 6 * len(rows)
    assert "Nearer to the other name" in page
    assert "  0.9" in capsys.readouterr().out
    # Nothing is judged yet; once it is, the file is a list to leave out.
    with pytest.raises(UserError, match="no pair of identities to leave out"):
        read_identity_pairs(folder / "out" / "candidates.csv")
    text = (folder / "out" / "candidates.csv").read_text().splitlines()
    judged = [text[0], *(line.replace('"",""', '"same","by name"') for line in text[1:2])]
    (folder / "judged.csv").write_text("\n".join(judged))
    listed = read_identity_pairs(folder / "judged.csv")
    assert listed.pairs == ((rows[0]["identity_1"], rows[0]["identity_2"]),)
    with pytest.raises(UserError, match="perhaps judged already"):
        check_labels.main(["--embeddings=E.npy", "--output=out"])


@pytest.mark.parametrize(("most", "printed", "more"), [(3, 3, None), (5, 5, None), (8, 5, 3)])
def test_a_list_cut_short_says_what_is_not_printed(
    folder, capsys, monkeypatch, most, printed, more
):
    monkeypatch.setattr(check_labels, "_PRINTED", 5)
    check_labels.main(["--embeddings=E.npy", "--output=out", "--far=0.01", f"--most={most}"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  0.") for line in lines) == printed
    assert [line for line in lines if "more in the list" in line] == (
        [] if more is None else [f"  … {more} more in the list"]
    )
    found = int(re.search(r"(\d+) pairs of identities", lines[0])[1])
    assert f"{found - most} less similar pairs were left out (--most)" in lines


def test_labels_and_a_second_model(folder, capsys):
    _, labels = _faces()
    np.save("l.npy", labels - 1)
    second = np.load("E.npy")
    second[:3] = second[[30, 40, 50]]  # it does not think that persons 0 and 1 are one
    np.save("E2.npy", second)
    given = ["--embeddings=E.npy", "--labels=l.npy", "--far=0.0007"]
    check_labels.main([*given, "--output=one"])
    check_labels.main([*given, "--second=E2.npy", "--output=two"])
    assert not (folder / "one" / "candidates.html").exists()
    one, two = (_rows(folder / name / "candidates.csv") for name in ("one", "two"))
    # Person 0 is −1 here, unknown.
    assert [(r["identity_1"], r["identity_2"]) for r in one] == [("1", "2")]
    assert [(r["identity_1"], r["identity_2"]) for r in two] == [("1", "2")]
    assert two[0]["cosine_2"] == two[0]["cosine"]
    for name, flags in (("three", []), ("four", ["--second=E2.npy"])):
        check_labels.main(["--embeddings=E.npy", *flags, f"--output={name}", "--far=0.01"])
        names = {r["identity_1"] for r in _rows(folder / name / "candidates.csv")}
        assert ("#p00" in names) == (not flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--far=0"], "--far=0: expected a rate above 0"),
        (["--far=0.5"], "at most 0.01"),
        (["--most=0"], "--most=0"),
        (["--labels=short.npy"], "5 labels for 90 embeddings"),
        (["--labels=one.npy"], "90 faces are of one identity"),
        (["--second=short.npy"], "expected"),
        (["--second=few.npy"], "few.npy has 5 rows and E.npy 90"),
        (["--images=some"], "no image in some"),
        (["--names=flat.txt"], "not all PERSON/IMAGE"),
        (["--embeddings=few.npy"], "few.npy has no names"),
        (["--embeddings=nothing.npy"], "no embeddings at"),
    ],
)
def test_mistakes_leave_nothing_behind(folder, flags, message):
    np.save("short.npy", np.arange(5))
    np.save("one.npy", np.zeros(90, int))
    np.save("few.npy", np.load("E.npy")[:5])
    (folder / "flat.txt").write_text("\n".join(f"face{i}" for i in range(90)))
    (folder / "some").mkdir()
    cv2.imwrite("some/1.jpg", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(UserError, match=message) as caught:
        check_labels.main(["--embeddings=E.npy", "--output=out", *flags])
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()
