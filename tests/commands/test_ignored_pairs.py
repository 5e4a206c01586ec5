"""--ignore_identity_pairs: every protocol against its own files without those pairs."""

import json

import numpy as np
import pytest

from ida_jax import evaluate
from ida_jax.common.errors import UserError

D = 12
PEOPLE = [f"P{chr(65 + i)}" for i in range(12)]
NAMES = [f"{person}/{person}_{i:04d}.jpg" for person in PEOPLE for i in (1, 2, 3)]
OF = np.array([name.split("/")[0] for name in NAMES])
# PA to PB and PD to PC; the last line's second name is nobody's here.
LIST = "# one person each\nidentity_1,identity_2,decision\nPA,PB,same\nPD,PC,mislabelled\n" + (
    "PE,PF,different\nPG,Xaver,same\n"
)
APART = {frozenset(("PA", "PB")), frozenset(("PC", "PD"))}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(12, D)), 3, axis=0)
    centres[3:6] = centres[:3]  # PB is PA
    np.save(tmp_path / "E.npy", np.float32(centres + 0.5 * rng.normal(size=(36, D))))
    (tmp_path / "E.names.txt").write_text("\n".join(NAMES))
    (tmp_path / "list.csv").write_text(LIST)
    pairs = np.array([(i, j) for i in range(36) for j in range(i + 1, 36)])
    pairs = pairs[rng.permutation(len(pairs))]
    for name, kept in (("all", pairs), ("less", pairs[~_apart(pairs)])):
        np.save(tmp_path / f"{name}.pairs.npy", kept)
        people = "\n".join(f"{OF[a]},{OF[b]}" for a, b in kept)
        (tmp_path / f"{name}.people.csv").write_text(f"identity_1,identity_2\n{people}\n")
        np.save(tmp_path / f"{name}.same.npy", OF[kept[:, 0]] == OF[kept[:, 1]])
        # Scores of any method: here the first row's number decides, so that groups differ.
        scores = np.load(tmp_path / "E.npy")
        np.save(tmp_path / f"{name}.scores.npy", np.einsum("pd,pd->p", *scores[kept.T]))
        np.save(tmp_path / f"{name}.groups.npy", kept[:, 0] % 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _apart(pairs):
    return np.array([frozenset((OF[a], OF[b])) in APART for a, b in pairs])


def _run(output, *flags):
    evaluate.main([*flags, f"--output={output}", "--resamples=20"])
    return json.loads((output / "results.json").read_text())


def _same_but_for_the_count(found, expected, pairs):
    for variant, methods in expected["protocols"].items():
        for name, figures in methods.items():
            of = dict(found["protocols"][variant][name])
            assert of.pop("ignored_pairs") == pairs
            assert of == figures
        note = found["notes"][variant][0]
        assert note.startswith(f"{pairs} impostor pairs between 2 pairs of identities")
        assert "1 pairs of the list have an identity that is not here" in note
        assert found["notes"][variant][1:] == expected["notes"].get(variant, [])


def test_a_pair_list_and_all_pairs(folder, capsys):
    flags = {
        name: ["--protocol=pairs", f"--files={name}.pairs.npy", f"--labels={name}.same.npy",
               f"--identities={name}.people.csv", "--embeddings=E.npy", "--fars=0.01,0.1"]
        for name in ("all", "less")
    }  # fmt: skip
    ignore = "--ignore_identity_pairs=list.csv"
    expected = _run(folder / "less", *flags["less"])
    found = _run(folder / "all", *flags["all"], ignore)
    _same_but_for_the_count(found, expected, 18)
    assert "18 impostor pairs between 2 pairs" in capsys.readouterr().out
    assert "18 impostor pairs between 2 pairs" in (folder / "all" / "report.html").read_text()
    assert found["settings"]["ignore_identity_pairs"] == "list.csv"
    every = _run(folder / "every", "--protocol=all_pairs", "--embeddings=E.npy", ignore,
                 "--fars=0.01,0.1")  # fmt: skip
    figures, listed = every["protocols"]["all_pairs"]["cosine"], found["protocols"]["pairs"]
    assert figures.pop("threshold@far") == pytest.approx(listed["cosine"].pop("threshold@far"))
    assert figures == listed["cosine"]
    dirty = _run(folder / "dirty", "--protocol=all_pairs", "--embeddings=E.npy", "--fars=0.01")
    assert dirty["protocols"]["all_pairs"]["cosine"]["tar@far"]["0.01"] < figures["tar@far"]["0.01"]
    # Once more by numbers.
    np.save(folder / "codes.npy", np.unique(OF, return_inverse=True)[1][np.load("all.pairs.npy")])
    (folder / "list.csv").write_text("0 1\n3 2\n6 99\n")
    numbered = [f for f in flags["all"] if "identities" not in f] + ["--identities=codes.npy"]
    found = _run(folder / "numbers", *numbered, ignore)
    _same_but_for_the_count(found, expected, 18)


def test_lfw(folder):
    lines = ["3\t4"]
    kept = ["3\t4"]
    for fold in range(3):
        own = PEOPLE[4 * fold : 4 * fold + 4]
        lines += [f"{person}\t1\t{2 + i % 2}" for i, person in enumerate(own)]
        lines += [f"{a}\t1\t{b}\t3" for a, b in zip(own, own[1:] + own[:1], strict=True)]
    (folder / "pairs.txt").write_text("\n".join(lines))
    flags = ["--protocol=lfw", "--embeddings=E.npy", "--files=pairs.txt"]
    found = _run(folder / "out", *flags, "--ignore_identity_pairs=list.csv")
    kept = found["protocols"]["lfw_3fold"]["cosine"]
    assert (kept["pairs"], kept["genuine"], kept["ignored_pairs"]) == (22, 12, 2)
    assert "2 impostor pairs between 2 pairs" in found["notes"]["lfw_3fold"][0]


def test_ytf(folder):
    def splits(apart):
        return "\n".join(
            f"{fold}, {i}, {a}/0, {b}/1, {int(a == b)}"
            for fold, own in enumerate((PEOPLE[:4], PEOPLE[4:8], PEOPLE[8:]), 1)
            for i, (a, b) in enumerate([(a, b) for a in own for b in own], 1)
            if apart or frozenset((a, b)) not in APART
        )

    names = [f"{p}/{v}/{i}.jpg" for p in PEOPLE for v in (0, 1) for i in range(3)]
    faces = np.repeat(np.load("E.npy"), 2, axis=0) + 0.1 * np.random.default_rng(1).normal(
        size=(72, D)
    )
    np.savez("frames.npz", embeddings=faces.astype(np.float32), names=np.array(names))
    results = {}
    for name, flags in (("all", ["--ignore_identity_pairs=list.csv"]), ("less", [])):
        (folder / f"{name}.txt").write_text(splits(name == "all"))
        results[name] = _run(folder / name, "--protocol=ytf", f"--files={name}.txt",
                             "--embeddings=frames.npz", *flags)  # fmt: skip
    _same_but_for_the_count(results["all"], results["less"], 4)


def test_labelled_scores(folder, capsys):
    found = {}
    for name, flags in (("all", ["--ignore_identity_pairs=list.csv"]), ("less", [])):
        evaluate.main(
            [f"--scores={name}.scores.npy", f"--baseline={name}.scores.npy", *flags,
             f"--labels={name}.same.npy", f"--identities={name}.people.csv", "--fars=0.1,0.01",
             f"--groups={name}.groups.npy", f"--json={name}.json", "--resamples=20",
             "--fit=logistic", f"--calibration={name}.safetensors"]
        )  # fmt: skip
        found[name] = json.loads((folder / f"{name}.json").read_text())
    assert "18 impostor pairs between 2 pairs" in capsys.readouterr().out
    assert found["all"].pop("ignored_pairs") == 18
    assert "18 impostor pairs" in found["all"].pop("ignored_note")
    assert found["all"]["impostor"] == found["less"]["impostor"]
    for key in ("bootstrap", "difference"):
        assert found["all"][key] == found["less"][key]
    assert found["all"]["calibration"]["cllr"] == found["less"]["calibration"]["cllr"]
    for role, figures in found["less"]["methods"].items():
        same = {k: v for k, v in figures.items() if k not in ("name", "file")}
        assert same.items() <= found["all"]["methods"][role].items()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol=bin", "--files=x.bin"], "not for bin: a verification set says of pairs"),
        (["--protocol=megaface", "--files=.", "--distractors=x"], "not for megaface: a probe"),
        (["--protocol=pairs", "--files=all.pairs.npy", "--labels=all.same.npy"],
         "needs --identities=I"),
        (["--protocol=all_pairs", "--ignore_identity_pairs=none.csv"], "no identity pairs at"),
        (["--protocol=all_pairs", "--ignore_identity_pairs=nobody.csv"],
         "names none of the 12 identities"),
        (["--protocol=lfw", "--files=pairs.txt", "--ignore_identity_pairs=nobody.csv"],
         "names none of the 12 identities"),
    ],
)  # fmt: skip
def test_refusals_leave_nothing_behind(folder, flags, message):
    (folder / "nobody.csv").write_text("Ann,Bea\n")
    (folder / "pairs.txt").write_text("2\t1\nPA\t1\t2\nPA\t1\tPB\t1\nPC\t1\t2\nPC\t1\tPD\t1\n")
    given = ["--embeddings=E.npy", "--output=out", "--ignore_identity_pairs=list.csv", *flags]
    with pytest.raises(UserError, match=message) as caught:
        evaluate.main(given)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


def test_scores_need_identities_to_leave_pairs_out(folder):
    given = ["--scores=all.scores.npy", "--labels=all.same.npy"]
    with pytest.raises(UserError, match="needs --identities=I"):
        evaluate.main([*given, "--ignore_identity_pairs=list.csv"])
    (folder / "list.csv").write_text("Ann,Bea\n")
    with pytest.raises(UserError, match="names none of the 12 identities"):
        evaluate.main([*given, "--identities=all.people.csv", "--ignore_identity_pairs=list.csv"])
