"""ida-jax anchors fake: from a generator or its images to a set; and users' mistakes."""

import json
import shutil
import subprocess
import sys
from functools import partial

import cv2
import jax
import numpy as np
import pytest
from environment import with_devices

from ida_jax.anchors import candidates as candidates_module
from ida_jax.anchors.__main__ import main
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.common.errors import UserError
from ida_jax.models.stylegan import GeneratorNetwork, draw_noise

SIZE, FACES = 32, 60
SIZES = {"resolution": 8, "latent_dim": 8, "style_dim": 8, "mapping_layers": 1,
         "channel_base": 64, "channel_max": 8}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(candidates_module, "_CHUNK", 64)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir as a run leaves it: model and generator of random weights, training embeddings."""
    folder = tmp_path_factory.mktemp("run")
    options = {"embedding_dim": 8}
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.float32)
    variables = _drawn(partial(build_network("iresnet_nano", options).init, train=False), image)
    model = FaceModel("iresnet_nano", options, Preprocessing(SIZE), variables)
    model.save(folder / "model.safetensors")
    generator = _generator(SIZE)
    generator.save(folder / "generator.safetensors")
    # Faces of the same kind: another row of the same generator.
    embeddings = model.embed(generator.faces(0, FACES, seed=9))
    train = folder / "embeddings" / f"train-{model.fingerprint}"
    train.mkdir(parents=True)
    np.save(train / "from-000000000.npy", embeddings[:40])
    np.save(train / "from-000000040.npy", embeddings[40:])
    np.save(train / "labels.npy", np.arange(FACES, dtype=np.int32))
    return folder


def _generator(image_size):
    noise = jax.eval_shape(lambda: draw_noise(jax.random.key(0), 1, SIZES["resolution"]))
    latents = jax.ShapeDtypeStruct((1, SIZES["latent_dim"]), np.float32)
    made = _drawn(GeneratorNetwork(**SIZES).init, latents, noise)
    provenance = {"title": "a made-up training", "faces": FACES}
    return FaceGenerator.of(SIZES, made["params"], image_size=image_size, provenance=provenance)


def _drawn(init, *inputs):
    """Random weights; a network's own would take seconds to compile."""
    rng = np.random.default_rng(0)

    def values(leaf):
        scale = np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else np.inf
        return ((scale == np.inf) + rng.normal(size=leaf.shape) / scale).astype(np.float32)

    return jax.tree.map(values, dict(jax.eval_shape(init, jax.random.key(0), *inputs)))


def _copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def _fake(output, run, *flags, source=None):
    given = () if source == () else source or (f"--generator={run}",)
    main(["fake", f"--output={output}", f"--model={run}", "--count=20", "--k=3", *given, *flags])


def _images(run, folder, *, count=70, seed=0):
    """What an external generator would leave: the generator's faces as files."""
    folder.mkdir()
    faces = FaceGenerator.load(run / "generator.safetensors").faces(0, count, seed=seed)
    for number, face in enumerate(faces):
        cv2.imwrite(str(folder / f"{number:03}.png"), face[:, :, ::-1])
    return folder


def test_from_a_runs_generator(run, tmp_path, capsys):
    output = tmp_path / "A.safetensors"
    _fake(output, run, "--seed=2", "--truncation=0.9", "--tau=2")
    anchors = AnchorSet.load(output)
    model = FaceModel.load(run / "model.safetensors")
    generator = FaceGenerator.load(run / "generator.safetensors")
    report = json.loads((tmp_path / "A.report.json").read_text())
    faces = generator.faces(0, 100, seed=2, truncation=0.9)[report["anchors"]]
    np.testing.assert_allclose(anchors.embeddings, model.embed(faces), atol=1e-5)
    assert (len(anchors), anchors.source, anchors.k, anchors.tau) == (20, "fake_db", 3, 2.0)
    assert anchors.fingerprint == model.fingerprint
    made = anchors.provenance["candidates"]
    assert made["generator"] == generator.fingerprint
    assert made["trained"] == generator.provenance
    assert (made["seed"], made["truncation"]) == (2, 0.9)
    assert anchors.provenance["privacy"] == "checked"
    assert anchors.provenance["training"]["faces"] == FACES
    assert anchors.provenance["training"]["people"] == FACES
    told = capsys.readouterr().out
    assert "20 anchors unlabelled, 8 wide, from fake_db" in told
    assert f"nearest of {FACES} training faces" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "A.report.html", "A.report.json", "A.safetensors"
    ]  # fmt: skip
    main(["info", f"--anchors={output}"])
    assert f"made of: generator {generator.fingerprint}, ψ = 0.9, seed 2" in capsys.readouterr().out


def test_from_an_external_generators_images(run, tmp_path, capsys):
    """The same faces as files give the same anchors; without training faces a warning comes."""
    _fake(tmp_path / "A.safetensors", run)
    images = _images(run, tmp_path / "images")
    train = f"--training={run}/embeddings/T.npz"
    model = FaceModel.load(run / "model.safetensors")
    parts = sorted((run / "embeddings" / f"train-{model.fingerprint}").glob("from-*.npy"))
    rows = np.concatenate([np.load(part) for part in parts])
    np.savez(run / "embeddings" / "T.npz", embeddings=rows, fingerprint=model.fingerprint)
    (tmp_path / "L.txt").write_text("".join(f"Zoë {i}\n" for i in range(FACES)))
    flags = (train, f"--training_labels={tmp_path}/L.txt")
    _fake(tmp_path / "B.safetensors", run, *flags, source=(f"--images={images}",))
    ours, theirs = (AnchorSet.load(tmp_path / f"{name}.safetensors") for name in "AB")
    np.testing.assert_allclose(ours.embeddings, theirs.embeddings, atol=1e-5)
    assert ours.provenance["thresholds"] == theirs.provenance["thresholds"]
    assert theirs.provenance["candidates"]["files"] == 70
    assert len(theirs.provenance["candidates"]["sha256"]) == 64
    assert "not checked" not in capsys.readouterr().err
    _fake(tmp_path / "C.safetensors", run, source=(f"--images={images}",))
    assert "warning: privacy: not checked" in capsys.readouterr().err
    unchecked = AnchorSet.load(tmp_path / "C.safetensors").provenance
    assert (unchecked["privacy"], unchecked["training"]) == ("not checked", None)


def test_training_crops_in_folders_of_persons(run, tmp_path):
    generator = FaceGenerator.load(run / "generator.safetensors")
    for number, face in enumerate(generator.faces(0, FACES, seed=9)):
        path = tmp_path / "crops" / f"person {number // 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), face[:, :, ::-1])
    _fake(tmp_path / "A.safetensors", run, "--flip", f"--training={tmp_path}/crops")
    made = AnchorSet.load(tmp_path / "A.safetensors").provenance
    assert made["training"]["faces"] == FACES
    assert made["training"]["people"] == FACES // 2
    assert made["flip"] is True
    assert not list(tmp_path.glob(".*"))


def test_a_killed_command_goes_on_and_ends_the_same(run, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates_module, "_CHUNK", 8)
    _fake(tmp_path / "A.safetensors", run)
    faces, drawn = FaceGenerator.faces, []

    def killed(self, first, count, **options):
        drawn.append(first)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return faces(self, first, count, **options)

    monkeypatch.setattr(FaceGenerator, "faces", killed)
    with pytest.raises(KeyboardInterrupt):
        _fake(tmp_path / "B.safetensors", run)
    assert [p.name for p in tmp_path.glob("*B*")] == [".B.safetensors.fake.parts"]
    _fake(tmp_path / "B.safetensors", run)
    assert drawn[:4] == [0, 8, 16, 16]
    ours, theirs = (AnchorSet.load(tmp_path / f"{name}.safetensors") for name in "AB")
    np.testing.assert_array_equal(ours.embeddings, theirs.embeddings)
    mine, other = (dict(each.provenance) for each in (ours, theirs))
    assert mine.pop("run").keys() == other.pop("run").keys()
    assert mine == other
    assert not list(tmp_path.glob(".*"))


def test_an_image_that_does_not_decode(run, tmp_path):
    images = _images(run, tmp_path / "images")
    (images / "003.png").write_bytes(b"no image")
    source = (f"--images={images}",)
    with pytest.raises(UserError, match=r"003\.png cannot be decoded.*; --skip_bad continues"):
        _fake(tmp_path / "A.safetensors", run, source=source)
    assert not list(tmp_path.glob("*A.*"))
    _fake(tmp_path / "A.safetensors", run, "--skip_bad", source=source)
    report = json.loads((tmp_path / "A.report.json").read_text())
    assert report["unreadable"] == ["003.png"]
    assert 3 not in report["anchors"]
    _replace(images / "005.png", np.zeros((40, 33, 3), np.uint8))
    with pytest.raises(UserError, match=r"005\.png is 33×40 pixels, the model takes 32×32"):
        _fake(tmp_path / "A.safetensors", run, "--skip_bad", source=source)


def _replace(path, image):
    cv2.imwrite(str(path), image)


def test_a_count_out_of_reach_leaves_an_earlier_output(run, tmp_path):
    output = tmp_path / "A.safetensors"
    _fake(output, run)
    before = output.read_bytes()
    with pytest.raises(UserError, match="of 20 anchors in 25 faces; dropped: "):
        _fake(output, run, "--duplicate_cosine=0.9", "--most_drawn=25")
    assert output.read_bytes() == before
    # What was embedded is kept for the next try, and not looked at after another generator's.
    _fake(output, run, "--duplicate_cosine=1", "--k=2")
    assert AnchorSet.load(output).k == 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--generator={run}", "--images={run}"), "exactly one of --generator and --images"),
        ((), "exactly one of --generator and --images"),
        (("--generator={run}", "--truncation=0"), "truncation is 0: expected 0 < ψ ≤ 1"),
        (("--generator={run}", "--truncation=1.5"), "truncation is 1.5: expected 0 < ψ ≤ 1"),
        (("--generator={run}", "--privacy_cosine=2"), "privacy_cosine is 2: expected a cosine"),
        (("--generator={run}", "--seed=-1"), "--seed: '-1': expected a whole number of 0 or more"),
        (("--generator={run}", "--tau=0"), "--tau is 0.0: expected a finite"),
        (("--generator={run}", "--k=21"), "k = 21 of 20 anchors"),
        (("--generator={run}", "--count=100", "--k=60"), "60 people, expected more than k = 60"),
        (("--generator={run}", "--output={tmp}/A.npy"), "a name that ends in .safetensors"),
        (("--generator={run}", "--output={tmp}/none/A.safetensors"), "no folder .*none to write"),
        (("--generator={run}", "--skip_bad"), "--skip_bad goes with --images"),
        (("--generator={tmp}",), "no file at .*generator.safetensors"),
        (("--generator={run}/model.safetensors",), "kind 'face_model', expected 'face_generator"),
        (("--generator={tmp}/G48.safetensors",), "crops of 48×48 pixels, the model takes 32×32"),
        (("--images={tmp}/none",), "no folder at .*none"),
        (("--images={tmp}/nested",), "holds folders, person the first: expected a generator's"),
        (("--images={tmp}/empty",), "no image in .*empty"),
        (("--images={tmp}/nested/person", "--seed=1"), "--seed go with --generator"),
        (("--images={tmp}/nested/person",), "20 anchors were asked for from 1 faces"),
        (("--generator={run}", "--training={tmp}/none.npy"), "no .* at .*none.npy"),
        (("--generator={run}", "--training={tmp}/other.npz"), "fingerprint.*the training faces'"),
        (("--generator={run}", "--training={tmp}/wide.npy"), "8 wide, the training faces' 12"),
        (
            ("--generator={run}", "--training={tmp}/same.npy", "--training_labels={tmp}/L.txt"),
            "L.txt: 2 labels for 60 embeddings",
        ),
        (
            ("--generator={run}", "--training={tmp}/nested", "--training_labels={tmp}/L.txt"),
            "crops are labelled by folders",
        ),
        (
            ("--images={tmp}/nested/person", "--training_labels={tmp}/L.txt"),
            "--training_labels goes with --training",
        ),
    ],
)  # fmt: skip
def test_mistakes(flags, match, run, tmp_path):
    rng = np.random.default_rng(0)
    _generator(48).save(tmp_path / "G48.safetensors") if "G48" in str(flags) else None
    np.savez(tmp_path / "other.npz", embeddings=rng.normal(size=(60, 8)), fingerprint="0" * 16)
    np.save(tmp_path / "wide.npy", rng.normal(size=(60, 12)))
    np.save(tmp_path / "same.npy", rng.normal(size=(60, 8)))
    (tmp_path / "L.txt").write_text("0\n1\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nested" / "person").mkdir(parents=True)
    _replace(tmp_path / "nested" / "person" / "1.png", np.zeros((SIZE, SIZE, 3), np.uint8))
    given = [flag.format(run=run, tmp=tmp_path) for flag in flags]
    with pytest.raises(UserError, match=match) as told:
        _fake(tmp_path / "A.safetensors", run, *given, source=())
    assert "\n" not in str(told.value)
    assert not [path for path in tmp_path.rglob("*A.*") if path.name[0] != "."]


def test_a_runs_embeddings_that_are_not_whole_or_of_another_flip(run, tmp_path, capsys):
    folder = _copy(run, tmp_path)
    train = next((folder / "embeddings").glob("train-*"))
    _fake(tmp_path / "A.safetensors", folder, "--flip")
    told = capsys.readouterr().err
    assert f"as {train.name}, and not as {train.name}-flip" in told
    assert "warning: privacy: not checked" in told
    (train / "from-000000040.npy").unlink()
    with pytest.raises(UserError, match="holds 40 of the 60 faces"):
        _fake(tmp_path / "A.safetensors", folder)
    (train / "from-000000000.npy").write_bytes(b"torn")
    with pytest.raises(UserError, match="does not hold whole files of embeddings"):
        _fake(tmp_path / "A.safetensors", folder)


def test_a_generators_file_finds_its_runs_embeddings(run, tmp_path):
    folder = _copy(run, tmp_path)
    (folder / "generators").mkdir()
    shutil.move(folder / "generator.safetensors", folder / "generators" / "step.safetensors")
    source = (f"--generator={folder}/generators/step.safetensors",)
    _fake(tmp_path / "A.safetensors", folder, source=source)
    assert AnchorSet.load(tmp_path / "A.safetensors").provenance["privacy"] == "checked"


def test_exit_codes_and_help_as_scripts_see_them(run, tmp_path):
    def command(*flags):
        return subprocess.run(
            [sys.executable, "-m", "ida_jax.anchors", "fake", *flags],
            capture_output=True, text=True, env=with_devices(1),
        )  # fmt: skip

    wrong = command(f"--output={tmp_path}/A.safetensors", f"--model={run}")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: expected exactly one of --generator and --images")
    assert wrong.stderr.count("\n") == 1
    told = command("--help")
    assert told.returncode == 0
    assert "the privacy check" in told.stdout
