import subprocess
import sys

import numpy as np
import pytest
import reference

from ida_jax import fit
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.common.errors import exit_code
from ida_jax.rescoring.csn_fit import Csn, fit_csn

LABELS = np.repeat(np.arange(40), 3)


@pytest.fixture
def files(tmp_path):
    """Embeddings of any norm, their identities, and anchors: each identity's first image."""
    faces = reference.unit((120, 8), 0) + 2 * reference.unit((40, 8), 1)[LABELS]
    np.save(tmp_path / "e.npy", 3 * faces.astype(np.float64))
    np.save(tmp_path / "l.npy", LABELS)
    (tmp_path / "l.txt").write_text("\n".join(map(str, LABELS)) + "\n")
    anchors = AnchorSet.from_embeddings(faces[::3], labels=LABELS[::3], fingerprint="abc")
    anchors.save(tmp_path / "a.safetensors")
    np.save(tmp_path / "strangers.npy", reference.unit((50, 8), 9))
    return tmp_path


def _run(folder, capsys, *, labels="l.npy", anchors="a.safetensors", more=()):
    flags = [f"--embeddings={folder}/e.npy", f"--labels={folder}/{labels}", "--top_n=20"]
    flags += [f"--anchors={folder}/{anchors}", f"--output={folder}/c.safetensors", *more]
    code = exit_code(lambda: fit.main(["csn", *flags]))
    return code, capsys.readouterr()


@pytest.mark.parametrize("labels", ["l.npy", "l.txt"])
def test_the_command_is_the_call(files, capsys, labels):
    code, printed = _run(files, capsys, labels=labels, more=["--degree=2", "--seed=4"])
    assert (code, printed.err) == (0, "")
    assert "120 genuine and 7,020 impostor pairs of 40 identities" in printed.out
    found = Csn.load(files / "c.safetensors")
    embeddings = np.load(files / "e.npy").astype(np.float32)
    anchors = AnchorSet.load(files / "a.safetensors")
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected = fit_csn(unit, LABELS, anchors, top_n=20, degree=2, seed=4)
    assert (found.degree, found.fingerprint) == (2, "abc")
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-3)
    np.testing.assert_allclose(found.coefficient_weights, expected.coefficient_weights, rtol=1e-2)


def test_few_anchors_have_a_smaller_cohort(files, capsys):
    flags = [f"--embeddings={files}/e.npy", f"--labels={files}/l.npy"]
    flags += [f"--anchors={files}/a.safetensors", f"--output={files}/c.safetensors"]
    assert exit_code(lambda: fit.main(["csn", *flags])) == 0
    assert "top_n is 38, for want of the usual 100: the set has only 40" in capsys.readouterr().out
    assert Csn.load(files / "c.safetensors").top_n == 38


def test_plain_anchors_of_strangers(files, capsys):
    assert _run(files, capsys, anchors="strangers.npy")[0] == 0
    assert Csn.load(files / "c.safetensors").anchors == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": "missing.npy"}, "no labels at"),
        ({"labels": "words.txt"}, "labels are names (row 1 is 'Ann'), but the anchors have none"),
        ({"labels": "short.npy"}, "short.npy: 5 labels for 120 embeddings"),
        ({"anchors": "missing.safetensors"}, "no file at"),
        ({"anchors": "c.json"}, "ends in '.json'"),
        ({"more": ["--top_n=39"]}, "top_n = 39 of 40 anchors"),
        ({"more": ["--keep_own"]}, "are themselves among their anchors"),
        ({"more": ["--degre=2"]}, "unknown flag '--degre': did you mean --degree"),
        ({"more": ["--prior=2"]}, "prior = 2"),
        ({"more": ["--output=/nowhere/c.safetensors"]}, "cannot write /nowhere/c.safetensors"),
    ],
)
def test_a_mistake_is_one_line(files, capsys, change, message):
    (files / "words.txt").write_text(60 * "1\nAnn\n")
    np.save(files / "short.npy", LABELS[:5])
    code, printed = _run(files, capsys, **change)
    assert code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (files / "c.safetensors").exists()


def test_names_give_the_file_that_integers_give(files, capsys):
    names = [f"person {label}" for label in LABELS]
    (files / "names.txt").write_text("\n".join(names) + "\n")
    faces = np.load(files / "e.npy")
    for some in (slice(0, 60, 3), slice(0, 120, 3)):  # half of the people, and all
        AnchorSet.from_embeddings(
            faces[some].astype(np.float32), labels=LABELS[some], names=names[some]
        ).save(files / "named.safetensors")
        written = []
        for labels in ("l.npy", "names.txt"):
            code, printed = _run(
                files, capsys, labels=labels, anchors="named.safetensors", more=["--top_n=10"]
            )
            assert (code, printed.err) == (0, "")
            written.append(Csn.load(files / "c.safetensors"))
        by_integer, by_name = written
        assert by_name.identities == 40
        # People who are not among the anchors have other numbers, and are drawn in another order.
        if some.stop == 120:
            assert (by_name.weight, by_name.bias) == (by_integer.weight, by_integer.bias)
            np.testing.assert_array_equal(
                by_name.coefficient_weights, by_integer.coefficient_weights
            )


def test_the_former_name_runs_and_says_the_present_one(files):
    flags = [f"--embeddings={files}/e.npy", f"--labels={files}/l.npy", "--top_n=20"]
    flags += [f"--anchors={files}/a.safetensors", f"--output={files}/c.safetensors"]
    command = [sys.executable, "-m", "ida_jax.csn", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "python -m ida_jax.csn is now ida-jax fit csn" in done.stderr
    assert (files / "c.safetensors").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pca"], "unknown fit 'pca': choose one of csn, dao, quality"),
        (["qualty"], "did you mean quality"),
        (["csn"], "required"),
    ],
)
def test_a_wrong_call_is_one_line(argv, message, capsys):
    assert exit_code(lambda: fit.main(argv)) == 2
    assert message in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from ida_jax.fit import main\n"
        "try: main(['csn', '--help'])\n"
        "except SystemExit: print({'scipy.optimize', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--labels" in done.stdout
    assert done.stdout.endswith("set()\n")
