"""The rescore command, on files as a user has them."""

import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import reference
from environment import with_devices

from ida_jax import rescore
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.supported_weight import supported_weight
from ida_jax.common.errors import UserError, exit_code
from ida_jax.rescoring import job
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.tables.score_origin import read_origin

FACES = 7 * reference.unit((90, 16), 1, clusters=5)
ANCHORS = 3 * reference.unit((60, 16), 0, clusters=5)
PAIRS = np.random.default_rng(0).integers(90, size=(101, 2))


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "faces.npy", FACES)
    np.save(tmp_path / "anchors.npy", ANCHORS)
    np.save(tmp_path / "pairs.npy", PAIRS)
    return tmp_path


def _flags(folder, **changes):
    flags = {"embeddings": "faces.npy", "anchors": "anchors.npy", "pairs": "pairs.npy",
             "output": "scores.npy"}  # fmt: skip
    files = {key: folder / value for key, value in (flags | changes).items() if value is not None}
    return [f"--{key}={path}" for key, path in files.items()]


def _expected():
    return Rescorer(ANCHORS).score_pairs(FACES, PAIRS)


def _listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_one_command(files, capsys):
    before = _listing(files)
    rescore.main(_flags(files))
    got = np.load(files / "scores.npy")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, _expected(), atol=1e-6)
    assert "101 scores by ida_r" in capsys.readouterr().out
    assert _listing(files) == sorted([*before, "scores.npy", "scores.npy.origin.json"])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_names_and_text(files, suffix):
    import pyarrow as pa
    from pyarrow import parquet

    names = [f"person {i}/ä.jpg" for i in range(90)]
    (files / "names.txt").write_text("\n".join(names), encoding="utf-8")
    first, second = ([names[i] for i in side] for side in PAIRS.T)
    if suffix == ".parquet":
        parquet.write_table(pa.table({"a": first, "b": second}), files / "list.parquet")
    else:
        comma = "," if suffix == ".csv" else "\t"
        lines = [f"{a}{comma}{b}\n" for a, b in zip(first, second, strict=True)]
        (files / f"list{suffix}").write_text("".join(lines), encoding="utf-8")
    rescore.main(_flags(files, pairs=f"list{suffix}", names="names.txt", output="s.csv"))
    got = [float(line) for line in (files / "s.csv").read_text().splitlines()[1:]]
    np.testing.assert_allclose(got, _expected(), atol=1e-6)


@pytest.mark.parametrize("faces_at_once", [1, 1000])
@pytest.mark.parametrize("chunk", [1, 100, 101, 102])
def test_chunks_change_nothing(files, faces_at_once, chunk, monkeypatch):
    monkeypatch.setattr(job, "_FACE_SLAB", faces_at_once)
    rescore.main([*_flags(files), f"--chunk={chunk}"])
    np.testing.assert_allclose(np.load(files / "scores.npy"), _expected(), atol=1e-6)


def test_scales(files):
    rescore.main([*_flags(files), "--scale=dao", "--tau=2", "--k=3"])
    log_dao = Rescorer(ANCHORS, k=3, tau=2.0).score_pairs(FACES, PAIRS)
    np.testing.assert_allclose(np.load(files / "scores.npy"), np.exp(log_dao), rtol=1e-5)


def test_a_calibration_is_applied(files):
    from ida_jax.artefacts.calibration import fit_calibration

    scores = _expected()
    same = scores > np.median(scores) + np.random.default_rng(1).normal(size=101)
    calibration = fit_calibration(scores[same], scores[~same], kind="logistic", method="ida_r")
    calibration.save(files / "calibration.safetensors")
    flags = [*_flags(files), f"--calibration={files / 'calibration.safetensors'}"]
    rescore.main([*flags, "--scale=llr"])
    np.testing.assert_allclose(np.load(files / "scores.npy"), calibration.llr(scores), atol=1e-4)
    rescore.main([*flags, "--scale=percent"])
    percent = np.load(files / "scores.npy")
    np.testing.assert_allclose(percent, calibration.percent(scores), atol=1e-3)
    assert percent.min() >= 0
    assert percent.max() <= 100


@pytest.mark.parametrize("method", ["cosine", "ida_r_fallback", "s_norm", "as_norm"])
def test_other_methods(files, method):
    flags = _flags(files, anchors=None) if method == "cosine" else _flags(files)
    settings = ["--top_n=20"] if method == "as_norm" else []
    rescore.main([*flags, f"--method={method}", *settings])
    anchors = None if method == "cosine" else ANCHORS
    # Too few faces to support a weight: the cosine.
    scorer = Rescorer(anchors, method=method, top_n=20, weight=0)
    expected = scorer.score_pairs(FACES, PAIRS)
    np.testing.assert_allclose(np.load(files / "scores.npy"), expected, rtol=1e-4, atol=1e-5)


def test_the_weight_is_that_of_the_faces_or_given(files, capsys):
    # Faces that crowd around anchors: near ones and far ones.
    rng = np.random.default_rng(0)
    crowd = np.eye(16)[0] + rng.uniform(0.3, 2.5, (900, 1)) * rng.normal(size=(900, 16)) / 4
    crowd = crowd.astype(np.float32)
    np.save(files / "crowd.npy", crowd[:600])
    AnchorSet.from_embeddings(crowd[600:]).save(files / "crowd.safetensors")
    output = files / "scores.npy"
    flags = [f"--embeddings={files}/crowd.npy", f"--pairs={files}/pairs.npy",
             f"--anchors={files}/crowd.safetensors", f"--output={output}",
             "--method=ida_r_fallback"]  # fmt: skip
    rescore.main(flags)
    scores, origin = np.load(output), read_origin(output)
    weight = supported_weight(crowd[:600], AnchorSet.load(files / "crowd.safetensors")).weight
    assert origin.settings == {"k": 10, "tau": 1, "weight": weight}
    assert 0.2 < weight <= 1
    assert f"log F has the weight {weight:g} (--weight)" in capsys.readouterr().out
    rescore.main([*flags, f"--weight={weight}"])
    np.testing.assert_array_equal(np.load(output), scores)
    rescore.main([*flags, "--weight=0.1"])
    assert not np.allclose(np.load(output), scores, atol=1e-3)
    with pytest.raises(UserError, match=r"weight is 2: expected 0 \(the cosine\)"):
        rescore.main([*flags, "--weight=2"])


def test_few_anchors_have_a_smaller_cohort(files, capsys):
    count = len(ANCHORS)
    assert count < 300
    rescore.main([*_flags(files), "--method=as_norm"])
    assert f"as_norm: top_n is {count}, for want of the usual 300" in capsys.readouterr().out
    scorer = Rescorer(ANCHORS, method="as_norm", top_n=count)
    expected = scorer.score_pairs(FACES, PAIRS)
    np.testing.assert_allclose(np.load(files / "scores.npy"), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=f"top_n = {count + 1} neighbours"):
        rescore.main([*_flags(files), "--method=as_norm", f"--top_n={count + 1}"])


def test_bad_faces_are_named_or_never_match(files, capsys):
    faces = FACES.copy()
    faces[3], faces[80, 2], faces[81, 0] = 0, np.nan, np.inf
    np.save(files / "faces.npy", faces)
    with pytest.raises(UserError, match="rows 3, 80, 81 are zero, NaN or infinite"):
        rescore.main(_flags(files))
    assert "scores.npy" not in _listing(files)
    rescore.main([*_flags(files), "--skip_bad"])
    got = np.load(files / "scores.npy")
    touched = np.any(np.isin(PAIRS, [3, 80, 81]), axis=1)
    np.testing.assert_array_equal(np.isnan(got), touched)
    np.testing.assert_allclose(got[~touched], _expected()[~touched], atol=1e-6)
    out = capsys.readouterr().out
    assert "3 faces are zero, NaN or infinite" in out
    assert f"{np.sum(touched)} pairs" in out


def test_mistakes_leave_nothing_behind_and_an_earlier_output_alone(files):
    (files / "scores.npy").write_bytes(b"an earlier one")
    outside = PAIRS.copy()
    outside[17, 1] = 90
    np.save(files / "outside.npy", outside)
    np.savetxt(files / "outside.csv", outside, fmt="%d", delimiter=",")
    np.save(files / "narrow.npy", ANCHORS[:, :8])
    (files / "torn.npy").write_bytes((files / "faces.npy").read_bytes()[:-9])
    before = _listing(files)
    for changes, more, message in (
        ({"pairs": "outside.npy"}, [], r"outside.npy.*17.*90"),
        ({"pairs": "outside.csv"}, [], r"outside.csv, line 18.*90"),
        ({"embeddings": "torn.npy"}, [], "torn.npy is not a whole .npy file"),
        ({"anchors": "narrow.npy"}, [], "16 wide, the anchors' 8"),
        ({"anchors": "faces.npy"}, [], "the anchors are the embeddings themselves"),
        ({"anchors": "none.npy"}, [], "none.npy"),
        ({"pairs": "none.csv"}, [], "none.csv"),
        ({"embeddings": "none.npy"}, [], "none.npy"),
        ({"names": "none.txt"}, [], "none.txt"),
        ({"anchors": None}, [], "ida_r needs anchors"),
        ({"output": "scores.txt"}, [], ".txt"),
        ({"output": "nowhere/scores.npy"}, [], "nowhere"),
        ({}, ["--k=61"], "k = 61 .* 60 anchors"),
        ({}, ["--method=ida"], "method 'ida' is unknown"),
        ({}, ["--method=ida_l"], "--ssr=FILE"),
        ({}, ["--method=csn"], "--csn=FILE"),
        ({}, ["--scale=llr"], "needs --calibration=FILE"),
        ({}, ["--scale=dao", "--method=s_norm"], "not for s_norm"),
        ({}, ["--weight=0.5"], "--weight=0.5 is for ida_r_fallback, not for ida_r"),
        ({}, ["--top_n=20"], "--top_n=20 is for as_norm, not for ida_r"),
        ({}, ["--ddof=1"], "--ddof=1 is for z_norm, .*, not for ida_r"),
        ({}, ["--method=as_norm", "--k=5"], "--k=5 is for ida_r, .*, not for as_norm"),
        ({}, ["--method=cosine", "--tau=2"], "--tau=2.0 is for ida_r, .*, not for cosine"),
        ({}, ["--chunk=0"], "--chunk"),
        ({}, ["--searcher=fast"], "searcher 'fast' is unknown"),
        ({}, ["--anchor=x"], "--anchor"),
    ):
        with pytest.raises(UserError, match=message):
            rescore.main([*_flags(files, **changes), *more])
        assert _listing(files) == before, message
    assert (files / "scores.npy").read_bytes() == b"an earlier one"


def test_a_mistake_is_one_line_and_exit_code_2(files, capsys):
    assert exit_code(lambda: rescore.main([*_flags(files), "--k=61"])) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: k = 61")
    assert captured.out == ""


# Each run is killed where its first new part would appear.
_KILLED = textwrap.dedent("""
    import os, signal, sys
    real, calls = os.replace, 0
    def replace(*paths):
        global calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*paths)
    os.replace = replace
    from ida_jax import rescore
    from ida_jax.rescoring import job
    job._FACE_SLAB = 32
    rescore.main(sys.argv[1:])
""")


@pytest.mark.bits
def test_killed_in_ten_places_and_continued_to_the_same_bytes(files, monkeypatch):
    monkeypatch.setattr(job, "_FACE_SLAB", 32)
    np.savetxt(files / "pairs.csv", PAIRS, fmt="%d", delimiter=",")
    flags = [*_flags(files, pairs="pairs.csv"), "--chunk=16"]
    rescore.main(flags)
    undisturbed = (files / "scores.npy").read_bytes()
    (files / "scores.npy").write_bytes(b"an earlier one")
    (files / "scores.npy.origin.json").unlink()

    kills = 0
    while True:
        run = subprocess.run([sys.executable, "-c", _KILLED, *flags])
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL
        assert (files / "scores.npy").read_bytes() == b"an earlier one"
        kills += 1
    # pairs.npy, 3 slabs of faces, 7 chunks, the origin and the output: a run makes one and dies at
    # the next.
    assert kills == 12
    assert read_origin(files / "scores.npy").method == "ida_r"
    assert (files / "scores.npy").read_bytes() == undisturbed
    assert not [name for name in _listing(files) if name.startswith(".")]


def test_another_setting_starts_anew(files, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_scores", killed)
        with pytest.raises(KeyboardInterrupt):
            rescore.main(_flags(files))
    assert len([name for name in _listing(files) if name.endswith(".parts")]) == 1
    rescore.main([*_flags(files), "--tau=3"])
    expected = Rescorer(ANCHORS, tau=3.0).score_pairs(FACES, PAIRS)
    np.testing.assert_allclose(np.load(files / "scores.npy"), expected, atol=1e-6)
    assert not [name for name in _listing(files) if name.startswith(".")]


@pytest.mark.bits
@pytest.mark.parametrize("devices", [1, 2])
def test_another_number_of_devices_makes_the_same_bytes(files, devices):
    rescore.main(_flags(files))
    eight = (files / "scores.npy").read_bytes()
    command = [sys.executable, "-m", "ida_jax.rescore", *_flags(files)]
    subprocess.run(command, env=with_devices(devices), check=True)
    assert (files / "scores.npy").read_bytes() == eight


@pytest.mark.parametrize("tau", ["1e39", "1e-9", "nan", "-1", "0", "inf", "1e-4", "1e7"])
def test_tau_has_a_range(files, tau):
    before = _listing(files)
    with pytest.raises(
        UserError, match=r"--tau is .*: expected a finite number above 0, from 0.001 to"
    ):
        rescore.main([*_flags(files), f"--tau={tau}"])
    with pytest.raises(UserError, match=r"from 0\.001 to 1,000,000"):
        Rescorer(ANCHORS, tau=float(tau))
    assert _listing(files) == before


@pytest.mark.parametrize("tau", [1e-3, 1e6])
def test_at_the_ends_of_taus_range_scores_differ_and_are_finite(tau):
    scores = Rescorer(ANCHORS, tau=tau).score_pairs(FACES, PAIRS)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > len(PAIRS) / 2


def test_damaged_parts_are_made_again(files, capsys, monkeypatch):
    flags = [*_flags(files), "--chunk=40", f"--pairs={files / 'pairs.csv'}"]
    np.savetxt(files / "pairs.csv", PAIRS, fmt="%d", delimiter=",")
    rescore.main(flags)
    expected = (files / "scores.npy").read_bytes()
    (files / "scores.npy").unlink()

    def stopped(*arguments, **_):
        raise KeyboardInterrupt

    damages = (
        ("faces-*", lambda content: b""),
        ("pairs.npy", lambda content: content[:200] + bytes(len(content) - 200)),
        ("scores-00001.npy", lambda content: content[:-30]),
        ("scores-00000.npy", lambda content: content[:140] + b"x" + content[141:]),
    )
    for pattern, damage in damages:
        with monkeypatch.context() as patched:
            patched.setattr(job, "write_scores", stopped)
            with pytest.raises(KeyboardInterrupt):
                rescore.main(flags)
        (path,) = files.glob(f".scores.npy.*.parts/{pattern}")
        path.write_bytes(damage(path.read_bytes()))
        capsys.readouterr()
        rescore.main(flags)
        told = [line for line in capsys.readouterr().err.splitlines() if "made again" in line]
        assert len(told) == 1
        assert str(path) in told[0]
        assert (files / "scores.npy").read_bytes() == expected
        assert not list(files.glob(".*"))
