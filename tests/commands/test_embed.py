"""ida-jax embed: images in, embeddings out; resumed, aligned, and mistakes."""

import os
import signal
import subprocess
import sys
import tarfile

import cv2
import jax
import numpy as np
import pytest
from drawn import drawn_variables

from ida_jax import embed as module
from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.artefacts.uncertainty_model import UncertaintyModel
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings
from ida_jax.data.alignment import ARCFACE_POINTS, align
from ida_jax.data.degrade import degradation, degraded
from ida_jax.embed import main
from ida_jax.interop.weights import import_model
from ida_jax.models.uncertainty_network import UncertaintyNetwork
from ida_jax.tables.embeddings import read_embeddings

OPTIONS = {"embedding_dim": 8}
SIZE = 32
NAMES = [f"p{i % 3}/{i:02}.png" for i in range(11)]


@pytest.fixture(scope="module")
def model():
    """A tiny model of random weights."""
    network = build_network("iresnet_nano", dict(OPTIONS))
    variables = drawn_variables(network, (1, SIZE, SIZE, 3))
    return FaceModel("iresnet_nano", OPTIONS, Preprocessing(SIZE), variables)


@pytest.fixture(scope="module")
def model_dir(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save(folder / "model.safetensors")
    return folder


@pytest.fixture
def crops(tmp_path):
    """NAMES in tmp_path/crops, and their pixels by name."""
    return {name: _write(tmp_path / "crops" / name, seed) for seed, name in enumerate(NAMES)}


def _write(path, seed, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    cv2.imwrite(str(path), image[..., ::-1])
    return image


def _embed(tmp_path, model, *flags, images="crops", output="E.npy"):
    main([f"--model={model}", f"--images={tmp_path / images}", f"--output={tmp_path / output}",
          "--batch_size=8", *map(str, flags)])  # fmt: skip
    return tmp_path / output


def _hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("flip", [False, True])
def test_raw_embeddings_are_those_that_embed_normalises(model, flip):
    images = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    raw = model.raw_embeddings(images, flip=flip, batch_size=8)
    assert raw.dtype == np.float32
    unit = model.embed(images, flip=flip, batch_size=8)
    np.testing.assert_array_equal(unit_embeddings(raw), unit)
    assert np.ptp(np.linalg.norm(raw, axis=1)) > 1e-3
    if flip:
        both = [model.raw_embeddings(x, batch_size=8) for x in (images, images[:, :, ::-1])]
        np.testing.assert_allclose(raw, both[0] + both[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_folder(tmp_path, model_dir, model, crops, suffix, flip, capsys):
    flags = ["--flip"] if flip else []
    path = _embed(tmp_path, model_dir, *flags, output=f"E{suffix}")
    listed = tmp_path / "E.names.txt" if suffix == ".npy" else None
    read = read_embeddings(path, names=listed)
    assert read.names == sorted(NAMES)
    assert read.fingerprint == model.fingerprint
    assert read.embeddings.dtype == np.float32
    images = [crops[name] for name in sorted(NAMES)]
    expected = model.raw_embeddings(images, flip=flip, batch_size=8)
    np.testing.assert_allclose(read.embeddings, expected, rtol=1e-4, atol=1e-5)
    assert "11 embeddings of 8 numbers" in capsys.readouterr().out
    assert not _hidden(tmp_path)
    for beside in ("names.txt", "fingerprint.json"):
        assert (tmp_path / f"E.{beside}").exists() == (suffix == ".npy")
    assert not (tmp_path / "E.skipped.txt").exists()


def test_a_tar_and_a_list_in_its_order(tmp_path, model_dir, crops):
    by_name = dict(zip(sorted(NAMES), np.load(_embed(tmp_path, model_dir)), strict=True))
    with tarfile.open(tmp_path / "crops.tar", "w") as archive:
        archive.add(tmp_path / "crops", ".")
    from_tar = np.load(_embed(tmp_path, model_dir, images="crops.tar", output="T.npy"))
    np.testing.assert_array_equal(from_tar, list(by_name.values()))
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in NAMES))
    path = _embed(tmp_path, model_dir, f"--root={tmp_path}/crops", images="list.txt")
    np.testing.assert_allclose(np.load(path), [by_name[name] for name in NAMES], atol=1e-5)
    assert (tmp_path / "E.names.txt").read_text().split() == NAMES


def _points(seed):
    """Five points somewhere in a picture of 60 pixels."""
    rng = np.random.default_rng(seed)
    angle, scale = rng.uniform(-0.4, 0.4), rng.uniform(0.3, 0.4)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.round((ARCFACE_POINTS - 56) @ turn.T + 30 + rng.normal(0, 0.5, (5, 2)), 2)


def _landmarks(path, names):
    points = {name: " ".join(map(str, _points(seed).ravel())) for seed, name in names.items()}
    path.write_text("".join(f"{name} {row} 0.9\n" for name, row in points.items()))


@pytest.mark.parametrize("images", ["pictures", "landmarks.txt"])
@pytest.mark.parametrize("folder", ["", "lfw/"])
def test_landmarks_align(tmp_path, model_dir, model, images, folder):
    places = {seed: f"p/{seed}.png" for seed in (3, 1, 2)}
    pictures = {
        seed: _write(tmp_path / "pictures" / folder / name, seed, size=60)
        for seed, name in places.items()
    }
    _landmarks(tmp_path / "landmarks.txt", places)
    flags = [f"--landmarks={tmp_path}/landmarks.txt"]
    if images == "landmarks.txt":
        flags.append(f"--root={tmp_path}/pictures/{folder}")
    path = _embed(tmp_path, model_dir, *flags, images=images)
    order = (1, 2, 3) if images == "pictures" else (3, 1, 2)
    aligned = [align(pictures[seed], _points(seed), size=SIZE) for seed in order]
    expected = model.raw_embeddings(aligned, batch_size=8)
    np.testing.assert_allclose(np.load(path), expected, rtol=1e-4, atol=1e-5)


def test_file_names_that_are_not_unique_find_no_points(tmp_path, model_dir):
    for person in "ab":
        _write(tmp_path / "pictures" / person / "1.png", 0, size=60)
    _landmarks(tmp_path / "L.txt", {1: "1.png"})
    with pytest.raises(UserError, match=r"L.txt has no points for 2 of 2 images, a/1.png"):
        _embed(tmp_path, model_dir, f"--landmarks={tmp_path}/L.txt", images="pictures")


def test_what_is_bad_is_named_or_skipped(tmp_path, model_dir, crops, capsys):
    good = np.load(_embed(tmp_path, model_dir))
    (tmp_path / "crops" / "p0" / "00.png").write_bytes(b"no image")
    (tmp_path / "crops" / "p2" / "08.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"image .*p0/00.png cannot be decoded.*--skip_bad"):
        _embed(tmp_path, model_dir)
    assert not _hidden(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "E.npy"), good)
    capsys.readouterr()
    embeddings = np.load(_embed(tmp_path, model_dir, "--skip_bad"))
    bad = np.isin(sorted(NAMES), ["p0/00.png", "p2/08.png"])
    np.testing.assert_array_equal(np.isnan(embeddings).all(axis=1), bad)
    np.testing.assert_array_equal(embeddings[~bad], good[~bad])
    lines = (tmp_path / "E.skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["p0/00.png", "p2/08.png"]
    assert all("cannot be decoded" in line for line in lines)
    assert "2 of them are NaN, which never match: p0/00.png, p2/08.png" in capsys.readouterr().out
    _write(tmp_path / "crops" / "p0" / "00.png", 0)
    _write(tmp_path / "crops" / "p2" / "08.png", 8)
    np.testing.assert_array_equal(np.load(_embed(tmp_path, model_dir)), good)
    assert not (tmp_path / "E.skipped.txt").exists()


def test_images_without_points_and_with_impossible_ones(tmp_path, model_dir):
    names = {seed: f"{seed}.png" for seed in range(3)}
    for seed, name in names.items():
        _write(tmp_path / "pictures" / name, seed, size=60)
    text = "0.png " + "7 " * 10 + "\n"
    _landmarks(tmp_path / "L.txt", {2: "2.png"})
    (tmp_path / "L.txt").write_text(text + (tmp_path / "L.txt").read_text().replace(" 0.9", ""))
    flag = f"--landmarks={tmp_path}/L.txt"
    with pytest.raises(UserError, match=r"no points for 1 of 3 images, 1.png the first"):
        _embed(tmp_path, model_dir, flag, images="pictures")
    path = _embed(tmp_path, model_dir, flag, "--skip_bad", images="pictures")
    assert np.isnan(np.load(path)).all(axis=1).tolist() == [True, True, False]
    first, second = (tmp_path / "E.skipped.txt").read_text().splitlines()
    assert "0.png: the five points give no alignment" in first
    assert second.endswith("1.png has no landmarks")
    (tmp_path / "pictures" / "1.png").unlink()
    with pytest.raises(UserError, match=r"image .*0.png: the five points give no alignment"):
        _embed(tmp_path, model_dir, flag, images="pictures")


def test_a_wrong_size_is_never_skipped(tmp_path, model_dir, crops):
    _write(tmp_path / "crops" / "p0" / "03.png", 0, size=40)
    message = r"03.png is 40×40 pixels, the model takes 32×32: give --landmarks"
    for flags in ([], ["--skip_bad"]):
        with pytest.raises(UserError, match=message):
            _embed(tmp_path, model_dir, *flags)
    assert not _hidden(tmp_path)


def test_an_embedding_of_nothing_is_named_by_image(tmp_path, model, crops):
    variables = jax.tree.map(lambda x: np.full_like(x, np.nan), model.variables)
    broken = FaceModel("iresnet_nano", OPTIONS, Preprocessing(SIZE), variables)
    broken.save(tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"p0/00.png: its embedding is zero, NaN or infinite"):
        _embed(tmp_path, tmp_path / "nan.safetensors")
    embeddings = np.load(_embed(tmp_path, tmp_path / "nan.safetensors", "--skip_bad"))
    assert np.isnan(embeddings).all()
    assert len((tmp_path / "E.skipped.txt").read_text().splitlines()) == len(NAMES)


def _count_embedded(monkeypatch):
    embedded = []
    whole = FaceModel.raw_embeddings

    def counted(self, images, **options):
        embedded.append(len(images))
        return whole(self, images, **options)

    monkeypatch.setattr(FaceModel, "raw_embeddings", counted)
    return embedded


def test_parts_are_not_made_again(tmp_path, model_dir, crops, monkeypatch):
    expected = np.load(_embed(tmp_path, model_dir, output="whole.npy"))
    monkeypatch.setattr(module, "_PART", 8)
    embedded = _count_embedded(monkeypatch)
    tenth = tmp_path / "crops" / sorted(NAMES)[9]
    content = tenth.read_bytes()
    times = tenth.stat()
    tenth.write_bytes(bytes(len(content)))
    os.utime(tenth, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match="cannot be decoded"):
        _embed(tmp_path, model_dir)
    assert not (tmp_path / "E.npy").exists()
    assert len(_hidden(tmp_path)) == 1
    # Skipped, the same job goes on; and not skipped, only the part with what was skipped is new.
    assert np.isnan(np.load(_embed(tmp_path, model_dir, "--skip_bad"))).any(axis=1).sum() == 1
    assert embedded == [8, 3, 3]
    assert not _hidden(tmp_path)
    tenth.write_bytes(content)
    np.testing.assert_allclose(np.load(_embed(tmp_path, model_dir)), expected, atol=1e-5)
    assert embedded == [8, 3, 3, 8, 3]


def test_skipped_parts_are_made_again_without_the_flag(tmp_path, model_dir, crops, monkeypatch):
    monkeypatch.setattr(module, "_PART", 8)
    embedded = _count_embedded(monkeypatch)
    (tmp_path / "crops" / sorted(NAMES)[9]).write_bytes(b"no image")
    monkeypatch.setattr(module, "_put_together", _stop)
    with pytest.raises(RuntimeError):
        _embed(tmp_path, model_dir, "--skip_bad")
    with pytest.raises(UserError, match="cannot be decoded"):
        _embed(tmp_path, model_dir)
    assert embedded == [8, 3, 3]


def _stop(*_):
    raise RuntimeError


def test_a_changed_input_starts_anew(tmp_path, model_dir, crops, monkeypatch):
    embedded = _count_embedded(monkeypatch)
    together = module._put_together
    monkeypatch.setattr(module, "_put_together", _stop)
    with pytest.raises(RuntimeError):
        _embed(tmp_path, model_dir)
    _write(tmp_path / "crops" / NAMES[4], 99)
    os.utime(tmp_path / "crops" / NAMES[4], ns=(1, 1))
    monkeypatch.setattr(module, "_put_together", together)
    _embed(tmp_path, model_dir)
    assert embedded == [11, 11]
    assert not _hidden(tmp_path)  # the other job's parts too


@pytest.mark.bits
def test_shards_make_the_same_bytes(tmp_path, model_dir, crops, monkeypatch, capsys):
    monkeypatch.setattr(module, "_PART", 2)
    flags = ("--batch_size=2",)
    _embed(tmp_path, model_dir, *flags, output="alone.npy")
    for shard in ("2/3", "0/3"):
        _embed(tmp_path, model_dir, *flags, f"--shard={shard}")
    with pytest.raises(UserError, match="shard 1/3 is not finished: run --shard=1/3"):
        _embed(tmp_path, model_dir, *flags, "--join")
    for sharing in ("--shard=1/3", "--join"):
        with pytest.raises(UserError, match=r"shards of other settings \(flip was False, is now"):
            _embed(tmp_path, model_dir, *flags, "--flip", sharing)
    assert not (tmp_path / "E.npy").exists()
    capsys.readouterr()
    _embed(tmp_path, model_dir, *flags, "--shard=1/3")
    assert "shard 1/3: 4 of 11 embeddings" in capsys.readouterr().out
    _embed(tmp_path, model_dir, *flags, "--join")
    for name in ("{}.npy", "{}.names.txt", "{}.fingerprint.json"):
        made, alone = (tmp_path / name.format(of) for of in ("E", "alone"))
        assert made.read_bytes() == alone.read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    with pytest.raises(UserError, match=r"E\.npy has no shards to join"):
        _embed(tmp_path, model_dir, *flags, "--join")


def test_killed_it_goes_on(tmp_path, model_dir, crops):
    expected = np.load(_embed(tmp_path, model_dir, output="whole.npy"))
    code = (
        "import sys, time; from ida_jax import embed; embed._PART = 8\n"
        "save = embed._save_part\n"
        "embed._save_part = lambda *a: (save(*a), print('saved', flush=True), time.sleep(60))\n"
        "embed.main(sys.argv[1:])"
    )
    flags = [f"--model={model_dir}", f"--images={tmp_path}/crops", f"--output={tmp_path}/E.npy",
             "--batch_size=8"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"saved\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "E.npy").exists()
    lock, parts = sorted(_hidden(tmp_path), key=lambda name: name.endswith(".parts"))[-2:]
    assert lock.endswith(".lock")
    assert os.listdir(tmp_path / parts) == ["from-000000000.npy"]
    marked = tmp_path / parts / "from-000000000.npy"
    np.save(marked, np.load(marked) + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PART", 8)
        embeddings = np.load(_embed(tmp_path, model_dir))
    np.testing.assert_allclose(embeddings[:8], expected[:8] + 1, atol=1e-5)
    np.testing.assert_allclose(embeddings[8:], expected[8:], atol=1e-5)
    assert not _hidden(tmp_path)


def test_mistakes(tmp_path, model_dir, crops):
    (tmp_path / "folder.npy").mkdir()
    for model, flags, message in (
        (model_dir, {"output": "E.csv"}, r"ends in '.csv': embeddings are one of .npy, .npz"),
        (model_dir, {"output": "absent/E.npy"}, "no folder .*absent; make it first"),
        (model_dir, {"output": "folder.npy"}, "it is a folder"),
        (model_dir, {"images": "absent"}, "no images at"),
        (tmp_path, {}, r"no file at .*model.safetensors"),
        (tmp_path / "w.onnx", {}, r"w.onnx: expected a workdir .*ida-jax export"),
    ):
        with pytest.raises(UserError, match=message):
            _embed(tmp_path, model, **flags)
    for flag, message in (
        ("--batch_size=0", "expected 1 or more"),
        ("--root=x", "--root=x is for lists"),
        ("--landmarks=absent.txt", "no landmarks at absent.txt"),
        ("--flipp", "unknown flag '--flipp': did you mean --flip"),
    ):
        with pytest.raises(UserError, match=message):
            _embed(tmp_path, model_dir, flag)
    assert not _hidden(tmp_path)


def test_the_mobilefacenet_on_lfw(shared_data, tmp_path):
    import_model(shared_data / "weights" / "mobilefacenet.npz").save(tmp_path / "m.safetensors")
    names = (shared_data / "lfw" / "names.txt").read_text().split()
    wanted = names[::66]
    with tarfile.open(shared_data / "lfw" / "lfw_112.tar") as archive:
        members = [m for m in archive if m.name[2:].removesuffix(".jpg") in set(wanted)]
        archive.extractall(tmp_path / "crops", members, filter="data")
    (tmp_path / "list.txt").write_text("".join(f"{name}.jpg\r\n" for name in wanted))
    flags = [f"--root={tmp_path}/crops", "--batch_size=64"]
    path = _embed(tmp_path, tmp_path / "m.safetensors", *flags, images="list.txt")
    ours = np.load(path)
    row = {name: i for i, name in enumerate(names)}
    given = np.load(shared_data / "lfw" / "mobilefacenet_embeddings.npy")
    theirs = given[[row[name] for name in wanted]]
    assert len(ours) == 201
    # Not only the direction: the norms are the network's.
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    cosines = np.sum(unit_embeddings(ours) * unit_embeddings(theirs), axis=1)
    assert cosines.min() > 0.9999


@pytest.fixture
def uncertainty(model, tmp_path):
    """A module of random weights that belongs to the model, as a file."""
    module = UncertaintyNetwork(embedding_dim=8, hidden=5)
    variables = drawn_variables(module, (1, SIZE // 16, SIZE // 16, 128))
    variables["params"]["scale"] = np.float32(1.5)  # variances that differ
    made = UncertaintyModel(jax.tree.map(np.asarray, variables), model.fingerprint)
    made.save(tmp_path / "pfe.safetensors")
    return made


@pytest.mark.parametrize("flip", [[], ["--flip"]])
def test_log_variances_lie_beside_the_same_embeddings(
    model, model_dir, uncertainty, crops, tmp_path, flip, capsys
):
    plain = np.load(_embed(tmp_path, model_dir, *flip, output="plain.npy"))
    output = _embed(tmp_path, model_dir, *flip, f"--pfe={tmp_path / 'pfe.safetensors'}")
    assert "log-variances in" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(output), plain, rtol=1e-5, atol=1e-6)
    images = [crops[name] for name in sorted(crops)]
    expected = uncertainty.embed(model, images, flip=bool(flip), batch_size=8)
    found = np.load(tmp_path / "E.log_variances.npy")
    np.testing.assert_allclose(found, expected.log_variances, rtol=1e-5)
    assert np.ptp(found) > 0.1
    assert _hidden(tmp_path) == []
    # Embedded again without them, old ones do not stay beside the new embeddings.
    _embed(tmp_path, model_dir, *flip)
    assert not (tmp_path / "E.log_variances.npy").exists()


def test_a_kill_leaves_no_variances_of_other_embeddings(
    model_dir, uncertainty, crops, tmp_path, monkeypatch
):
    flags = [tmp_path, model_dir, f"--pfe={tmp_path / 'pfe.safetensors'}"]
    _embed(*flags)
    before = np.load(tmp_path / "E.log_variances.npy")

    embeddings = (tmp_path / "E.npy").read_bytes()
    replace = os.replace

    for name, old in (("E.names.txt", True), ("E.log_variances.npy", False), ("E.npy", False)):

        def killed(source, target, name=name):
            if target.name == name:
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                _embed(*flags, "--flip")
        # Those of before stand with their own variances, or not at all.
        assert not (tmp_path / "E.npy").exists()
        assert not old or np.array_equal(np.load(tmp_path / "E.log_variances.npy"), before)
        (tmp_path / "E.npy").write_bytes(embeddings)
    _embed(*flags, "--flip")
    assert np.abs(np.load(tmp_path / "E.log_variances.npy") - before).max() > 1e-3


def test_a_skipped_image_has_no_variance(model_dir, uncertainty, crops, tmp_path):
    (tmp_path / "crops" / NAMES[4]).write_bytes(b"no image")
    pfe = f"--pfe={tmp_path / 'pfe.safetensors'}"
    output = _embed(tmp_path, model_dir, "--skip_bad", pfe)
    bad = np.isnan(np.load(output)).all(axis=1)
    np.testing.assert_array_equal(np.isnan(np.load(tmp_path / "E.log_variances.npy")).any(1), bad)
    assert bad.sum() == 1


def test_the_module_of_another_model_is_refused(model_dir, uncertainty, crops, tmp_path):
    other = UncertaintyModel(uncertainty.variables, "0123456789abcdef")
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="the uncertainty module's 0123456789abcdef"):
        _embed(tmp_path, model_dir, f"--pfe={tmp_path / 'other.safetensors'}")
    with pytest.raises(UserError, match="expected the uncertainty_module file"):
        _embed(tmp_path, model_dir, f"--pfe={tmp_path / 'nowhere.safetensors'}")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "crops", "other.safetensors", "pfe.safetensors"
    ]  # fmt: skip


def test_degraded_copies(tmp_path, model, model_dir, crops):
    flags = ("--degrade=blur:strong,jpeg", "--degrade_seed=4", "--batch_size=4")
    found = read_embeddings(_embed(tmp_path, model_dir, *flags))
    how = degradation("blur:strong,jpeg", seed=4)
    images = [degraded(crops[name], how, number=row) for row, name in enumerate(sorted(crops))]
    np.testing.assert_allclose(found.embeddings, model.raw_embeddings(images), atol=1e-5)
    other = read_embeddings(_embed(tmp_path, model_dir, *flags[:1], output="F.npy"))
    assert np.abs(other.embeddings - found.embeddings).max() > 1e-3
    for flags, message in (
        (("--degrade=fog",), "--degrade is 'fog', in which 'fog' is not understood"),
        (("--degrade", "--degrade_seed=-1"), "--degrade_seed=-1: expected 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            _embed(tmp_path, model_dir, *flags, output="G.npy")
