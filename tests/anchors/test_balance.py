"""Anchors balanced over groups and clusters, and the check of groups."""

import json

import numpy as np
import pytest
import reference

from ida_jax.anchors.__main__ import main
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.balance import Balance, balanced, cluster_codes
from ida_jax.anchors.group_check import check_groups
from ida_jax.common.errors import UserError


def _balanced(codes, names=("a", "b"), **options):
    options = {"size": 1000, "seed": 3, "k": 2, "embeddings": None} | options
    rows = options.pop("rows", np.arange(len(codes)))
    return balanced(rows, Balance(np.array(codes), names), **options)


def test_as_many_of_each_group_as_of_the_smallest():
    codes = np.array([0] * 20 + [1] * 7 + [-1] * 5 + [2] * 9)
    found = _balanced(codes, ("a", "b", "c"))
    assert np.bincount(codes[found.places]).tolist() == [7, 7, 7]
    assert (np.diff(found.places) > 0).all()
    assert "7 anchors of each of 3 groups (of a 20, b 7, c 9); 15 dropped" in found.said[0]
    assert "5 candidates without a group" in found.said[1]
    assert "'b' allows 7" in found.said[2]
    assert found.provenance["balance"]["groups"] == {"a": 20, "b": 7, "c": 9}
    again, other = _balanced(codes, ("a", "b", "c")), _balanced(codes, ("a", "b", "c"), seed=4)
    assert np.array_equal(found.places, again.places)
    assert not np.array_equal(found.places, other.places)
    assert len(_balanced(codes, ("a", "b", "c"), size=10).places) == 9


def test_candidates_are_looked_up_by_their_rows():
    codes = np.array([1, 0, -1, 0, 1, 1])
    found = _balanced(codes, rows=np.array([5, 3, 1, 0]))
    assert found.places.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("codes", "options", "said"),
    [
        ([0] * 5 + [1], {}, "group 'b' has 1 people among the anchors, fewer than k = 2"),
        ([0] * 5, {}, "group 'b' has 0 people"),
        ([0] * 5 + [1] * 5, {"size": 1}, "less than one anchor for each of 2 groups"),
        ([0] * 5, {"names": ("a",)}, "one group alone"),
    ],
)
def test_groups_that_cannot_be_balanced(codes, options, said):
    with pytest.raises(UserError, match=said):
        _balanced(codes, **options)


def test_clusters_are_of_the_embeddings():
    centres = np.eye(3, 8, dtype=np.float32)
    of = np.repeat([0, 1, 2], [30, 9, 15])
    faces = centres[of] + 0.05 * np.random.default_rng(0).normal(size=(54, 8)).astype(np.float32)
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    codes = cluster_codes(faces, 3, seed=0)
    assert {tuple(np.unique(codes[of == c]).tolist()) for c in range(3)} == {(0,), (1,), (2,)}
    found = balanced(
        np.arange(54), Balance(clusters=3), size=99, seed=0, k=2, embeddings=lambda: faces
    )
    assert np.bincount(of[found.places]).tolist() == [9, 9, 9]
    with pytest.raises(UserError, match="at most 27"):
        cluster_codes(faces, 28, seed=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """60 people, two faces each; every third is in group a, the others in b, one in none."""
    monkeypatch.chdir(tmp_path)
    people = [f"P{i:02d}" for i in range(60)]
    names = [f"{person}/{person}_000{image}" for person in people for image in (1, 2)]
    np.save("E.npy", 3 * reference.unit((120, 16), 1))
    (tmp_path / "E.names.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "L.txt").write_text("\n".join(name.split("/")[0] for name in names) + "\n")
    groups = "".join(f"{person},{'abb'[i % 3]}\n" for i, person in enumerate(people[:-1]))
    (tmp_path / "G.csv").write_text("person,group\n" + groups)
    return tmp_path


def test_build_by_groups(folder, capsys):
    main(["build", "--output=A.safetensors", "--embeddings=E.npy", "--labels=L.txt",
          "--balance=G.csv", "--k=5"])  # fmt: skip
    anchors = AnchorSet.load("A.safetensors")
    assert len(anchors) == 40
    assert sum(int(name[1:]) % 3 == 0 for name in anchors.names) == 20
    assert anchors.provenance["balance"]["each"] == 20
    text = capsys.readouterr().out
    assert "20 anchors of each of 2 groups (of a 20, b 39); 19 dropped" in text
    assert "1 candidates without a group" in text
    first = np.load("E.npy")[::2]
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    rows = [int(name[1:]) for name in anchors.names]
    np.testing.assert_allclose(anchors.embeddings, first[rows], atol=1e-6)


def test_build_by_names_of_rows_and_by_clusters(folder):
    main(["build", "--output=A.safetensors", "--embeddings=E.npy", "--balance=G.csv", "--k=5"])
    assert len(AnchorSet.load("A.safetensors")) == 80  # every image of each person
    main(["build", "--output=B.safetensors", "--embeddings=E.npy", "--balance=clusters:3", "--k=2"])
    assert len(AnchorSet.load("B.safetensors")) % 3 == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--balance=clusters:1"], "at least 2 clusters"),
        (["--balance=clusters:x"], "at least 2 clusters"),
        (["--balance=absent.csv"], "no groups at absent.csv"),
        (["--balance=G.csv", "--labels=L.txt", "--k=21"], "group 'a' has 20 people .* k = 21"),
        (["--balance=bad.csv"], "none of the 120 names"),
    ],
)
def test_mistakes(folder, flags, said):
    (folder / "bad.csv").write_text("nobody,a\nno one,b\n")
    with pytest.raises(UserError, match=said):
        main(["build", "--output=A.safetensors", "--embeddings=E.npy", *flags])
    assert not (folder / "A.safetensors").exists()


def test_balance_is_not_of_classes(folder):
    with pytest.raises(UserError, match="classes have no names"):
        main(["build", "--output=A.safetensors", "--model=M", "--class_weights", "--balance=G.csv"])


def _crowd(rng, centre, count):
    faces = centre + 0.7 * rng.normal(size=(count, 24)) / np.sqrt(24)
    return (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("a", "b", "uneven"), [(300, 30, True), (30, 300, True), (90, 90, False)])
def test_uneven_anchors_are_found(a, b, uneven):
    rng = np.random.default_rng(0)
    centres = np.eye(2, 24)
    codes = np.repeat([0, 1], [150, 100])
    probes = np.concatenate([_crowd(rng, centres[0], 150), _crowd(rng, centres[1], 100)])
    anchors = np.concatenate([_crowd(rng, centres[0], a), _crowd(rng, centres[1], b)])
    people = np.arange(250)
    found = check_groups(
        probes, people, codes, ("a", "b"), AnchorSet.from_embeddings(anchors),
        anchor_codes=np.repeat([0, 1], [a, b]),
    )  # fmt: skip
    assert found.uneven == uneven
    if uneven:
        assert (found.densest, found.thinnest) == (("a", "b") if a > b else ("b", "a"))
    assert [group.people for group in found.groups] == [150, 100]
    assert [group.anchors for group in found.groups] == [a, b]
    # Written out: the mean cosine to the 10 nearest anchors.
    nearest = np.sort(probes[codes == 1].astype(np.float64) @ anchors.T.astype(np.float64))[:, -10:]
    assert found.groups[1].similarity == pytest.approx(nearest.mean(), abs=1e-5)


def test_check_by_a_list(folder, capsys):
    rng = np.random.default_rng(0)
    anchors = reference.unit((50, 16), 5)
    AnchorSet.from_embeddings(
        anchors, labels=np.arange(50), names=[f"Q{i}" for i in range(50)], k=5
    ).save("A.safetensors")
    with (folder / "G.csv").open("a") as file:
        file.write("".join(f"Q{i},{'ab'[i % 2]}\n" for i in range(50)))
    flags = ["check", "--anchors=A.safetensors", "--against=E.npy", "--groups=G.csv"]
    main([*flags, "--json=out.json"])
    text = capsys.readouterr().out
    assert "a: 20 people (34%, too few to say much), 25 anchors (50%)" in text
    assert "2 of 120 probes have no group" in text
    report = json.loads((folder / "out.json").read_text())["groups"]
    assert report["uneven"] is False
    assert [group["people"] for group in report["groups"]] == [20, 39]
    (folder / "E.names.txt").unlink()
    with pytest.raises(UserError, match="who is on E's rows is not known"):
        main(flags)
    with pytest.raises(UserError, match="--groups goes with --against"):
        main(["check", "--anchors=A.safetensors", "--groups=G.csv"])
    np.save("G.npy", rng.integers(2, size=120))
    with pytest.raises(UserError, match="a list of two columns"):
        main([*flags[:-1], "--groups=G.npy", "--labels=L.txt"])


def test_too_few_people_to_check(folder):
    AnchorSet.from_embeddings(reference.unit((50, 16), 5), k=10).save("A.safetensors")
    (folder / "G.csv").write_text("P00,a\nP01,b\nP02,b\n")
    with pytest.raises(UserError, match="group 'a' has 1 people among the probes"):
        main(["check", "--anchors=A.safetensors", "--against=E.npy", "--groups=G.csv"])
    (folder / "G.csv").write_text("P00,a\nP02,a\n")
    with pytest.raises(UserError, match="of one group"):
        main(["check", "--anchors=A.safetensors", "--against=E.npy", "--groups=G.csv"])
