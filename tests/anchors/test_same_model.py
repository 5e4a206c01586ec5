"""Embeddings of another model are refused wherever anchors or modules know theirs."""

import json

import numpy as np
import pytest
import reference

from ida_jax import evaluate, rescore
from ida_jax.anchors import __main__ as anchors_command
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.errors import UserError, exit_code
from ida_jax.rescoring.csn_fit import Csn, fit_csn
from ida_jax.tables.embedding_output import write_embeddings

SUFFIXES = (".npy", ".npz", ".parquet")
PEOPLE = np.repeat(np.arange(20), 3)
FACES = 7 * reference.unit((60, 16), 1, clusters=20)
ANCHORS = 3 * reference.unit((60, 16), 0, clusters=5)
NAMES = [f"P{person}/{row}.jpg" for row, person in enumerate(PEOPLE)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("pairs.npy", np.random.default_rng(0).integers(60, size=(31, 2)))
    return tmp_path


def _write(name, fingerprint, rows=FACES):
    write_embeddings(name, [rows], NAMES, width=rows.shape[1], fingerprint=fingerprint)


def _save_ssr(name, fingerprint):
    rng = np.random.default_rng(2)
    params = {
        layer: {"kernel": np.float32(rng.normal(size=shape)), "bias": np.zeros(shape[1], "f4")}
        for layer, shape in (("hidden_fc", (16, 7)), ("output_fc", (7, 1)))
    }
    SSRModule(params, "log", -2.0, 0.1, 1e-3, 10, 1.0, fingerprint).save(name)


def _save_csn(name, fingerprint):
    anchors = AnchorSet.from_embeddings(ANCHORS, fingerprint=fingerprint)
    faces = reference.unit((60, 16), 3, clusters=20)
    fit_csn(faces, PEOPLE, anchors, top_n=9, exclude_own=False).save(name)
    assert Csn.load(name).fingerprint == fingerprint


def _rescore(*flags, embeddings):
    rescore.main([f"--embeddings={embeddings}", "--pairs=pairs.npy", "--output=S.npy", *flags])


def _evaluate(*flags, embeddings):
    evaluate.main(["--protocol=all_pairs", f"--embeddings={embeddings}", "--output=out",
                   "--resamples=5", "--fars=0.1", *flags])  # fmt: skip


def _listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("command", [_rescore, _evaluate])
def test_anchors_of_another_model(folder, suffix, command, capsys):
    embeddings = f"E{suffix}"
    _write(embeddings, "abc")
    AnchorSet.from_embeddings(ANCHORS, fingerprint="xyz").save("A.safetensors")
    before = _listing(folder)
    assert exit_code(lambda: command("--anchors=A.safetensors", embeddings=embeddings)) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        f"error: {embeddings}'s fingerprint is abc, the anchors' xyz: "
        "make both with the same model\n"
    )
    assert captured.out == ""
    assert _listing(folder) == before


@pytest.mark.parametrize("command", [_rescore, _evaluate])
@pytest.mark.parametrize("theirs", ["abc", "", "xyz"])
@pytest.mark.parametrize("ours", ["abc", ""])
def test_the_same_and_unknown_models_are_accepted(folder, command, ours, theirs):
    _write("E.npz", ours)
    AnchorSet.from_embeddings(ANCHORS, fingerprint=theirs).save("A.safetensors")
    done = folder / ("S.npy" if command is _rescore else "out/results.json")
    if (ours, theirs) == ("abc", "xyz"):
        with pytest.raises(UserError, match="abc, the anchors' xyz"):
            command("--anchors=A.safetensors", embeddings="E.npz")
    else:
        command("--anchors=A.safetensors", embeddings="E.npz")
    assert done.exists() == ((ours, theirs) != ("abc", "xyz"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_anchors_that_are_a_file_of_embeddings(folder, suffix):
    _write("E.npz", "abc")
    for theirs in ("abc", "", "xyz"):
        _write(f"A{suffix}", theirs, ANCHORS)
        if theirs == "xyz":
            with pytest.raises(UserError, match="abc, the anchors' xyz"):
                _rescore(f"--anchors=A{suffix}", embeddings="E.npz")
        else:
            _rescore(f"--anchors=A{suffix}", embeddings="E.npz")


@pytest.mark.parametrize("command", [_rescore, _evaluate])
def test_modules_of_another_model(folder, command):
    _write("E.npz", "abc")
    AnchorSet.from_embeddings(ANCHORS).save("A.safetensors")
    method = "method" if command is _rescore else "methods"
    for theirs in ("xyz", "", "abc"):
        _save_ssr("ssr.safetensors", theirs)
        _save_csn("csn.safetensors", theirs)
        for name, what, flags in (
            ("ida_l", "SSR module's", ["--ssr=ssr.safetensors"]),
            ("csn", "CSN classifier's", ["--csn=csn.safetensors", "--anchors=A.safetensors"]),
        ):
            flags = [f"--{method}={name}", *flags]
            if theirs == "xyz":
                with pytest.raises(UserError, match=f"E.npz's fingerprint is abc, the {what} xyz"):
                    command(*flags, embeddings="E.npz")
            else:
                command(*flags, embeddings="E.npz")
                if command is _evaluate:
                    (folder / "out" / "results.json").unlink()


def test_an_npy_that_was_made_later_is_of_an_unknown_model(folder):
    _write("E.npy", "abc")
    AnchorSet.from_embeddings(ANCHORS, fingerprint="xyz").save("A.safetensors")
    with pytest.raises(UserError, match="abc, the anchors' xyz"):
        _rescore("--anchors=A.safetensors", embeddings="E.npy")
    np.save("E.npy", np.float32(FACES + 1))  # as large, of the same shape
    _rescore("--anchors=A.safetensors", embeddings="E.npy")
    assert len(np.load("S.npy")) == 31


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("fingerprint", ["abc", ""])
def test_anchors_build_takes_the_fingerprint_over(folder, suffix, fingerprint):
    _write(f"E{suffix}", fingerprint)
    np.save("people.npy", PEOPLE)
    for labels in ([], ["--labels=people.npy"]):
        anchors_command.main(["build", f"--embeddings=E{suffix}", "--output=A.safetensors",
                              *labels])  # fmt: skip
        assert AnchorSet.load("A.safetensors").fingerprint == fingerprint


def test_anchors_check(folder, capsys):
    AnchorSet.from_embeddings(ANCHORS, fingerprint="xyz").save("A.safetensors")
    flags = ["check", "--anchors=A.safetensors", "--against=E.npz"]
    for fingerprint in ("xyz", ""):
        _write("E.npz", fingerprint)
        anchors_command.main(flags)
        assert "coverage: " in capsys.readouterr().out
    _write("E.npz", "abc")
    assert exit_code(lambda: anchors_command.main([*flags, "--json=out.json"])) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: E.npz's fingerprint is abc, the anchors' xyz: make both")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (folder / "out.json").exists()


def test_distractors_of_another_model(folder):
    kit = folder / "kit"
    kit.mkdir()
    ids = [name.split("/")[0] for name in NAMES]
    (kit / "facescrub_features_list.json").write_text(json.dumps({"path": NAMES, "id": ids}))
    others = [f"x/{row}.jpg" for row in range(60)]
    (kit / "megaface_features_list.json_60_1").write_text(json.dumps({"path": others}))
    _write("E.npz", "abc")

    def run(distractors, fingerprint, *flags):
        write_embeddings(distractors, [ANCHORS], others, width=16, fingerprint=fingerprint)
        evaluate.main(["--protocol=megaface", f"--files={kit}", "--embeddings=E.npz",
                       "--output=out", f"--distractors={distractors}", "--resamples=5",
                       *flags])  # fmt: skip

    with pytest.raises(UserError, match=r"D.npz's fingerprint is xyz, the probes' abc"):
        run("D.npz", "xyz")
    assert not (folder / "out").exists()
    run("D.npz", "abc")
    (folder / "out" / "results.json").unlink()
    run("D.npz", "")
