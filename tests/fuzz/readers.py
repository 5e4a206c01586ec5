"""Every reader of users' files, with small files that it takes as seeds."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import artefacts, folders
from .remake import GZIP, JSON, ZIP
from .seeds import Reader, image, npy, npz, parquet, saved, unit


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("A/1.jpg", "B/2.jpg"):
            content = image(".jpg")
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("A/1.jpg", "B/2.jpg", "__MACOSX/A/._1.jpg"):
            archive.writestr(name, image(".jpg"))
    return out.getvalue()


# Tables -------------------------------------------------------------------------------------------


def _embeddings(path: Path) -> None:
    from ida_jax.tables.embeddings import read_embeddings

    np.asarray(read_embeddings(path).embeddings)


def _fingerprint() -> bytes:
    from ida_jax.tables.embeddings import file_stamp

    def stamp(path: Path) -> None:
        path.write_bytes(npy(unit(5)))
        path.write_text(json.dumps({"fingerprint": "0123456789abcdef", **file_stamp(path)}))

    return saved(stamp, "e.npy")


def _fingerprinted(path: Path) -> None:
    from ida_jax.tables.embeddings import read_embeddings

    beside = path.with_name("e.npy")
    beside.write_bytes(npy(unit(5)))
    read_embeddings(beside)


def _names(path: Path) -> None:
    from ida_jax.tables.embeddings import read_embeddings

    embeddings = path.with_name("e.npy")
    if not embeddings.exists():
        embeddings.write_bytes(npy(unit(3)))
    read_embeddings(embeddings, names=path)


def _pairs(path: Path) -> None:
    from ida_jax.tables.pair_lists import convert_pairs

    convert_pairs(path, path.with_name("converted.npy"), names=["a", "b", "c", "d"], rows=4)


def _rows(path: Path) -> None:
    from ida_jax.tables.pair_lists import PairFile

    PairFile(path).check(4)


def _labelled(reader: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        from ida_jax.tables import labelled_scores

        return getattr(labelled_scores, reader)(path)

    return read


def _people(path: Path) -> None:
    from ida_jax.tables.identities import read_people

    read_people(path)


def _identity_pairs(path: Path) -> None:
    from ida_jax.tables.identity_pairs import read_identity_pairs

    read_identity_pairs(path)


def _group_list(path: Path) -> None:
    from ida_jax.tables.groups import read_face_groups

    read_face_groups(path, ["a/a_0001", "b/b_0001"], 2)


# Images and data sets -----------------------------------------------------------------------------


def _decode(path: Path) -> None:
    from ida_jax.data.sources.image_files import decode

    decode(path.read_bytes(), where=str(path))


def _check(path: Path) -> None:
    from ida_jax.data.sources.jpeg import check_image

    check_image(path.read_bytes())


def _images(path: Path) -> None:
    from ida_jax.data.sources.image_files import open_images

    found = open_images(path)
    for row in range(min(len(found), 4)):
        found[row]


def _listed_images(path: Path) -> None:
    for name in ("A", "B"):
        home = path.with_name(name)
        home.mkdir(exist_ok=True)
        (home / "1.jpg").write_bytes(image(".jpg"))
    _images(path)


def _bin() -> list[bytes]:
    content = ([image(".jpg")] * 4, [True, False])
    arrays = ([np.frombuffer(i, np.uint8) for i in content[0]], content[1])
    seeds = [pickle.dumps(content, protocol) for protocol in (0, 2, 4)]
    return [*seeds, pickle.dumps(arrays, 2)]


def _read_bin(path: Path) -> None:
    from ida_jax.data.sources.verification_bin import read_verification_bin

    read_verification_bin(path)


def _record(key: int, label: float, content: bytes) -> bytes:
    payload = struct.pack("<IfQQ", 0, label, key, 0) + content
    return struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)


def _records() -> bytes:
    return b"".join(_record(key, float(key), image(".jpg")) for key in (1, 2))


def _index() -> bytes:
    return f"1\t0\n2\t{len(_record(1, 1.0, image('.jpg')))}\n".encode()


def _read_records(path: Path) -> None:
    from ida_jax.data.sources.recordio import read_recordio

    records, index = path.with_name("train.rec"), path.with_name("train.idx")
    if path != records:
        records.write_bytes(_records())
    if path != index:
        index.write_bytes(_index())
    faces = read_recordio(path.parent)
    for row in range(min(len(faces.images), 4)):
        faces.images[row]


def _landmarks(path: Path) -> None:
    from ida_jax.data.landmarks import read_landmarks

    read_landmarks(path)


_POINTS = " ".join(str(v) for v in (38.3, 51.7, 73.5, 51.5, 56.0, 71.7, 41.5, 92.4, 70.7, 92.2))


def _lfw_pairs(path: Path) -> None:
    from ida_jax.data.labelled_pairs import read_lfw_pairs

    read_lfw_pairs(path, [f"{n}/{n}_000{i}" for n in ("A", "B", "C") for i in (1, 2, 3)])


def _calfw_pairs(path: Path) -> None:
    from ida_jax.data.labelled_pairs import read_calfw_pairs

    read_calfw_pairs(path, ["A_0001.jpg", "A_0002.jpg", "B_0001.jpg", "C_0001.jpg"])


def _split(path: Path) -> None:
    from ida_jax.data.lfw_crops import read_split

    read_split(path)


# Protocols ----------------------------------------------------------------------------------------


def _ytf(path: Path) -> None:
    from ida_jax.protocols.ytf import read_ytf_splits

    read_ytf_splits(path)


def _ijb(path: Path) -> None:
    from ida_jax.protocols.ijb_files import read_galleries, read_ijb

    for name, content in _IJB.items():
        if path.name != name:
            path.with_name(name).write_bytes(content)
    meta = read_ijb(path.parent, subset="ijbc")
    read_galleries(path.parent, subset="ijbc", template_ids=meta.template_ids)


_IJB = {
    "ijbc_face_tid_mid.txt": b"1.jpg 1 11\n2.jpg 2 12\n3.jpg 3 13\n",
    "ijbc_template_pair_label.txt": b"1 2 1\n2 3 0\n1 3 0\n",
    "ijbc_name_5pts_score.txt": "".join(f"{i}.jpg {_POINTS} 0.9\n" for i in (1, 2, 3)).encode(),
    "ijbc_1N_gallery_G1.csv": b"TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,101,1.jpg\n",
    "ijbc_1N_gallery_G2.csv": b"TEMPLATE_ID,SUBJECT_ID,FILENAME\n2,102,2.jpg\n",
    "ijbc_1N_probe_mixed.csv": b"TEMPLATE_ID,SUBJECT_ID,FILENAME\n3,101,3.jpg\n",
}


def _ijb_file(name: str) -> Reader:
    return Reader(name, lambda: [_IJB[name]], _ijb)


def _megaface_list(path: Path) -> None:
    from ida_jax.protocols.megaface_files import read_image_list

    read_image_list(path)


def _noise_list(path: Path) -> None:
    from ida_jax.protocols.megaface_files import read_noise_list

    read_noise_list(path)


def _feature(path: Path) -> None:
    from ida_jax.protocols.megaface_files import read_feature

    read_feature(path)


_LABELS = [b"a\nb\na\n", b"1\n2\n1\n"]

READERS = {
    "embeddings_npy": Reader("e.npy", lambda: [npy(unit(5))], _embeddings),
    "embeddings_npz": Reader(
        "e.npz",
        lambda: list(npz(embeddings=unit(5), names=np.array(list("abcde")))),
        _embeddings,
        ZIP,
    ),
    "fingerprint": Reader(
        "e.fingerprint.json", lambda: [_fingerprint()], _fingerprinted, JSON
    ),
    "embeddings_parquet": Reader(
        "e.parquet",
        lambda: [
            parquet(name=list("abc"), embedding=unit(3).tolist()),
            parquet(x=[0.5, 0.25], y=[1.0, 0.0]),
        ],
        _embeddings,
    ),
    "names": Reader("names.txt", lambda: [b"a\nb b\nc\n", "é\nü\nñ\n".encode()], _names),
    "pairs_tsv": Reader("p.tsv", lambda: [b"a\tb\nc\td\n"], _pairs),
    "pairs_csv": Reader("p.csv", lambda: [b"a,b\nc,d\n", b"one,two\na,b\nc,d\n"], _pairs),
    "pairs_parquet": Reader(
        "p.parquet",
        lambda: [parquet(a=[0, 1], b=[2, 3]), parquet(a=["a", "b"], b=["c", "d"])],
        _pairs,
    ),
    "pairs_npy": Reader("p.npy", lambda: [npy(np.array([[0, 1], [2, 3]]))], _rows),
    "scores_npy": Reader("s.npy", lambda: [npy(np.float32([0, 1]))], _labelled("read_scores")),
    "scores_csv": Reader(
        "s.csv", lambda: [b"score\n0.5\n0.25\n", b"0.5\n0.25\n"], _labelled("read_scores")
    ),
    "scores_parquet": Reader(
        "s.parquet", lambda: [parquet(score=[0.5, 0.25])], _labelled("read_scores")
    ),
    "labels_npy": Reader("l.npy", lambda: [npy(np.array([0, 1]))], _labelled("read_labels")),
    "labels_csv": Reader("l.csv", lambda: [b"same\n0\n1\n"], _labelled("read_labels")),
    "groups": Reader("g.csv", lambda: [b"group\na\nb\n"], _labelled("read_groups")),
    "group_list": Reader(
        "g.csv", lambda: [b"person,group\na,x\nb,y\n", b"a,x\nb,y\n"], _group_list
    ),
    "group_list_txt": Reader("g.txt", lambda: [b"a x\nb y\n", b"a\tx\nb\ty\n"], _group_list),
    "identities_csv": Reader(
        "i.csv", lambda: [b"identity1,identity2\na,b\nc,d\n"], _labelled("read_named_identities")
    ),
    "identities_npy": Reader(
        "i.npy", lambda: [npy(np.array([[0, 1], [2, 3]]))], _labelled("read_named_identities")
    ),
    "identity_pairs": Reader(
        "p.csv",
        lambda: [b"# x\nA B\nC D\n", b'identity_1,identity_2,decision\n"A",B,same\nC,D,\n'],
        _identity_pairs,
    ),
    "people_text": Reader("l.txt", lambda: _LABELS, _people),
    "people_npy": Reader("l.npy", lambda: [npy(np.array([0, 1])), npy(np.array(["a"]))], _people),
    "jpeg": Reader("x.jpg", lambda: [image(".jpg")], _decode),
    "png": Reader("x.png", lambda: [image(".png")], _decode),
    "webp": Reader("x.webp", lambda: [image(".webp")], _decode),
    "bmp": Reader("x.bmp", lambda: [image(".bmp")], _decode),
    "checked_jpeg": Reader("x.jpg", lambda: [image(".jpg")], _check),
    "checked_png": Reader("x.png", lambda: [image(".png")], _check),
    "image_tar": Reader("x.tar", lambda: [_tar()], _images),
    "image_tgz": Reader("x.tgz", lambda: [gzip.compress(_tar())], _images, GZIP),
    "image_zip": Reader("x.zip", lambda: [_zip()], _images, ZIP),
    "image_list": Reader("x.txt", lambda: [b"A/1.jpg\nB/1.jpg\n"], _listed_images),
    "verification_bin": Reader("v.bin", _bin, _read_bin),
    "records": Reader("train.rec", lambda: [_records()], _read_records),
    "record_index": Reader("train.idx", lambda: [_index()], _read_records),
    "landmarks": Reader(
        "points.txt",
        lambda: [f"a.jpg {_POINTS}\nb.jpg {_POINTS}\n".encode(),
                 "\t".join(["a b.jpg", *_POINTS.split(), "0.9\n"]).encode()],
        _landmarks,
    ),
    "lfw_pairs": Reader(
        "pairs.txt", lambda: [b"2\t1\nA\t1\t2\nA\t1\tB\t1\nB\t1\t2\nC\t1\tB\t1\n"], _lfw_pairs
    ),
    "calfw_pairs": Reader(
        "pairs.txt",
        lambda: [
            b"A_0001.jpg 1\nA_0002.jpg 1\nA_0001.jpg 2\nA_0002.jpg 2\n"
            b"B_0001.jpg 0\nC_0001.jpg 0\nB_0001.jpg 0\nA_0001.jpg 0\n"
        ],
        _calfw_pairs,
    ),
    "lfw_split": Reader("s.csv", lambda: [b"identity,role,images\nA,train,2\nB,eval,1\n"], _split),
    "ytf_splits": Reader(
        "splits.txt",
        lambda: [b"split,pair,name,name,same\n1, 1, A/0, A/1, 1\n2, 1, A/0, B/0, 0\n"],
        _ytf,
    ),
    **{f"ijb_{name.split('_', 1)[1].rsplit('.', 1)[0]}": _ijb_file(name) for name in _IJB},
    "megaface_list": Reader(
        "list.json_10_1",
        lambda: [json.dumps({"path": ["a.jpg", "b.jpg"], "id": ["A", "B"]}).encode()],
        _megaface_list,
        JSON,
    ),
    "megaface_noises": Reader("noises.txt", lambda: [b"a.jpg\nb.jpg\n"], _noise_list),
    "megaface_feature": Reader(
        "a.bin",
        lambda: [np.array([2, 1, 4, 5], "<i4").tobytes() + np.float32([0.5, 0.25]).tobytes()],
        _feature,
    ),
    **artefacts.READERS,
    **folders.READERS,
}  # fmt: skip
