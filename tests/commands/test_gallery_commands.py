"""enrol and identify, from files to a file, against Rescorer's pairs and brute force."""

import csv
import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
import reference

from ida_jax import enrol, identify
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.calibration import fit_calibration
from ida_jax.common.errors import UserError
from ida_jax.rescoring import identify_job
from ida_jax.rescoring.gallery import Gallery
from ida_jax.rescoring.gallery_file import GalleryFile
from ida_jax.rescoring.rescorer import Rescorer

PEOPLE = [f"p{i:02}" for i in range(23)]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Faces G of 23 people, 4 probes P of each of 29 people, anchors A and X, wide ones W."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    centres = reference.unit((29, 8), 1, clusters=4)
    raw = {"G": centres[:23], "P": np.repeat(centres, 4, axis=0)}
    for name, faces in raw.items():
        noisy = faces + 0.3 * rng.normal(size=faces.shape)
        np.save(f"{name}.npy", (noisy * rng.uniform(2, 9, (len(faces), 1))).astype(np.float32))
    np.save("A.npy", reference.unit((40, 8), 2))
    np.save("X.npy", reference.unit((40, 8), 3))
    np.save("W.npy", reference.unit((5, 9), 3))
    np.save("zero.npy", np.float32([[1] * 8, [0] * 8]))
    (tmp_path / "G.txt").write_text("".join(f"{name}\n" for name in PEOPLE))
    people = [*PEOPLE, *(f"stranger{i}" for i in range(6))]
    (tmp_path / "L.txt").write_text("".join(f"{name}\n" * 4 for name in people))
    (tmp_path / "two.txt").write_text("p03\np99\n")
    return tmp_path


def _enrol(flags="", gallery="G"):
    enrol.main(f"--gallery={gallery} {flags}".split())


def _first(flags="--anchors=A.npy --k=3"):
    _enrol(f"--embeddings=G.npy --names=G.txt {flags}")


def _identify(flags="", output="O.parquet", anchors="--anchors=A.npy"):
    identify.main(f"--gallery=G --probes=P.npy {anchors} --output={output} {flags}".split())
    if output.endswith(".csv"):
        with open(output, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return parquet.read_table(output).to_pylist()


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("ida_r", "float32"), ("ida_r", "float16"), ("z_norm", "float32"), ("cosine", "float32"),
     ("ida_q_label_free", "float32")],
)  # fmt: skip
def test_candidates_are_the_best_pairs(method, dtype, files, capsys):
    anchors = "" if method == "cosine" else "--anchors=A.npy"
    _first(f"{anchors} --method={method} --dtype={dtype}")
    assert f"23 faces enrolled by {method} in G; it holds 23" in capsys.readouterr().out
    found = _identify("--top=4", anchors=anchors)
    scorer = Rescorer(AnchorSet.from_embeddings(np.load("A.npy")), method=method)
    probes, faces = np.load("P.npy"), np.load("G.npy")
    # Of float16 the cosines are those of what is stored, with the terms of what was given.
    pairs = np.indices((len(probes), 23)).reshape(2, -1)
    every = scorer.score(faces[pairs[1]], probes[pairs[0]]).reshape(-1, 23).astype(np.float64)
    if dtype == "float16":
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (probes, faces)]
        stored = Gallery.load("G").embeddings[:].astype(np.float64)
        every += unit[0] @ (stored - unit[1]).T
    assert len(found) == 4 * len(probes)
    for row, lines in enumerate(found[at : at + 4] for at in range(0, len(found), 4)):
        best = np.argsort(-every[row])[:4]
        assert [line["name"] for line in lines] == [PEOPLE[face] for face in best]
        np.testing.assert_allclose([line["score"] for line in lines], every[row, best], atol=1e-5)
        assert [(line["probe"], line["rank"]) for line in lines] == [(row, r) for r in (1, 2, 3, 4)]


def test_the_gallery_grows_and_is_deleted_from(files, capsys):
    _first()
    _first()
    assert "0 faces enrolled by ida_r in G; 23 were enrolled already" in capsys.readouterr().out
    np.save("H.npy", np.load("G.npy")[::-1].copy())
    before = GalleryFile.open("G").segments
    with pytest.raises(
        UserError, match=r"'p00' and 21 others are enrolled in G already.*--replace"
    ):
        _enrol("--embeddings=H.npy --names=G.txt --anchors=A.npy")
    assert GalleryFile.open("G").segments == before
    # The middle face is its own mirror image.
    _enrol("--embeddings=H.npy --names=G.txt --anchors=A.npy --replace")
    said = capsys.readouterr().out
    assert "22 faces enrolled by ida_r in G, 22 of them in place of others; 1 were" in said
    _enrol("--delete=two.txt")
    said = capsys.readouterr()
    assert "1 face deleted from G; it holds 22" in said.out
    assert "'p99' is not enrolled" in said.err
    file = GalleryFile.open("G")
    assert file.find(["p03"])[0] == -1
    want = np.load("H.npy")[0] / np.linalg.norm(np.load("H.npy")[0])
    np.testing.assert_allclose(file.embeddings[:][file.find(["p00"])[0]], want, atol=1e-6)
    _enrol("--compact")
    assert "22 faces in G, no deleted faces are left in it" in capsys.readouterr().out
    assert GalleryFile.open("G").rows == 22
    assert not [path for path in files.iterdir() if path.name.startswith(".")]


def test_templates_are_pooled_as_ijbs(files):
    np.save("T.npy", np.arange(92 + 24) // 4)
    _enrol("--embeddings=P.npy --templates=L.txt --anchors=A.npy")
    assert GalleryFile.open("G").names[1] == "p01"
    pooled = np.load("P.npy").reshape(29, 4, 8).mean(axis=1)
    stored = GalleryFile.open("G").embeddings[:]
    np.testing.assert_allclose(
        stored, pooled / np.linalg.norm(pooled, axis=1, keepdims=True), atol=1e-6
    )
    found = _identify("--templates=T.npy --top=1 --labels=L.txt --json=F.json", "O.csv")
    names = (files / "L.txt").read_text().split()[::4]
    assert [(line["probe"], line["name"]) for line in found] == [
        (str(i), name) for i, name in enumerate(names)
    ]
    assert json.loads((files / "F.json").read_text())["rank"] == {"1": 1.0}


def test_thresholds_unknown_probes_and_probabilities(files, capsys):
    _first()
    every = _identify("--top=23")
    scores = np.array([line["score"] for line in every], np.float32).reshape(-1, 23)
    t = float(np.sort(scores[:, 0])[len(scores) // 3])  # a score itself is not above it
    calibration = fit_calibration(scores[:, 0], scores[:, 5], kind="logistic", method="ida_r")
    calibration.save("C.safetensors")
    flags = f"--threshold={t!r} --unknown --top=3 --calibration=C.safetensors"
    found = _identify(flags, "O.csv")
    said = capsys.readouterr()
    none = int(np.sum(scores[:, 0] <= np.float32(t)))
    assert f"{none} probes have no score above" in said.out
    assert "does not say which anchors and settings" in said.err
    lines = iter(found)
    for probe, own in enumerate(scores[:, :3]):
        above = own[own > np.float32(t)]
        for rank, score in enumerate(above, 1):
            line = next(lines)
            assert (line["probe"], line["rank"]) == (str(probe), str(rank))
            assert np.float32(line["score"]) == score
            chance = float(calibration.percent(score)) / 100
            assert float(line["probability"]) == pytest.approx(chance, rel=1e-5)
        if not len(above):
            line = next(lines)
            assert (line["rank"], line["name"]) == ("0", "")
            assert np.float32(line["score"]) == own[0]
    assert next(lines, None) is None
    # Without --unknown such probes have no line.
    assert len(_identify(f"--threshold={t!r}")) == int(np.sum(scores[:, :10] > np.float32(t)))


def test_open_set_figures(files):
    _first()
    found = _identify("--top=2 --labels=L.txt --json=F.json --fpirs=0.1,0.5")
    figures = json.loads((files / "F.json").read_text())
    every = _identify("--top=23", "all.parquet")
    who = (files / "L.txt").read_text().split()
    score = {(line["probe"], line["name"]): line["score"] for line in every}
    mate = np.array([score[row, who[row]] for row in range(92)])
    highest = np.array([line["score"] for line in every if line["rank"] == 1])[92:]
    for fpir in (0.1, 0.5):
        threshold = np.sort(highest)[::-1][int(fpir * 24)]
        assert figures["tpir@fpir"][f"{fpir:g}"] == pytest.approx(np.mean(mate > threshold))
    right = [line["name"] == who[line["probe"]] for line in found if line["rank"] == 1][:92]
    assert figures["rank"] == {"1": pytest.approx(np.mean(right))}
    assert (figures["mated_probes"], figures["nonmated_probes"]) == (92, 24)


def test_an_identification_that_was_stopped_goes_on(files, monkeypatch):
    monkeypatch.setattr(identify_job, "_PROBES", 30)
    _first()
    whole = _identify(output="whole.parquet")
    search, searched = identify_job.identify, []

    def failing(probes, *args, **kwargs):
        if len(searched) == 2:
            raise KeyboardInterrupt
        searched.append(len(probes))
        return search(probes, *args, **kwargs)

    monkeypatch.setattr(identify_job, "identify", failing)
    with pytest.raises(KeyboardInterrupt):
        _identify()
    assert not (files / "O.parquet").exists()
    searched[:] = [0, 0, 0]
    assert _identify("--threshold=-1e9") == whole
    assert searched == [0, 0, 0, 30, 26]
    assert (files / "O.parquet").read_bytes() == (files / "whole.parquet").read_bytes()


ENROL = "--embeddings=G.npy --names=G.txt --anchors=A.npy"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "nothing to do: give --embeddings=E, --delete=NAMES or --compact"),
        ("--embeddings=G.npy --delete=two.txt", "run one after the other"),
        (f"{ENROL} --k=4", r"G was made with k = 3, not 4: "),
        (f"{ENROL} --tau=2", r"tau = 1, not 2"),
        (f"{ENROL} --method=z_norm", r"method ida_r, not z_norm"),
        (f"{ENROL} --weight=0.5", r"--weight=0.5 is for ida_r_fallback, not for ida_r"),
        (f"{ENROL} --top_n=5", r"--top_n=5 is for as_norm, not for ida_r"),
        (f"{ENROL} --dtype=float16", r"G holds float32, --dtype=float16 was given"),
        ("--embeddings=G.npy --names=G.txt --anchors=X.npy", "another set of 40 anchors"),
        ("--embeddings=G.npy --names=G.txt", r"G, of ida_r, needs --anchors=FILE"),
        ("--embeddings=G.npy --anchors=A.npy", r"G.npy has no names.*--names=FILE"),
        ("--embeddings=G.npy --names=two.txt --anchors=A.npy", "2 names for 23 embeddings"),
        ("--embeddings=W.npy --templates=W.npy --anchors=A.npy", "expected integers or names"),
        ("--embeddings=zero.npy --names=two.txt --anchors=A.npy --replace", "row 1 is zero"),
        ("--embeddings=W.npy --names=five.txt --anchors=A.npy", "9 wide, the gallery's 8"),
        ("--delete=none.txt", "no names at none.txt"),
        ("--delete=two.txt --skip_bad", "--skip_bad is of --embeddings=E"),
    ],
)  # fmt: skip
def test_mistakes_of_enrol_change_nothing(flags, message, files):
    _first()
    (files / "five.txt").write_text("".join(f"new{i}\n" for i in range(5)))
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as caught:
        _enrol(flags)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--top=24", r"--top=24: expected 1 … 23, the faces in G"),
        ("--top=0", r"--top=0: expected 1 or more"),
        ("--unknown", r"--unknown is for probes below --threshold=T"),
        ("--threshold=nan", "expected a number"),
        ("--fpirs=2", r"--fpirs=2: expected numbers above 0, up to 1"),
        ("--json=F.json", r"give --labels=L"),
        ("--labels=strangers.txt", r"no label is a name in G \('x' is not\)"),
        ("--output=O.npy", r"--output=O.npy: candidates are one of .parquet, .csv files"),
        ("--output=G/O.csv", "would be written into --gallery, G"),
        ("--output=G.csv --names=G.csv", "--output would overwrite --names"),
        ("--anchors=X.npy", "another set of 40 anchors"),
        ("--probes=W.npy", "are 9 wide"),
        ("--probes=zero.npy", r"zero.npy: embeddings: row 1 is zero"),
        ("--gallery=A.npy", r"no gallery at A.npy: it is not a folder"),
        ("--gallery=empty", r"empty holds no faces: enrol some"),
    ],
)  # fmt: skip
def test_mistakes_of_identify_write_nothing(flags, message, files):
    _first()
    (files / "strangers.txt").write_text("x\n" * 116)
    (files / "G.csv").write_text("x\n" * 116)
    if "empty" in flags:
        (files / "all.txt").write_text((files / "G.txt").read_text())
        _enrol("--embeddings=G.npy --names=G.txt --anchors=A.npy", "empty")
        _enrol("--delete=G.txt", "empty")
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as caught:
        identify.main(
            ["--gallery=G", "--probes=P.npy", "--anchors=A.npy", "--output=O.csv", *flags.split()]
        )
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def test_embeddings_of_another_model_are_refused(files):
    _first()
    model = {"fingerprint": np.array("abc"), "embeddings": np.load("G.npy"), "names": PEOPLE}
    AnchorSet.from_embeddings(np.load("A.npy"), fingerprint="def").save("A.safetensors")
    np.savez("G.npz", **model)
    with pytest.raises(UserError, match="fingerprint is abc, the anchors' def"):
        _enrol("--embeddings=G.npz --anchors=A.safetensors", "H")
    assert not (files / "H").exists()
    _enrol("--embeddings=G.npz --anchors=A.npy", "H")
    np.savez("other.npz", **(model | {"fingerprint": np.array("def")}))
    with pytest.raises(UserError, match="H was made with model abc, not def"):
        _enrol("--embeddings=other.npz --anchors=A.npy", "H")


def _with_bad_rows(name, rows):
    """The file with these rows zero, NaN and infinite in turn, and those that are left."""
    faces = np.load(f"{name}.npy")
    for row, value in zip(rows, (0, np.nan, np.inf), strict=False):
        faces[row] = value
    np.save(f"{name}.npy", faces)
    return np.delete(np.arange(len(faces)), rows)


def test_bad_faces_are_not_enrolled_and_bad_probes_find_nobody(files, capsys):
    _with_bad_rows("G", [2, 5, 22])
    _with_bad_rows("P", [0, 7, 115])
    with pytest.raises(UserError, match=r"G.npy: embeddings: rows 2, 5, 22 are zero, NaN or inf"):
        _first()
    assert not (files / "G").exists()
    _first("--anchors=A.npy --k=3 --skip_bad")
    said = capsys.readouterr().out
    assert "20 faces enrolled by ida_r in G; it holds 20" in said
    assert "3 faces are zero, NaN or infinite and are not enrolled: p02, p05, p22" in said
    assert not {"p02", "p05", "p22"} & set(GalleryFile.open("G").names)
    _first("--anchors=A.npy --k=3 --skip_bad")
    assert "0 faces enrolled by ida_r in G; 20 were" in capsys.readouterr().out

    with pytest.raises(UserError, match=r"P.npy: embeddings: rows 0, 7, 115 are zero"):
        _identify()
    flags = "--top=3 --threshold=-9 --unknown --labels=L.txt --json=F.json --fpirs=0.5 --skip_bad"
    found = _identify(flags)
    said = capsys.readouterr().out
    assert "3 probes are zero, NaN or infinite, and have no candidates" in said
    assert "3 probes have no score above -9" in said
    without = [line for line in found if line["rank"] == 0]
    assert [line["probe"] for line in without] == [0, 7, 115]
    assert all(line["name"] is None and np.isnan(line["score"]) for line in without)
    figures = json.loads((files / "F.json").read_text())
    # A bad probe of an enrolled person is a miss, one of a stranger no false alarm.
    assert figures["mated_probes"] == 80
    assert figures["nonmated_probes"] == 36
    right = {(line["probe"], line["name"]) for line in found if line["rank"] == 1}
    who = (files / "L.txt").read_text().split()
    mated = [row for row in range(92) if who[row] not in ("p02", "p05", "p22")]
    assert figures["rank"]["1"] == np.mean([(row, who[row]) in right for row in mated])

    np.save("Z.npy", np.zeros((2, 8), np.float32))
    flags = "--embeddings=Z.npy --names=two.txt --anchors=A.npy --skip_bad"
    with pytest.raises(UserError, match=r"Z.npy: all faces are zero, NaN or infinite: none can"):
        _enrol(flags, "H")
    assert not (files / "H").exists()


def test_bad_images_are_left_out_of_their_templates(files, capsys):
    kept = _with_bad_rows("P", [1, 4, 5])
    for row in (6, 7):
        _with_bad_rows("P", [row])  # the second person has no image left
    kept = kept[~np.isin(kept, (6, 7))]
    with pytest.raises(UserError, match=r"P.npy: embeddings: rows 1, 4, 5, 6, 7 are zero.*--skip"):
        _enrol("--embeddings=P.npy --templates=L.txt --anchors=A.npy")
    _enrol("--embeddings=P.npy --templates=L.txt --anchors=A.npy --skip_bad")
    said = capsys.readouterr().out
    assert "1 face is zero, NaN or infinite and is not enrolled: p01" in said
    assert "5 images are zero, NaN or infinite and left out of the templates" in said
    pooled = [np.load("P.npy")[kept[kept // 4 == t]].mean(axis=0) for t in range(29) if t != 1]
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(GalleryFile.open("G").embeddings[:], pooled, atol=1e-6)
    found = _identify("--templates=L.txt --top=1 --skip_bad")
    assert [line["probe"] for line in found] == [line["name"] for line in found]
    assert len(found) == 28
    assert "1 probes are zero, NaN or infinite" in capsys.readouterr().out


def test_enrolled_people_who_are_anchors_are_told(files, capsys):
    rng = np.random.default_rng(5)
    anchors = rng.normal(size=(300, 64)).astype(np.float32)
    AnchorSet.from_embeddings(
        anchors, labels=np.arange(300), names=[f"a{i}" for i in range(298)] + ["p00", "p01"]
    ).save("N.safetensors")
    faces = rng.normal(size=(23, 64)).astype(np.float32)
    np.save("G.npy", faces)
    _first("--anchors=N.safetensors")
    said = capsys.readouterr()
    assert "warning: G.npy: the people of 2 of 23 faces are among the anchors" in said.err
    assert "make an anchor set of other people, and the gallery anew" in said.err
    assert said.err.count("\n") == 1

    faces[2:9] = anchors[:7]  # near-duplicates under other names
    np.save("G.npy", faces)
    _enrol("--embeddings=G.npy --names=G.txt --anchors=N.safetensors", "H")
    said = capsys.readouterr()
    assert "the people of 7 of 23 faces are likely among the anchors" in said.err
    assert "7 of 23 faces have an anchor with a cosine of at least" in said.out
    # Of no concern to those who were enrolled before.
    _enrol("--embeddings=G.npy --names=G.txt --anchors=N.safetensors", "H")
    assert not capsys.readouterr().err
