"""ida-jax anchors: sets built from every source, told about, checked; and mistakes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import reference
from drawn import drawn_variables
from environment import with_devices

from ida_jax.anchors.__main__ import main
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import real_db_rows
from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings

OPTIONS = {"embedding_dim": 8}


def _run(*flags):
    return subprocess.run(
        [sys.executable, "-m", "ida_jax.anchors", *map(str, flags)],
        capture_output=True,
        text=True,
        env=with_devices(1),
    )


def _build(output, *flags):
    main(["build", f"--output={output}", *flags])


def _faces(count=40, width=16, seed=1):
    return reference.unit((count, width), seed, clusters=5)


@pytest.fixture
def built(tmp_path):
    """A labelled set of 40 anchors; their embeddings are beside it."""
    np.save(tmp_path / "E.npy", 3 * _faces())
    (tmp_path / "L.txt").write_text("\n".join(f"Zoë {i}" for i in range(40)) + "\n")
    path = tmp_path / "A.safetensors"
    main(
        [
            "build",
            f"--output={path}",
            f"--embeddings={tmp_path}/E.npy",
            f"--labels={tmp_path}/L.txt",
        ]
    )
    return path


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A folder with a tiny model of random weights, with class weights."""
    folder = tmp_path_factory.mktemp("model")
    network = build_network("iresnet_nano", dict(OPTIONS))
    variables = drawn_variables(network, (1, 32, 32, 3))
    weights = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    model = FaceModel("iresnet_nano", OPTIONS, Preprocessing(32), variables, weights)
    model.save(folder / "model.safetensors")
    return folder


def _crop(path, seed, size=32):
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    cv2.imwrite(str(path), image)
    return image[:, :, ::-1]  # cv2 writes BGR


def test_from_embeddings_one_an_identity(tmp_path, capsys):
    faces = _faces()
    np.savez(tmp_path / "E.npz", embeddings=5 * faces)
    np.save(tmp_path / "L.npy", np.arange(40) // 3)
    _build(
        tmp_path / "A.safetensors",
        f"--embeddings={tmp_path}/E.npz",
        f"--labels={tmp_path}/L.npy",
        "--k=4",
        "--tau=2",
    )
    anchors = AnchorSet.load(tmp_path / "A.safetensors")
    np.testing.assert_allclose(anchors.embeddings, faces[::3], atol=1e-6)
    np.testing.assert_array_equal(anchors.labels, np.arange(14))
    assert (anchors.k, anchors.tau, anchors.source) == (4, 2.0, "embeddings")
    told = capsys.readouterr().out
    assert "14 anchors of 14 identities, 16 wide, from embeddings, model unknown, k = 4" in told
    _build(
        tmp_path / "A.safetensors",
        f"--embeddings={tmp_path}/E.npz",
        f"--labels={tmp_path}/L.npy",
        "--k=4",
        "--per_identity=2",
    )
    again = AnchorSet.load(tmp_path / "A.safetensors")
    assert len(again) == 27
    assert np.unique(again.labels, return_counts=True)[1].max() == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["A.safetensors", "E.npz", "L.npy"]


def test_from_embeddings_without_labels_and_a_draw(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    faces = _faces()
    pq.write_table(pa.table({"embedding": list(faces)}), tmp_path / "E.parquet")
    for seed in (0, 0, 1):
        _build(
            tmp_path / f"{seed}.safetensors",
            "--size=15",
            f"--seed={seed}",
            f"--embeddings={tmp_path}/E.parquet",
        )
    drawn = [np.array(AnchorSet.load(tmp_path / f"{s}.safetensors").embeddings) for s in (0, 1)]
    assert drawn[0].shape == (15, 16)
    assert not np.array_equal(*drawn)
    nearest = (drawn[0] @ faces.T).argmax(1)
    assert np.array_equal(nearest, np.unique(nearest))  # fifteen different rows, in their order
    np.testing.assert_allclose(drawn[0], faces[nearest], atol=1e-6)


def test_the_first_of_each_identity_in_their_order():
    labels = np.array([3, -1, 3, 0, -1, 3, 0, 8])
    np.testing.assert_array_equal(real_db_rows(labels, size=99), [1, 4, 3, 0, 7])
    np.testing.assert_array_equal(
        real_db_rows(labels, size=99, per_identity=2), [1, 4, 3, 6, 0, 2, 7]
    )
    assert len(set(real_db_rows(labels, size=4, per_identity=2))) == 4
    with pytest.raises(UserError, match="per_identity is 0"):
        real_db_rows(labels, size=9, per_identity=0)


def test_names_stay_with_the_anchors(built):
    anchors = AnchorSet.load(built)
    assert len(anchors.names) == 40
    for name, face in zip(anchors.names, anchors.embeddings, strict=True):
        np.testing.assert_allclose(face, _faces()[int(name.split()[1])], atol=1e-6)


def test_from_class_weights(tmp_path, model_dir, capsys):
    _build(tmp_path / "A.safetensors", f"--model={model_dir}", "--class_weights")
    anchors = AnchorSet.load(tmp_path / "A.safetensors")
    model = FaceModel.load(model_dir / "model.safetensors")
    np.testing.assert_allclose(
        anchors.embeddings, unit_embeddings(np.asarray(model.class_weights)), atol=1e-6
    )
    assert (anchors.source, anchors.fingerprint) == ("class_weights", model.fingerprint)
    assert model.fingerprint in capsys.readouterr().out


@pytest.mark.parametrize("nested", [True, False])
def test_from_images(nested, tmp_path, model_dir, capsys):
    files = ["b/2.png", "b/1.png", "a/1.png"] if nested else ["2.png", "1.png", "0.PNG"]
    crops = [_crop(tmp_path / "crops" / file, seed) for seed, file in enumerate(files)]
    (tmp_path / "crops" / "readme.txt").write_text("no image")
    _build(
        tmp_path / "A.safetensors",
        f"--model={model_dir}/model.safetensors",
        f"--images={tmp_path}/crops",
        "--k=2",
    )
    anchors = AnchorSet.load(tmp_path / "A.safetensors")
    model = FaceModel.load(model_dir / "model.safetensors")
    expected = model.embed([crops[2], crops[1]] if nested else crops[::-1])
    np.testing.assert_allclose(anchors.embeddings, expected, atol=1e-4)
    assert anchors.names == (("a", "b") if nested else ())
    assert (anchors.labels is None) != nested
    assert (anchors.source, anchors.fingerprint) == ("real_db", model.fingerprint)


def test_info(built, capsys):
    main(["info", f"--anchors={built}"])
    told = capsys.readouterr().out
    assert "40 anchors of 40 identities with names, 16 wide" in told
    anchors = AnchorSet.load(built)
    x = anchors.embeddings.astype(np.float64)
    support = reference.top_k(x, x, 10, np.arange(40), np.arange(40))
    assert f"10 nearest others {support.mean():.3f}" in told
    median = np.median([np.log(reference.density(row, 1.0)) for row in support])
    assert f"{median:.3f} (50 %)" in told
    assert "near-duplicates: " in told


def test_info_of_a_set_without_enough_others(tmp_path, capsys):
    AnchorSet.from_embeddings(_faces(3), k=3).save(tmp_path / "A.safetensors")
    main(["info", f"--anchors={tmp_path}/A.safetensors"])
    assert "own neighbourhood: none" in capsys.readouterr().out


def test_check_alone_tells_near_duplicates(tmp_path, capsys):
    faces = _faces(60, 64)
    twice = np.concatenate([faces, faces[[4, 9]]])
    AnchorSet.from_embeddings(twice).save(tmp_path / "A.safetensors")
    assert not main(["check", f"--anchors={tmp_path}/A.safetensors", "--threshold=0.99"])
    told = capsys.readouterr().out
    assert "near-duplicates: 2 pairs of anchors with a cosine of at least 0.990" in told
    assert "anchor 4  anchor 60" in told
    main(["check", f"--anchors={tmp_path}/A.safetensors", "--threshold=0.99", "--limit=0"])
    assert "… and 2 more" in capsys.readouterr().out


def test_check_against_probes(tmp_path, capsys):
    """Leaks, by likeness and by name, and the wrong domain; strangers of the same kind pass."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(2, 64))

    def faces(which, count):
        return unit_embeddings(centre[which] + rng.normal(size=(count, 64)))

    anchors = faces(0, 400)
    names = [f"anchor {i}" for i in range(400)]
    path = tmp_path / "A.safetensors"
    AnchorSet.from_embeddings(anchors, names=names).save(path)
    probes = {
        "strangers": faces(0, 500),
        "leaked": np.concatenate([faces(0, 500), anchors[[5]]]),
        "elsewhere": faces(1, 500),
    }
    found = {}
    for name, embeddings in probes.items():
        people = [f"p{i}/1" for i in range(len(embeddings))]
        people[-1] = "anchor 5/1" if name == "leaked" else people[-1]
        np.savez(tmp_path / f"{name}.npz", embeddings=embeddings, names=np.array(people))
        found[name] = main(
            ["check", f"--anchors={path}", f"--against={tmp_path}/{name}.npz",
             "--threshold=0.95", f"--json={tmp_path}/{name}.json"]
        )  # fmt: skip
    assert found == {"strangers": False, "leaked": True, "elsewhere": True}
    report = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in probes}
    assert report["strangers"]["findings"] == []
    assert report["leaked"]["leaks"] == {
        "threshold": 0.95, "total": 1, "first": [500], "second": [5], "cosine": [1.0],
    }  # fmt: skip
    assert report["leaked"]["known_leaks"]["first"] == [500]
    assert len(report["leaked"]["findings"]) == 2
    assert report["elsewhere"]["coverage"]["wrong_domain"]
    assert report["elsewhere"]["gain"]["harmful"]
    assert not report["strangers"]["gain"]["harmful"]
    assert not report["leaked"]["coverage"]["wrong_domain"]
    told = capsys.readouterr().out
    assert "probe 500 (anchor 5/1)  anchor 5 (anchor 5)" in told
    assert "warning: the anchors are not of the probes' domain" in told
    assert "100% of the probes are sparser than the median anchor" in told
    assert "of cosine (500 people)" in told


def test_check_by_integer_labels(built, tmp_path):
    np.save(tmp_path / "P.npy", _faces(5, seed=8))
    for labels, expected in ((np.arange(5), 5), (np.full(5, 90), 0)):
        np.save(tmp_path / "PL.npy", labels)
        main(
            ["check", f"--anchors={built}", f"--against={tmp_path}/P.npy", "--threshold=1",
             f"--labels={tmp_path}/PL.npy", f"--json={tmp_path}/out.json"]
        )  # fmt: skip
        report = json.loads((tmp_path / "out.json").read_text())
        assert report["known_leaks"]["total"] == expected


def test_unlabelled_images_of_the_same_people_are_not_called_fine(tmp_path, capsys):
    rng = np.random.default_rng(0)
    people = rng.normal(size=(40, 16))
    images = people[np.arange(200) // 5] + 0.05 * rng.normal(size=(200, 16))
    np.save(tmp_path / "E.npy", images)
    np.save(tmp_path / "probes.npy", rng.normal(size=(30, 16)))
    main(["build", f"--embeddings={tmp_path}/E.npy", f"--output={tmp_path}/A.safetensors"])
    flags = ["check", f"--anchors={tmp_path}/A.safetensors", f"--against={tmp_path}/probes.npy"]
    assert main(flags)
    assert "several images of a person without labels" in capsys.readouterr().out
    main([*flags, "--threshold=0.9"])
    assert "several images" not in capsys.readouterr().out


def test_exit_codes_as_scripts_see_them(built, tmp_path):
    fine = _run("check", f"--anchors={built}")
    assert (fine.returncode, fine.stderr) == (0, "")
    np.save(tmp_path / "P.npy", _faces()[:3])
    leaked = _run("check", f"--anchors={built}", f"--against={tmp_path}/P.npy")
    assert leaked.returncode == 1, leaked.stderr
    assert "warning: 3 probes are likely among the anchors" in leaked.stdout
    wrong = _run("check", f"--anchors={tmp_path}/none.safetensors")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: no file at")
    assert wrong.stderr.count("\n") == 1


def test_help_says_the_exit_codes_and_loads_nothing_heavy():
    heavy = {
        "jax",
        "flax",
        "scipy",
        "pyarrow",
        "ida_jax.anchors.check",
        "ida_jax.artefacts.face_model",
    }
    code = (
        "import sys, ida_jax; before = set(sys.modules)\n"
        "from ida_jax.anchors.__main__ import main\n"
        "try: main(['check', '--help'])\n"
        "except SystemExit: print('loaded:', *(set(sys.modules) - before))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, loaded = told.stdout.split("loaded:")
    assert "exit code: 0 nothing found; 1 leaks, the wrong domain, crowded probes, uneven" in text
    assert "ida_jax.anchors.__main__" in loaded.split()
    assert not heavy & set(loaded.split())


def test_images_that_the_model_cannot_take(tmp_path, model_dir):
    def build():
        _build(
            tmp_path / "A.safetensors",
            f"--model={model_dir}",
            f"--images={tmp_path}/crops",
            "--k=1",
        )

    _crop(tmp_path / "crops" / "p" / "1.png", 0, size=40)
    with pytest.raises(UserError, match=r"p/1\.png is uint8 \[40, 40, 3\]"):
        build()
    (tmp_path / "crops" / "p" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"p/1\.png cannot be decoded"):
        build()
    with pytest.raises(UserError, match="k = 10 is more than the 1 anchors"):
        _build(tmp_path / "A.safetensors", f"--model={model_dir}", f"--images={tmp_path}/crops")
    assert not (tmp_path / "A.safetensors").exists()


def test_an_earlier_output_is_replaced_whole_or_kept(built, tmp_path):
    before = built.read_bytes()
    with pytest.raises(UserError):
        _build(built, f"--embeddings={tmp_path}/E.npy", "--k=41")
    assert built.read_bytes() == before
    _build(built, f"--embeddings={tmp_path}/E.npy", "--k=7")
    assert AnchorSet.load(built).k == 7
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("given", ["names beside", "labels"])
def test_check_by_names_of_images(tmp_path, capsys, given):
    """PERSON/IMAGE, a line each: who is in both sets is found by the folder."""
    faces = _faces(12, seed=8)
    known = [f"P{i}" for i in range(9)]
    anchors = AnchorSet.from_embeddings(
        np.concatenate([faces[:9], _faces(40, seed=9)]),
        labels=np.arange(49), names=[*known, *(f"X{i}" for i in range(40))],
    )  # fmt: skip
    anchors.save(tmp_path / "A.safetensors")
    np.save(tmp_path / "E.npy", np.repeat(faces, 2, axis=0))
    lines = [f"P{i}/{image}.jpg" for i in range(12) for image in (1, 2)]
    name = "E.names.txt" if given == "names beside" else "L.txt"
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    flags = [f"--anchors={tmp_path}/A.safetensors", f"--against={tmp_path}/E.npy"]
    flags += [] if given == "names beside" else [f"--labels={tmp_path}/L.txt"]
    assert main(["check", *flags, f"--json={tmp_path}/out.json"])
    said = "the people of 18 of 24 probes are among the anchors, 9 of 12 known people"
    assert said in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())["known_leaks"]
    assert (found["total"], found["people"], found["people_found"]) == (18, 12, 9)
    assert sorted(zip(found["first"], found["second"], strict=True)) == [
        (i, i // 2) for i in range(18)
    ]


def test_check_blames_the_label_that_is_no_integer(tmp_path):
    anchors = AnchorSet.from_embeddings(_faces(40, seed=9), labels=np.arange(40))
    anchors.save(tmp_path / "A.safetensors")
    np.save(tmp_path / "P.npy", _faces(5, seed=8))
    (tmp_path / "L.txt").write_text("0\n1\n2\n3x\n4\n")
    flags = [f"--anchors={tmp_path}/A.safetensors", f"--against={tmp_path}/P.npy"]
    flags += [f"--labels={tmp_path}/L.txt"]
    with pytest.raises(UserError, match=r"names .row 3 is '3x'., but the anchors have integer"):
        main(["check", *flags])
