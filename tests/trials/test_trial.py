"""ida-jax trial: the folds, the verdict, the files it leaves, and what it refuses."""

import io
import json
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ida_jax import rescore, trial
from ida_jax.common.errors import UserError
from ida_jax.metrics.evaluation import measurable_far
from ida_jax.metrics.groups import FaceGroups, named_cells
from ida_jax.metrics.roc import Interval, SplitScores
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.trials import split
from ida_jax.trials.files import score_script
from ida_jax.trials.rotate import (
    Labelled,
    Scored,
    choose,
    groups_of,
    operating_points,
    pooled,
    pooled_log_density,
    rows_of,
    sides_of,
    standardise,
    unstandardised,
)
from ida_jax.trials.split import FOLDS, IMAGES, rotations
from ida_jax.trials.trial import require_distinct
from ida_jax.trials.verdict import Finding, people_needed, verdict


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), people=st.integers(20, 90), own=st.booleans())
def test_everybody_is_tested_once_by_what_never_saw_them(seed, people, own):
    rng = np.random.default_rng(seed)
    counts = np.r_[np.full(10, 2), rng.integers(1, 30, people - 10)]
    codes = np.repeat(np.arange(people), counts)
    codes = np.r_[codes, -np.ones(3, int)][rng.permutation(len(codes) + 3)]
    made = rotations(codes, own_anchors=own, seed=seed)
    assert len(made) == FOLDS
    tested = [set(codes[r.test]) for r in made]
    assert sum(map(len, tested)) == people == len(set.union(*tested))
    for r in made:
        parts = [set(codes[rows].tolist()) for rows in r]
        assert not any(a & b for i, a in enumerate(parts) for b in parts[:i])
        assert -1 not in set.union(*parts)
        assert bool(len(r.anchors)) == own
        for rows in (r.test, r.choose, r.fit):
            assert np.unique(codes[rows], return_counts=True)[1].max() <= IMAGES
            assert (np.diff(rows) > 0).all()
        assert np.unique(codes[r.test], return_counts=True)[1].max() > 1
    again = rotations(codes, own_anchors=own, seed=seed)
    assert all((a == b).all() for r, s in zip(made, again, strict=True) for a, b in zip(r, s))  # noqa: B905


def test_a_fold_compares_no_more_than_it_may(monkeypatch):
    monkeypatch.setattr(split, "MOST_COMPARED", 15)
    codes = np.repeat(np.arange(60), 3)
    for r in rotations(codes, own_anchors=True, seed=0):
        assert len(r.test) == len(r.choose) == 15
        assert (np.unique(codes[r.test], return_counts=True)[1] == 3).all()


@pytest.mark.parametrize(
    ("people", "fault"),
    [
        (np.repeat(np.arange(19), 3), "19 identities: expected 20 or more"),
        (np.arange(50), "0 of 50 identities have two images or more: expected at least 10"),
        (np.r_[np.arange(50), np.arange(9)], "9 of 50 identities have two images"),
        (np.full(100, -1), "0 identities"),
    ],
)
def test_too_few_people(people, fault):
    with pytest.raises(UserError, match=fault):
        rotations(people, own_anchors=True, seed=0)


def _scored(**scores):
    """Two genuine pairs, then four impostor ones."""
    split = {n: SplitScores(np.float32(s[:2]), np.float32(s[2:])) for n, s in scores.items()}
    return Scored(split, *(np.arange(0),) * 3)


def test_the_choice_and_the_common_scale():
    part = _scored(cosine=[3, 1, 2, 0, 0, 0], ida_r=[3, 2.5, 2, 0, 0, 0], csn=[3, 2.5, 2, 1, 0, 0])

    def chosen(far):
        return choose({name: at.tar for name, (at, _) in operating_points(part, far).items()})

    assert chosen(0.25) == "cosine"  # one false accept each: 2 of 2 by all
    assert chosen(0.1) == "ida_r"  # the first of the two that are above it
    assert measurable_far(1e-4, 4) == 0.5
    points = operating_points(_scored(cosine=[9, 9, 6, 4, 2, 1]), 0.1)
    scaled = standardise(_scored(cosine=[7, 5, 6, 4, 2, 1]), points).scores["cosine"]
    np.testing.assert_allclose(unstandardised(scaled.genuine, points["cosine"]), [7, 5])
    # Thresholds 6 at FAR 0.1, 2 at FAR 0.5.
    np.testing.assert_allclose(scaled.genuine, (np.array([7, 5]) - 6) / 4)
    np.testing.assert_allclose(scaled.impostor, (np.array([6, 4, 2, 1]) - 6) / 4)


def test_pooled_pairs_know_their_people_and_groups():
    """Against all pairs of all faces, written out one by one."""
    rng = np.random.default_rng(0)
    people = np.array([7, 2, 7, 4, 2, 2, 9, 5, 9, 0, 5, 5])
    groups = FaceGroups(rng.integers(-1, 3, 12), named_cells(["a", "b", "c"]))
    folds, listed = [np.array([0, 1, 2, 3, 4, 5]), np.array([6, 7, 8, 9, 10, 11])], ([], [])
    parts = []
    for rows in folds:
        pairs = [(a, b) for a in rows for b in rows if a < b]
        split = [[p for p in pairs if (people[p[0]] == people[p[1]]) == same] for same in (1, 0)]
        for all_of_kind, kind in zip(listed, split, strict=True):
            all_of_kind += kind
        scores = SplitScores(*(np.float32([10 * a + b for a, b in kind]) for kind in split))
        ids, labels = np.unique(people[rows], return_inverse=True)
        log_f = {"ida_r": np.float32(-rows)}
        parts.append(Scored({"cosine": scores, "other": scores}, rows, ids, labels, log_f))
    del parts[1].scores["other"]
    sides, of_pairs = sides_of(parts), groups_of(parts, groups)
    for of_kind, pairs in zip(rows_of(parts), listed, strict=True):
        some = rng.permutation(len(pairs))[:9]
        np.testing.assert_array_equal(of_kind(some), np.array(pairs)[some])
    log_f = pooled_log_density(parts, 13)["ida_r"]
    np.testing.assert_array_equal(log_f, [*-np.arange(12.0), np.nan])
    whole = pooled(parts)
    assert list(whole) == ["cosine"]
    assert parts[0].scores.keys() == {"other"}
    for kind, codes, pairs in zip(
        whole["cosine"], (of_pairs.genuine, of_pairs.impostor), listed, strict=True
    ):
        np.testing.assert_array_equal(kind, [10 * a + b for a, b in pairs])
        np.testing.assert_array_equal(codes, groups.of_pairs(*np.array(pairs).T))
    genuine, impostor = (people[np.array(kind)] for kind in listed)
    np.testing.assert_array_equal(sides.genuine, genuine)
    some = rng.permutation(len(impostor))[:9]
    np.testing.assert_array_equal(sides.impostor(some), impostor[some])
    weights = rng.integers(0, 4, (10, 3)).astype(float)
    drawn = weights[impostor[:, 0]] * weights[impostor[:, 1]]
    assert sides.count == 10
    np.testing.assert_allclose(sides.total(weights), drawn.sum(axis=0))
    by_group = [drawn[of_pairs.impostor == q].sum(axis=0) for q in range(len(of_pairs.names))]
    np.testing.assert_allclose(of_pairs.total(weights), by_group)


FINDING = Finding(
    "ida_r", ("ida_r",) * 5, 1e-4, 1e-4, 1e-4, 0.01, Interval(0.004, 0.016), 400, 0.95, 0.94, -1.5,
    Interval(-1.6, -1.4),
)  # fmt: skip


def test_the_verdict():
    text = verdict(FINDING)
    assert text.startswith("Use IDA-R (--method=ida_r). At FAR 0.0001 it accepts 95.00 % of")
    assert "gained +1.00 [+0.40, +1.60] points" in text
    assert "its threshold is -1.5000 [-1.6000, -1.4000]" in text
    unsure = FINDING._replace(interval=Interval(-0.01, 0.03), measured_far=1e-3)
    text = verdict(unsure)
    assert text.startswith("No difference is shown: stay with the cosine.")
    # Half-width 0.02 for 400 people; (1.96 + 0.84)/1.96 = 1.4286.
    assert people_needed(unsure) == round(400 * (0.02 / 0.01 * 2.8 / 1.96) ** 2)
    assert f"about {people_needed(unsure):,} people" in text
    assert "The choice was made at FAR 0.001" in text
    few = verdict(FINDING._replace(asked_far=1e-6))
    assert "At FAR 0.0001 it accepts" in few
    assert "So few people cannot measure FAR 1e-06, which was asked for" in few
    worse = FINDING._replace(gain=-0.01, interval=Interval(-0.02, 0.0))
    assert people_needed(worse) is None
    assert "would be needed" not in verdict(worse)
    none = FINDING._replace(method="cosine", chosen=("cosine",) * 4 + ("csn",), gain=0.0)
    assert "no method was better" in verdict(none)
    assert "did not all choose the same: Cosine, Cosine, Cosine, Cosine, CSN" in verdict(none)


def test_embeddings_that_are_there_twice():
    faces = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    require_distinct(Labelled(faces, np.arange(6)))
    faces[4] = faces[1]
    with pytest.raises(UserError, match="rows 1 and 4 hold the same embedding, under two"):
        require_distinct(Labelled(faces, np.arange(6)))
    with pytest.raises(UserError, match="under one identity, and 1 embeddings"):
        require_distinct(Labelled(faces, np.array([0, 1, 2, 3, 1, 5])))
    require_distinct(Labelled(faces, np.array([0, 1, 2, 3, -1, 5])))
    with pytest.raises(UserError, match="all embeddings are the same"):
        require_distinct(Labelled(faces[[1] * 6], np.arange(6)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """150 people of four images, in dense and sparse regions."""
    folder = tmp_path_factory.mktemp("trial")
    rng = np.random.default_rng(1)
    people = np.repeat(np.arange(150), 4)
    region = rng.normal(size=(3, 24))[np.arange(150) % 3]
    spread = np.array([0.3, 1.0, 2.0])[np.arange(150) % 3, None]
    centres = region + spread * rng.normal(size=(150, 24))
    faces = centres[people] + 0.4 * rng.normal(size=(600, 24))
    np.save(folder / "e.npy", (3 * faces).astype(np.float32))
    (folder / "l.txt").write_text("".join(f"person {p}\n" for p in people))
    (folder / "n.txt").write_text("".join(f"person {p}/{row}\n" for row, p in enumerate(people)))
    picture = cv2.imencode(".jpg", np.zeros((9, 8, 3), np.uint8))[1].tobytes()
    with tarfile.open(folder / "i.tar", "w") as images:
        for row, p in enumerate(people):
            entry = tarfile.TarInfo(f"person {p}/{row}.jpg")
            entry.size = len(picture)
            images.addfile(entry, io.BytesIO(picture))
    # Three groups, of which one is a single person; the last people are in none.
    groups = np.where(np.arange(150) < 70, "a", np.where(np.arange(150) < 140, "b", "")).tolist()
    groups[139] = "alone"
    lines = (f"person {p},{group}\n" for p, group in enumerate(groups) if group)
    (folder / "g.csv").write_text("person,group\n" + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def done(files, optimised):
    trial.main([
        f"--embeddings={files}/e.npy", f"--labels={files}/l.txt", f"--output={files}/out",
        "--far=0.01", "--resamples=30", "--model_name=<b>m</b>", f"--groups={files}/g.csv",
        f"--names={files}/n.txt", f"--images={files}/i.tar",
    ])  # fmt: skip
    return files / "out"


def test_what_it_leaves_reproduces_its_scores(files, done, tmp_path):
    deploy = json.loads((done / "deploy.json").read_text())
    results = json.loads((done / "results.json").read_text())
    assert results["verdict"] == deploy["verdict"]
    assert results["trial"]["method_to_use"] == deploy["method"]
    assert {"cosine", "ida_r", "csn", "ida_l"} <= results["protocols"]["cross_fitted"].keys()
    for figures in results["protocols"]["cross_fitted"].values():
        assert sum(of["genuine"] for of in figures["groups"].values()) == 140 * 6
        assert figures["groups"]["a"]["realised_far_interval"]["0.01"]
        assert figures["groups"]["alone"]["impostor"] == 0
        assert figures["groups"]["alone"]["realised_far"]["0.01"] is None
        assert {figures["far_ratio"]["0.01"][end] for end in ("highest", "lowest")} == {"a", "b"}
    assert any("40 of 600 faces have no group" in of for of in results["notes"]["cross_fitted"])
    assert "&lt;b&gt;m&lt;/b&gt;" in (done / "report.html").read_text()
    assert deploy["verdict"].split(".")[0] in (done / "report.html").read_text()
    pairs = np.random.default_rng(2).integers(0, 600, (500, 2))
    np.save(tmp_path / "p.npy", pairs)
    flags = [word for word in deploy["rescore"].split()[2:] if not word.startswith("--method")]
    flags = [f.replace("=E", f"={files}/e.npy").replace("=P", f"={tmp_path}/p.npy") for f in flags]
    flags = [flag.replace("=S", f"={tmp_path}/s.npy") for flag in flags]
    rescore.main([*flags, f"--method={deploy['method']}"])
    subprocess.run(
        [sys.executable, done / "score.py", files / "e.npy", "p.npy", "t.npy"],
        cwd=tmp_path,
        check=True,
    )
    expected = np.load(tmp_path / "s.npy")
    np.testing.assert_allclose(np.load(tmp_path / "t.npy"), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["cosine", "ida_r", "s_norm"])
def test_every_script_scores_as_the_rescorer(files, done, tmp_path, method):
    """Of methods that the trial did not choose, too."""
    script = score_script(method)
    assert len(script.splitlines()) <= 30
    (tmp_path / "score.py").write_text(script)
    used = {} if method == "cosine" else {"anchors": "anchors.safetensors"}
    deploy = {"method": method, "k": 7, "tau": 1.0, "far": "0.01", "files": used}
    deploy["threshold"] = {"0.01": {"threshold": 0.0}}
    (tmp_path / "deploy.json").write_text(json.dumps(deploy))
    anchors = done / "anchors.safetensors"
    (tmp_path / "anchors.safetensors").write_bytes(anchors.read_bytes())
    pairs = np.random.default_rng(3).integers(0, 600, (200, 2))
    np.save(tmp_path / "p.npy", pairs)
    subprocess.run(
        [sys.executable, "score.py", files / "e.npy", "p.npy", "t.npy"], cwd=tmp_path, check=True
    )
    scorer = Rescorer(str(anchors), method=method, k=7 if method == "ida_r" else None)
    expected = scorer.score_pairs(np.load(files / "e.npy"), pairs)
    np.testing.assert_allclose(np.load(tmp_path / "t.npy"), expected, atol=1e-6)


def test_the_pairs_to_look_at(files, done):
    results = json.loads((done / "results.json").read_text())
    faces = np.load(files / "e.npy")
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    pairs = results["failures"]["cross_fitted"]["pairs"]
    used, by_kind = results["trial"]["method_to_use"], {}
    for pair in pairs:
        by_kind.setdefault((pair["method"], pair["kind"], pair["genuine"]), []).append(pair)
        (a, b), people = zip(*(name.split("/")[::-1] for name in pair["names"]), strict=True)
        assert (people[0] == people[1]) == pair["genuine"]
        assert pair["cosine"] == pytest.approx(faces[int(a)] @ faces[int(b)], abs=1e-5)
        assert (pair["log_density"] is None) == (pair["method"] not in DAO)
        assert (pair["probability"] is None) == (pair["method"] != used)
        assert pair["group"] in ("a", "b", "alone", "across groups", "no group")
    at = {name: of["threshold@far"] for name, of in results["protocols"]["cross_fitted"].items()}
    for (method, kind, genuine), listed in by_kind.items():
        scores = [pair["score"] for pair in listed]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) <= 40
        if kind != "worst":
            right = (np.array(scores) > at[method]["0.01"]) == genuine
            assert right.all() if kind == "corrected" else not right.any()
    assert all(len(by_kind[name, "worst", False]) == 40 for name in at)
    assert ("ida_r", "corrected", True) in by_kind
    page = (done / "report.html").read_text()
    assert 100 < page.count("data:image/jpeg") <= 220  # of few rows a face is there twice
    assert "pictures of people in this file (at most 200) are personal data" in page


DAO = {"ida_r", "ida_r_fallback", "ida_r_fitted", "ida_l"}


def test_results_are_not_overwritten(files, done):
    before = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    with pytest.raises(UserError, match="already holds results"):
        trial.main([f"--embeddings={files}/e.npy", f"--labels={files}/l.txt", f"--output={done}"])
    assert before == {path: path.stat().st_mtime_ns for path in done.iterdir()}


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ([], "expected --embeddings=E, or --demo"),
        (["--demo", "--embeddings=E"], "expected --embeddings=E, or --demo"),
        (["--demo", "--labels=l.txt"], "--demo brings its own data: leave out --labels"),
        (["--demo", "--images=i.tar"], "--demo brings its own data: leave out --images"),
        (["--embeddings=E", "--labels=L", "--images=I"], "--images goes by E's names"),
        (["--embeddings=E", "--names=N", "--images=I"], "2 of 600 faces have no image in .*i.tar"),
        (["--demo", "--groups=norms:2"], "--demo brings its own data: leave out --groups"),
        (["--embeddings=E", "--labels=L", "--groups=norms:1"], "'norms:1': expected norms:N"),
        (["--embeddings=E", "--labels=L", "--groups=rows.npy"], "599 rows for 600 faces"),
        (["--embeddings=E", "--labels=ids.npy", "--groups=G"], "lists groups by name, and the"),
        (["--embeddings=unit.npy", "--labels=L", "--groups=norms:3"], "unit.npy.* norm"),
        (["--embeddings=twice.npy", "--labels=L"], "rows 3 and 9 hold the same embedding"),
        (["--embeddings=E", "--labels=alone.npy"], "0 of 600 identities have two images or more"),
        (["--embeddings=E", "--labels=few.npy"], "19 identities: expected 20 or more"),
        (["--embeddings=E", "--labels=unknown.npy"], "0 identities"),
        (["--embeddings=E", "--labels=floats.npy"], "expected integers or names"),
        (["--embeddings=E"], "who is on each row of .*e.npy is not given: name --labels=L"),
        (["--embeddings=E", "--labels=short.txt"], "599 labels for 600 embeddings"),
        (["--embeddings=E", "--labels=nan.npy"], "expected integers or names"),
        (["--embeddings=E", "--labels=L", "--far=0"], "--far=0: expected a rate above 0"),
        (["--embeddings=E", "--labels=L", "--resamples=1"], "at least 2 resamples"),
        (["--embeddings=one.npy", "--labels=L"], "all embeddings are the same"),
        (["--embeddings=zero.npy", "--labels=L"], "row 5 is zero"),
        (["--embeddings=E", "--labels=L", "--anchors=E"], "the anchors are"),
        (
            ["--embeddings=E", "--labels=L", "--anchors=own.safetensors"],
            "150 people of .* are among",
        ),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(files, tmp_path, monkeypatch, flags, fault):
    from ida_jax.anchors.sources import embedding_anchors

    monkeypatch.chdir(tmp_path)
    faces = np.load(files / "e.npy")
    lines = (files / "l.txt").read_text().splitlines()
    (tmp_path / "short.txt").write_text("\n".join(lines[:-1]))
    np.save(tmp_path / "nan.npy", np.full(600, np.nan))
    np.save(tmp_path / "one.npy", np.ones_like(faces))
    np.save(tmp_path / "unit.npy", faces / np.linalg.norm(faces, axis=1, keepdims=True))
    np.save(tmp_path / "twice.npy", np.concatenate([faces[:9], faces[3:4], faces[10:]]))
    np.save(tmp_path / "rows.npy", np.zeros(599, int))
    ids = {"ids": np.arange(600) // 4, "alone": np.arange(600), "few": np.arange(600) % 19}
    ids |= {"unknown": np.full(600, -1), "floats": np.arange(600) / 4}
    for name, labels in ids.items():
        np.save(tmp_path / f"{name}.npy", labels)
    faces[5] = 0
    np.save(tmp_path / "zero.npy", faces)
    own = embedding_anchors(np.load(files / "e.npy"), people=np.array(lines), size=1000)
    own.save(tmp_path / "own.safetensors")
    named = {"=E": f"={files}/e.npy", "=L": f"={files}/l.txt", "=G": f"={files}/g.csv"}
    named |= {"=I": f"={files}/i.tar", "=N": "=n.txt"}
    names = (files / "n.txt").read_text().splitlines()
    (tmp_path / "n.txt").write_text("\n".join([*names[:-2], "a/1", "a/2"]))
    for short, path in named.items():
        flags = [f.removesuffix(short) + path if f.endswith(short) else f for f in flags]
    with pytest.raises(UserError, match=fault):
        trial.main([*flags, "--output=out"])
    assert not (tmp_path / "out").exists()
