"""A gallery's folder against a dict of what was enrolled, and searches in it against float64."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import Damaged, UserError
from ida_jax.rescoring import gallery as search_module
from ida_jax.rescoring import gallery_file as module
from ida_jax.rescoring.gallery import Gallery, identify
from ida_jax.rescoring.gallery_file import GalleryFile
from ida_jax.rescoring.gallery_segments import Joined
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.rescoring.terms import FaceTerms
from ida_jax.tables.score_origin import ScoreOrigin

WIDTH = 5
ORIGIN = ScoreOrigin("ida_r", settings={"k": 3, "tau": 1.5}, anchors="1 2", anchor_count=9)
TERMS = FaceTerms("dao", np.empty((0, 1), np.float32), np.float32([1.5]))


def _new(folder, dtype="float32"):
    return GalleryFile.new(
        folder, origin=ORIGIN, rule="dao", constants=TERMS.constants, width=WIDTH, dtype=dtype
    )


def _faces(count, seed):
    values = np.random.default_rng(seed).uniform(-3, -1, (count, 1)).astype(np.float32)
    return reference.unit((count, WIDTH), seed), values


def _content(file):
    """{name: (embedding, values)} of what is enrolled, in the rows' order."""
    rows = np.arange(file.rows) if file.enrolled is None else np.flatnonzero(file.enrolled)
    faces, values = np.asarray(file.embeddings), file.terms.values
    return {file.names[row]: (*faces[row].tolist(), *values[row].tolist()) for row in rows.tolist()}


NAMES = st.lists(st.sampled_from("abcdefghé"), unique=True, min_size=1, max_size=5)
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "replace", "delete", "compact"]), NAMES), max_size=10
)


@settings(max_examples=40)
@given(steps=STEPS)
def test_any_sequence_of_changes_is_that_of_a_dict(steps):
    folder = Path(tempfile.mkdtemp())
    before = module.SEGMENT
    module.SEGMENT = 4
    try:
        file, model = _new(folder), {}
        for number, (what, names) in enumerate(steps):
            known = [name for name in names if name in model]
            faces, values = _faces(len(names), number)
            new = {
                name: (*face.tolist(), *value.tolist())
                for name, face, value in zip(names, faces, values, strict=True)
            }
            blocks = [(faces[:2], values[:2]), (faces[2:], values[2:])]
            if what == "compact":
                file = file.compact()
                assert len(file.deleted) == 0
            elif what == "delete":
                if len(known) == len(names) and model:
                    file = file.delete(names)
                    model = {name: face for name, face in model.items() if name not in known}
                else:
                    with pytest.raises(UserError, match=r"is not enrolled.*nothing was deleted"):
                        file.delete(names)
            elif known and what == "append":
                with pytest.raises(UserError, match=r"enrolled in .* already.*--replace"):
                    file.append(names, blocks)
            else:
                file = file.append(names, blocks, replacing=what == "replace")
                model = {name: face for name, face in model.items() if name not in known} | new
            if (folder / module.LIST).exists():
                file = GalleryFile.open(folder)
                listed = {module.LIST, *file.segments, file.deleted_file} - {""}
                assert {path.name for path in folder.iterdir()} == listed
            assert list(_content(file).items()) == list(model.items())
            assert len(file) == len(model)
            found = file.find([*"abcdefgh", "é", "é", "nobody"])
            assert [row >= 0 for row in found] == [
                name in model for name in [*"abcdefgh", "é", "é", "nobody"]
            ]
            assert all(file.names[row] in model for row in found if row >= 0)
    finally:
        module.SEGMENT = before
        shutil.rmtree(folder)


def test_what_is_there_is_not_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT", 4)
    file = _new(tmp_path).append(list("abcdefghij"), [_faces(10, 0)])
    assert len(file.segments) == 3
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("segment-*")}
    file = file.append(["k"], [_faces(1, 1)]).delete(["a", "k"]).append(["a"], [_faces(1, 2)])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    # Only what is small or partly deleted is poured: two segments stay.
    _, second, third, *_ = file.segments
    first, *whole, last = file.compact().segments
    assert whole == [second, third]
    assert not {first, last} & set(file.segments)
    other = GalleryFile.open(tmp_path)
    GalleryFile.open(tmp_path).delete(["b"])
    with pytest.raises(UserError, match="changed since it was opened"):
        other.delete(["c"])


def test_a_change_that_is_cut_short_leaves_the_old_gallery_or_the_new(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT", 4)
    (tmp_path / "old").mkdir()
    _new(tmp_path / "old").append(list("abcdef"), [_faces(6, 0)]).delete(["b"])
    changes = {
        "append": lambda file: file.append(list("aghij"), [_faces(5, 1)], replacing=True),
        "delete": lambda file: file.delete(["a", "f"]),
        "compact": lambda file: file.compact(),
    }

    class Killed(BaseException):
        pass

    def killing(at):
        left = [at]

        def counted(change):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return change(*args, **kwargs)

            return call

        return counted

    for what, change in changes.items():
        (tmp_path / what).mkdir()
        states = []
        for at in range(20):
            folder = tmp_path / what / str(at)
            shutil.copytree(tmp_path / "old", folder)
            file = GalleryFile.open(folder)
            before, counted = _content(file), killing(at)
            with monkeypatch.context() as patched:
                patched.setattr(os, "replace", counted(os.replace))
                patched.setattr(Path, "unlink", counted(Path.unlink))
                try:
                    after = change(file)
                except Killed:
                    after = None
            states.append(_content(GalleryFile.open(folder)))
            if after is not None:
                break
        assert after is not None
        assert at >= 2
        assert all(state in (before, _content(after)) for state in states)
        assert states[0] == before
        assert states[-1] == _content(after)


def _best(stored, values, enrolled, probes, probe_terms):
    """Every score in float64, −inf where the face was deleted."""
    cosine = probes.astype(np.float64) @ stored.astype(np.float64).T
    own = np.logaddexp(values[:, 0].astype(np.float64), probe_terms.values.astype(np.float64))
    return np.where(enrolled, 1.5 * cosine + own, -np.inf)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1,), "float32"), ((3,), "float16"), ((4, 2), "float16")], ids=str
)
def test_searches_of_a_file_are_exact_for_what_is_stored(shape, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(search_module, "_PROBE_BLOCKS", (1, 4))
    monkeypatch.setattr(search_module, "_GALLERY_BLOCK", 16)
    monkeypatch.setattr(search_module, "_SLAB", 24)
    monkeypatch.setattr(module, "SEGMENT", 50)
    names = [f"face {i}" for i in range(217)]
    faces, values = _faces(217, 0)
    _new(tmp_path, dtype).append(names, [(faces, values)]).delete([*names[40:90], names[3]])
    gallery = Gallery.load(tmp_path)
    assert (len(gallery), gallery.width) == (166, WIDTH)
    assert gallery.embeddings.dtype == dtype
    probes = reference.unit((7, WIDTH), 1)
    own = TERMS._replace(values=_faces(7, 2)[1])
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, ("data", "model")[: len(shape)])
    every = _best(faces.astype(dtype), values, gallery.enrolled, probes, own)
    for top in (9, 166):
        found = identify(probes, own, gallery, top=top, mesh=mesh)
        assert (found.rows.dtype, found.scores.dtype) == (np.int64, np.float32)
        expected = -np.sort(-every, axis=1)[:, :top]
        np.testing.assert_allclose(found.scores, expected, rtol=0, atol=2e-6)
        of_rows = np.take_along_axis(every, found.rows, axis=1)
        np.testing.assert_allclose(of_rows, found.scores, rtol=0, atol=2e-6)
        assert all(len(set(rows)) == top for rows in found.rows.tolist())
        assert gallery.names_of(found.rows)[0, 0] == names[found.rows[0, 0]]


def test_rows_of_equal_faces_are_in_their_order_and_a_nan_matches_nobody(tmp_path):
    face = reference.unit((1, WIDTH), 0)
    terms = FaceTerms("dao", np.zeros((20, 1), np.float32), TERMS.constants)
    gallery = Gallery(np.repeat(face, 20, axis=0), terms)
    probes = np.concatenate([face, np.full_like(face, np.nan)])
    own = TERMS._replace(values=np.zeros((2, 1), np.float32))
    found = identify(probes, own, gallery, top=20)
    assert found.rows.tolist() == [list(range(20)), [-1] * 20]
    assert np.all(found.scores[1] == -np.inf)


def test_joined_arrays_are_read_as_one():
    arrays = [np.arange(3 * n).reshape(n, 3) for n in (4, 0, 1, 7)]
    joined, whole = Joined(arrays), np.concatenate(arrays)
    assert joined.shape == whole.shape
    for start in range(13):
        for stop in range(start, 14):
            np.testing.assert_array_equal(joined[start:stop], whole[start:stop])
    rows = np.array([11, 0, 4, 4, 5])
    np.testing.assert_array_equal(joined[rows], whole[rows])
    assert np.shares_memory(joined[5:9], arrays[3])


@pytest.fixture(scope="module")
def scorer():
    return Rescorer(AnchorSet.from_embeddings(reference.unit((60, WIDTH), 9), fingerprint="m"), k=3)


def test_a_saved_gallery_scores_as_that_in_memory(scorer, tmp_path):
    faces, probes = reference.unit((33, WIDTH), 0), reference.unit((4, WIDTH), 1)
    gallery = scorer.gallery(3 * faces, names=[f"p{i}" for i in range(33)])
    gallery.save(str(tmp_path / "G"))
    loaded = Gallery.load(tmp_path / "G", verify=True)
    assert loaded.origin == gallery.origin
    for one, other in zip(
        scorer.identify(probes, gallery, top=5), scorer.identify(probes, loaded, top=5), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert loaded.names_of(np.array([[2, -1]])).tolist() == [["p2", None]]
    with pytest.raises(UserError, match=r"a gallery is in .* already"):
        gallery.save(str(tmp_path / "G"))
    with pytest.raises(UserError, match="a gallery is saved with names"):
        scorer.gallery(faces).save(tmp_path / "H")
    with pytest.raises(UserError, match="2 names for 33 gallery faces"):
        scorer.gallery(faces, names=["a", "b"])
    other = Rescorer(scorer.anchors, k=4, tau=2.0)
    with pytest.raises(UserError, match="made with k = 3, not 4; tau = 1, not 2"):
        other.identify(probes, loaded, top=5)
    assert not (tmp_path / "H").exists()


@pytest.mark.parametrize("what", ["list", "segment", "missing", "deleted"])
def test_damage_is_named(what, tmp_path):
    file = _new(tmp_path).append(list("abc"), [_faces(3, 0)]).delete(["b"])
    damaged = tmp_path / {
        "list": module.LIST, "segment": file.segments[0], "missing": file.segments[0],
        "deleted": file.deleted_file,
    }[what]  # fmt: skip
    if what == "missing":
        damaged.unlink()
    elif what == "list":
        damaged.write_text(damaged.read_text().replace('"tau": 1.5', '"tau": 2.5'))
    else:
        content = bytearray(damaged.read_bytes())
        content[-3] ^= 1
        damaged.write_bytes(content)
    with pytest.raises(Damaged, match="damaged"):
        GalleryFile.open(tmp_path)


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"no gallery at .*: it is not a folder; make one by"):
        Gallery.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"no gallery at .*: it has no gallery.json"):
        Gallery.load(tmp_path)
    with pytest.raises(UserError, match="dtype 'int8' is unknown"):
        _new(tmp_path, "int8")
    file = _new(tmp_path)
    for names, message in ((["a", "a"], "'a' is the name of two faces"), (["", "a"], "is empty")):
        with pytest.raises(UserError, match=message):
            file.append(names, [_faces(2, 0)])
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds files, and none is gallery.json"):
        _new(tmp_path)
    with pytest.raises(UserError, match="the gallery has no names"):
        Gallery(_faces(2, 0)[0], TERMS).names_of(np.array([0]))
