"""Degraded copies among the anchors, from a folder and from fakes; and probes that crowd."""

import json
from dataclasses import replace

import numpy as np
import pytest
import reference
from test_anchors_command import _crop, model_dir  # noqa: F401 (a fixture)
from test_fake_anchors import MODEL, OPTIONS, _candidates, _mixture

from ida_jax.anchors import candidates as candidates_module
from ida_jax.anchors.__main__ import main
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.check import near_duplicates
from ida_jax.anchors.coverage import own_neighbourhood
from ida_jax.anchors.crowding import crowding
from ida_jax.anchors.degraded import copy_labels
from ida_jax.anchors.fake import fake_anchors
from ida_jax.anchors.fake_rules import KEPT
from ida_jax.artefacts.face_model import FaceModel
from ida_jax.common.errors import UserError
from ida_jax.data.degrade import degradation, degraded, degraded_rows


def _built(tmp_path, model, *flags):
    output = tmp_path / "A.safetensors"
    main(["build", f"--output={output}", f"--model={model}", f"--images={tmp_path}/crops",
          "--k=2", *flags])  # fmt: skip
    return AnchorSet.load(output)


def _people_crops(tmp_path, people=9):
    """One crop of each person, and for the first a second one, in the folder's order."""
    files = [f"p{i}/1.png" for i in range(people)]
    files.insert(1, "p0/2.png")
    return {
        name: _crop(tmp_path / "crops" / name, seed)
        for seed, name in enumerate(files)
    }  # fmt: skip


def test_build_adds_copies_of_a_share(tmp_path, model_dir, capsys):  # noqa: F811
    crops = _people_crops(tmp_path)
    flags = ("--degrade=blur,jpeg:strong", "--degrade_share=0.6", "--degrade_copies=2", "--seed=3")
    anchors = _built(tmp_path, model_dir, *flags)
    how = degradation("blur,jpeg:strong", share=0.6, copies=2, seed=3)
    names = list(crops)
    rows = np.array([row for row, name in enumerate(names) if name != "p0/2.png"])
    chosen = [row for row in rows if degraded_rows(how, np.array([row]))[0]]
    assert 1 < len(chosen) < 9
    images = [crops[names[row]] for row in rows] + [
        degraded(crops[names[row]], how, number=int(row), copy=copy)
        for copy in range(2)
        for row in chosen
    ]
    of = [*rows, *chosen, *chosen]
    model = FaceModel.load(model_dir / "model.safetensors")
    np.testing.assert_allclose(anchors.embeddings, model.embed(images), atol=1e-6)
    assert list(anchors.names) == [names[row].split("/")[0] for row in of]
    assert (anchors.labels == [max(row - 1, 0) for row in of]).all()
    assert anchors.provenance["degraded"] == {
        "strengths": {"blur": "varied", "jpeg": "strong"},
        "share": 0.6, "copies": 2, "seed": 3, "images": 9, "anchors": 2 * len(chosen),
    }  # fmt: skip
    assert f"of 9 identities with names, {2 * len(chosen)} of them degraded" in (
        capsys.readouterr().out
    )


def test_build_without_the_flag_is_as_before(tmp_path, model_dir):  # noqa: F811
    _people_crops(tmp_path)
    anchors = _built(tmp_path, model_dir)
    assert len(anchors) == 9
    assert not anchors.degraded
    assert anchors.provenance == {}
    with_copies = _built(tmp_path, model_dir, "--degrade")
    np.testing.assert_allclose(with_copies.embeddings[:9], anchors.embeddings, atol=1e-6)
    assert len(with_copies) > 9


def test_copies_of_unnamed_faces_are_one_person(tmp_path, model_dir):  # noqa: F811
    for seed in range(7):
        _crop(tmp_path / "crops" / f"{seed}.png", seed)
    anchors = _built(tmp_path, model_dir, "--degrade=blur:mild", "--degrade_share=0.7")
    chosen = degraded_rows(degradation("blur:mild", share=0.7), np.arange(7))
    of = [*range(7), *np.flatnonzero(chosen)]
    assert 0 < chosen.sum() < 7
    people = anchors.people()
    assert (anchors.labels < 0).all()
    assert people.min() >= 0
    assert ((people[:, None] == people) == np.equal.outer(of, of)).all()
    assert "unlabelled" in anchors.described()
    # Mildly blurred copies are next to their faces, and no near-duplicates nor neighbours.
    assert near_duplicates(anchors, 2.0).total == 0
    every = near_duplicates(anchors, -1.0).total
    among = sum(of.count(row) * (of.count(row) - 1) // 2 for row in range(7))
    assert every == len(of) * (len(of) - 1) // 2 - among
    own = own_neighbourhood(anchors, k=2, tau=1.0)
    x = anchors.embeddings.astype(np.float64)
    expected = reference.top_k(x, x, 2, np.array(of), np.array(of)).mean(axis=1)
    np.testing.assert_allclose(own.similarity, expected, atol=1e-6)


def test_negative_labels_of_sets_without_copies_are_people_of_their_own():
    faces = reference.unit((6, 8), 0)
    labels = np.array([-9, 4, -9, -1, 4, -2])
    plain = AnchorSet.from_embeddings(faces, labels=labels)
    assert len(set(plain.people().tolist())) == 5
    copies = replace(plain, provenance={"degraded": {"anchors": 1}})
    assert len(set(copies.people().tolist())) == 4  # the two of -9 are one


def test_copy_labels():
    assert copy_labels(np.arange(4)) is None
    assert copy_labels(np.array([0, 1, 2, 1, 1])).tolist() == [-1, -3, -1, -3, -3]


@pytest.mark.parametrize("degraded", [7, {"anchors": -1}, {"anchors": "many"}, []])
def test_a_crafted_provenance_is_one_line(tmp_path, degraded):
    anchors = AnchorSet.from_embeddings(reference.unit((6, 8), 0))
    replace(anchors, provenance={"degraded": degraded}).save(tmp_path / "A.safetensors")
    with pytest.raises(UserError, match="was not written by ida_jax"):
        AnchorSet.load(tmp_path / "A.safetensors")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--degrade=blr"], "--degrade is 'blr', in which 'blr' is not understood"),
        (["--degrade_share=0.3"], "--degrade_share goes with --degrade"),
        (["--degrade_copies=1"], "--degrade_copies goes with --degrade"),
        (["--degrade", "--degrade_share=0"], "--degrade_share is 0: expected a share"),
    ],
)
@pytest.mark.parametrize("command", ["build", "fake"])
def test_mistakes(tmp_path, command, flags, message):
    (tmp_path / "crops").mkdir()
    with pytest.raises(UserError, match=message):
        main([command, f"--output={tmp_path}/A.safetensors", f"--model={tmp_path}",
              f"--images={tmp_path}/crops", *flags])  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]


def test_degrade_goes_with_images(tmp_path):
    with pytest.raises(UserError, match="--degrade goes with --images"):
        main(["build", f"--output={tmp_path}/A.safetensors", f"--embeddings={tmp_path}/E.npy",
              "--degrade"])  # fmt: skip


def _expected_fakes(candidates, report, how):
    """Copies one by one, and the rows of their faces among the anchors."""
    numbers = report.numbers(KEPT)
    of = [row for row, number in enumerate(numbers) if degraded_rows(how, np.array([number]))[0]]
    return numbers, of


def test_fakes_and_their_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates_module, "_CHUNK", 16)
    training, candidates = _mixture()
    how = degradation("noise:mild", share=0.4, copies=1, seed=2)
    options = {"count": 80, "training": training, **OPTIONS}
    plain, _ = fake_anchors(candidates, MODEL, **options)
    anchors, report = fake_anchors(candidates, MODEL, degrade=how, **options)
    np.testing.assert_array_equal(anchors.embeddings[:80], plain.embeddings)
    numbers, of = _expected_fakes(candidates, report, how)
    assert 20 < len(of) < 45
    assert len(anchors) == 80 + len(of)
    copies = [
        degraded(candidates.draw(numbers[row], 1)[0], how, number=int(numbers[row])) for row in of
    ]
    raw = MODEL.raw_embeddings(copies).astype(np.float64)
    raw /= np.linalg.norm(raw, axis=1)[:, None]
    np.testing.assert_allclose(anchors.embeddings[80:], raw, atol=1e-6)
    people = anchors.people()
    assert (people[80:] == people[of]).all()
    assert len(set(people.tolist())) == 80
    assert report.provenance["degraded"]["anchors"] == len(of)


def test_killed_among_the_copies_fakes_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates_module, "_CHUNK", 16)
    training, candidates = _mixture()
    how = degradation("noise:mild", copies=2)
    options = {"count": 80, "training": training, "degrade": how, **OPTIONS}
    expected, _ = fake_anchors(candidates, MODEL, **options)
    drawn = []

    def draw(first, count):
        drawn.append(first)
        if drawn.count(48) == 2 and drawn[-1] == 48:
            raise KeyboardInterrupt
        return candidates.draw(first, count)

    killed = replace(candidates, draw=draw)
    with pytest.raises(KeyboardInterrupt):
        fake_anchors(killed, MODEL, parts=tmp_path / "p", **options)
    drawn.append(48)
    before = len(drawn)
    found, _ = fake_anchors(killed, MODEL, parts=tmp_path / "p", **options)
    np.testing.assert_array_equal(found.embeddings, expected.embeddings)
    assert drawn[before] == 48  # neither the faces nor the first copies again


def test_aligned_fakes_have_aligned_copies():
    from test_fake_align import OPTIONS as ALIGNED
    from test_fake_align import apart, people

    from ida_jax.anchors.moments import matched, moments

    candidates, how = _candidates(apart()), degradation("noise:mild", share=1.0)
    anchors, report = fake_anchors(
        candidates, MODEL, training=people(), align=True, degrade=how, **ALIGNED
    )
    numbers = report.numbers(KEPT)
    copies = [degraded(candidates.draw(n, 1)[0], how, number=int(n)) for n in numbers]

    def unit(images):
        raw = MODEL.raw_embeddings(images).astype(np.float64)
        return raw / np.linalg.norm(raw, axis=1)[:, None]

    own, target = moments(unit(candidates.draw(0, 200))), moments(people().embeddings)
    unit_target = AnchorSet.from_embeddings(people().embeddings).embeddings
    expected = matched(unit(copies), own=own, target=moments(unit_target))
    assert target is not None
    np.testing.assert_allclose(anchors.embeddings[80:], expected, atol=1e-4)


def _crowd(poor, seed=0, faces=600, width=32):
    """Faces, two per identity; in the `poor` half a direction is shared, and norms are low."""
    rng = np.random.default_rng(seed)
    people = np.arange(faces) // 2
    x = rng.normal(size=(faces, width)) + rng.normal(size=(faces // 2, width))[people]
    bad = np.zeros(faces, bool)
    if poor:
        bad = rng.random(faces) < 0.5
        x[bad] += 2.5 * np.sqrt(width) * reference.unit((1, width), 99)
    norms = np.where(bad, 15.0, 18.0) * np.exp(0.05 * rng.normal(size=faces))
    return (
        reference.unit((faces, width), 0) * 0 + x / np.linalg.norm(x, axis=1)[:, None],
        (people),
        norms,
    )


def test_crowding_by_a_slow_transcription():
    faces, people, norms = _crowd(True)
    faces = faces.astype(np.float32)
    given, _, _ = _crowd(False, seed=1, faces=500)
    anchors = AnchorSet.from_embeddings(given[::2])
    found = crowding(faces, people, anchors, norms=norms)
    x, a = faces.astype(np.float64), np.asarray(anchors.embeddings, np.float64)
    pairs = [(i, j) for i in range(600) for j in range(i + 1, 600) if people[i] != people[j]]
    first, second = np.array(pairs).T
    bound = np.quantile((x @ a.T).ravel(), 0.999)
    above = (x @ x.T)[first, second] > bound
    logs = np.log(norms)
    crowd = logs[np.concatenate([first[above], second[above]])]
    assert found.probes == 600
    np.testing.assert_allclose(found.bound, bound, atol=1e-6)
    np.testing.assert_allclose(found.ratio, above.mean() / 1e-3, rtol=0.02)
    np.testing.assert_allclose(
        found.norm_shift, (crowd.mean() - logs.mean()) / logs.std(), atol=0.02
    )
    assert found.crowded
    assert found.low_quality
    # Embeddings that come normalised say nothing of quality.
    unit = crowding(faces, people, anchors, norms=1 + 1e-6 * norms)
    assert unit.crowded
    assert not unit.low_quality
    assert unit.json()["norm_shift"] is None


def test_crowding_is_about_1_with_anchors_like_the_probes():
    faces, people, norms = _crowd(False)
    anchors = AnchorSet.from_embeddings(_crowd(False, seed=1)[0][::2])
    found = crowding(faces.astype(np.float32), people, anchors, norms=norms)
    assert 0.6 < found.ratio < 1.4
    assert not found.crowded
    poor, people, norms = _crowd(True)
    like = AnchorSet.from_embeddings(_crowd(True, seed=1)[0][::2])
    assert crowding(poor.astype(np.float32), people, like, norms=norms).ratio < 1.5


def test_crowding_leaves_own_identities_out():
    faces, people, _ = _crowd(False)
    faces = faces.astype(np.float32)
    anchors = AnchorSet.from_embeddings(faces[::2], labels=people[::2])
    with_own = crowding(faces, people, anchors)
    without = crowding(faces, people, anchors, own=people)
    assert with_own.bound > without.bound
    assert 0.6 < without.ratio < 1.4


def test_too_few_probes_for_crowding():
    faces, people, _ = _crowd(False)
    faces, anchors = faces.astype(np.float32), AnchorSet.from_embeddings(faces)
    assert crowding(faces[:99], people[:99], anchors) is None
    assert crowding(faces[:100], people[:100], anchors) is not None
    assert crowding(faces[:100], np.zeros(100, int), anchors) is None
    assert crowding(faces, np.where(people < 49, people, -1), anchors) is None


def test_check_tells_of_a_crowd(tmp_path, capsys):
    anchors = AnchorSet.from_embeddings(_crowd(False, seed=1)[0][::2])
    anchors.save(tmp_path / "A.safetensors")
    for name, poor in (("clean", False), ("poor", True)):
        faces, people, norms = _crowd(poor)
        np.save(tmp_path / f"{name}.npy", (faces * norms[:, None]).astype(np.float32))
        np.save(tmp_path / "L.npy", people)
        flags = ["check", f"--anchors={tmp_path}/A.safetensors", "--threshold=0.99"]
        flags += [f"--against={tmp_path}/{name}.npy", f"--json={tmp_path}/{name}.json"]
        if not poor:
            main(flags)
            assert "crowding: not examined, which takes --labels" in capsys.readouterr().out
        with pytest.raises(UserError, match="the anchors have none"):
            main([*flags, f"--labels={tmp_path}/L.npy"])
    unlabelled = AnchorSet.from_embeddings(
        anchors.embeddings, labels=np.arange(1000, 1000 + len(anchors))
    )
    unlabelled.save(tmp_path / "A.safetensors")
    found = {}
    for name in ("clean", "poor"):
        found[name] = main(
            ["check", f"--anchors={tmp_path}/A.safetensors", f"--labels={tmp_path}/L.npy",
             f"--against={tmp_path}/{name}.npy", f"--json={tmp_path}/{name}.json",
             "--threshold=0.99"]
        )  # fmt: skip
    told = capsys.readouterr().out
    assert "warning: probes crowd together where there are no anchors (their norms say" in told
    report = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in found}
    assert not report["clean"]["crowding"]["crowded"]
    assert report["poor"]["crowding"]["low_quality"]
    assert found["poor"]
