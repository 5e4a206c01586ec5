import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from ida_jax.artefacts.calibration import Calibration
from ida_jax.common.errors import UserError
from ida_jax.evaluate import main
from ida_jax.metrics.bootstrap import bootstrap_tar
from ida_jax.metrics.likelihood_ratios import cllr, min_cllr
from ida_jax.metrics.roc import equal_error_rate, roc_curve, tar_at_far, threshold_interval

PEOPLE = 15


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with all files of 600 pairs, as the current one."""
    rng = np.random.default_rng(0)
    identities = rng.integers(PEOPLE, size=(600, 2))
    identities[:200, 1] = identities[:200, 0]
    same = identities[:, 0] == identities[:, 1]
    cosine = rng.normal(1.0 * same, 0.5).astype(np.float32)
    better = rng.normal(1.5 * same, 0.5).astype(np.float32)
    np.save(tmp_path / "cosine.npy", cosine)
    np.save(tmp_path / "ida_r.npy", better)
    np.save(tmp_path / "labels.npy", same)
    np.save(tmp_path / "groups.npy", identities[:, 0] % 3)
    np.save(tmp_path / "identities.npy", identities)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*flags):
    main(["--scores=ida_r.npy", "--labels=labels.npy", *flags])


def loaded(*names):
    return [np.load(f"{name}.npy") for name in names]


def test_everything_at_once(folder, capsys):
    run(
        "--baseline=cosine.npy",
        "--identities=identities.npy",
        "--groups=groups.npy",
        "--fars=0.01,0.1",
        "--json=out.json",
        "--plot=out.png",
        "--fit=logistic",
        "--calibration=c.safetensors",
        "--method=ida_r",
        "--resamples=60",
        "--seed=3",
    )
    results = json.loads((folder / "out.json").read_text())
    cosine, scores, same, groups, identities = loaded(
        "cosine", "ida_r", "labels", "groups", "identities"
    )
    found = results["methods"]
    assert results["fars"] == [0.1, 0.01]
    assert results["genuine"] == np.count_nonzero(same)
    boot = bootstrap_tar(
        {"baseline": cosine, "scores": scores}, same, fars=[0.1, 0.01], identities=identities,
        baseline="baseline", resamples=60, seed=3,
    )  # fmt: skip
    for role, of in (("baseline", cosine), ("scores", scores)):
        genuine, impostor = of[same], of[~same]
        figures = found[role]
        for point, interval in zip(
            tar_at_far(genuine, impostor, [0.1, 0.01]), boot.methods[role], strict=True
        ):
            far = f"{point.far:g}"
            assert figures["tar@far"][far] == point.tar
            assert figures["threshold@far"][far] == point.threshold
            assert figures["false_accepts"][far] == point.false_accepts
            assert figures["realised_far"][far] == point.realised_far
            assert figures["tar_interval@far"][far] == list(interval.tar)
            assert figures["tar_units@far"][far] == interval.units
            assert figures["threshold_interval@far"][far] == list(interval.threshold)
            for group in range(3):
                inside = figures["groups"][str(group)]
                wrong = (of > point.threshold) & ~same & (groups == group)
                count = np.count_nonzero(~same & (groups == group))
                assert inside["impostor"] == count
                assert inside["false_accepts"][far] == np.count_nonzero(wrong)
                assert inside["realised_far"][far] == np.count_nonzero(wrong) / count
                right = of[same & (groups == group)] > point.threshold
                assert inside["tar@far"][far] == pytest.approx(np.mean(right))
        assert figures["eer"] == equal_error_rate(genuine, impostor)
        assert figures["cllr"] == pytest.approx(cllr(genuine, impostor), rel=1e-12)
        assert figures["min_cllr"] == pytest.approx(min_cllr(genuine, impostor), rel=1e-12)
        assert figures["curve"]["tar"] == roc_curve(genuine, impostor).tar.tolist()
    gain = found["scores"]["tar@far"]["0.1"] - found["baseline"]["tar@far"]["0.1"]
    assert results["difference"]["tar@far"]["0.1"] == gain
    difference = boot.differences["scores"][0]
    assert results["difference"]["tar_interval@far"]["0.1"] == list(difference.tar)
    assert results["difference"]["share_above_0"]["0.1"] == difference.share_above_0
    assert results["bootstrap"] == {
        "over": "identities", "units": PEOPLE, "resamples": 60, "seed": 3,
    }  # fmt: skip

    calibration = Calibration.load("c.safetensors")
    assert (calibration.kind, calibration.method) == ("logistic", "ida_r")
    fitted = cllr(calibration.llr(scores[same]), calibration.llr(scores[~same]))
    assert results["calibration"]["cllr"] == pytest.approx(fitted)
    assert found["scores"]["min_cllr"] < fitted < found["scores"]["cllr"]
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")

    text = capsys.readouterr().out
    assert f"{100 * found['scores']['tar@far']['0.1']:.2f}" in text
    assert f"{100 * gain:+.2f}" in text
    assert "TAR of ida_r minus cosine" in text
    assert "60 resamples over 15 identities" in text
    # Of 400 impostors or so, 0.01 lets 3 pass.
    assert f"{found['scores']['false_accepts']['0.01']}*" in text
    assert "fewer than 10 false accepts" in text
    assert "times the FAR of all" in text


def test_scores_and_labels_alone(folder, capsys):
    run("--fars=0.1", "--json=out.json", "--resamples=20")
    results = json.loads((folder / "out.json").read_text())
    assert set(results["methods"]) == {"scores"}
    assert results["bootstrap"]["over"] == "pairs"
    assert "difference" not in results
    scores, same = loaded("ida_r", "labels")
    interval = list(threshold_interval(scores[~same], 0.1))
    assert results["methods"]["scores"]["threshold_interval@far"]["0.1"] == interval
    text = capsys.readouterr().out
    assert "give --identities" in text
    assert "*" not in text


def test_without_bootstrap_and_below_what_the_pairs_can_tell(folder, capsys):
    run("--fars=1e-9", "--json=out.json", "--resamples=0")
    results = json.loads((folder / "out.json").read_text())
    assert "bootstrap" not in results
    assert "tar_interval@far" not in results["methods"]["scores"]
    # No impostor lies above: the threshold has no upper bound, which JSON cannot say.
    assert results["methods"]["scores"]["threshold_interval@far"]["1e-09"][1] is None
    text = capsys.readouterr().out
    assert "FAR 1e-9 is below 1/" in text
    assert " 0*" in text


def test_nan_is_never_a_match_and_is_counted(folder, capsys):
    scores, same = loaded("ida_r", "labels")
    scores[:50] = np.nan
    scores[-50:] = np.nan
    np.save("ida_r.npy", scores)
    run("--fars=0.1,1", "--json=out.json", "--resamples=0", "--groups=groups.npy")
    figures = json.loads((folder / "out.json").read_text())["methods"]["scores"]
    assert figures["nan"] == 100
    assert figures["genuine"] == np.count_nonzero(same)
    (point,) = tar_at_far(scores[same], scores[~same], [0.1])
    assert figures["tar@far"]["0.1"] == point.tar < 1
    assert figures["threshold@far"]["1"] is None
    assert figures["eer"] == equal_error_rate(scores[same], scores[~same])
    lowest = np.where(np.isnan(scores), -1e9, scores)
    assert figures["eer"] == equal_error_rate(lowest[same], lowest[~same])
    hits = sum(g["genuine"] * g["tar@far"]["1"] for g in figures["groups"].values())
    assert hits == pytest.approx(np.count_nonzero(same & ~np.isnan(scores)))
    assert "100 scores are NaN" in capsys.readouterr().out


def test_groups_without_a_kind_of_pairs(folder, capsys):
    _, same = loaded("ida_r", "labels")
    np.save("groups.npy", np.where(same, "known", "strangers"))
    run("--groups=groups.npy", "--fars=0.1", "--json=out.json", "--resamples=0", "--plot=out.png")
    groups = json.loads((folder / "out.json").read_text())["methods"]["scores"]["groups"]
    assert groups["known"]["realised_far"]["0.1"] is None
    assert groups["strangers"]["tar@far"]["0.1"] is None
    assert "–" in capsys.readouterr().out


def test_isotonic_fit_and_equal_file_names(folder, capsys):
    (folder / "before").mkdir()
    np.save("before/ida_r.npy", np.load("cosine.npy"))
    run("--baseline=before/ida_r.npy", "--fit=isotonic", "--calibration=c", "--resamples=9")
    assert Calibration.load("c").kind == "isotonic"
    assert "TAR of scores minus baseline" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_all_formats_give_the_same(folder, suffix, capsys):
    flags = ["--fars=0.1,0.01", "--resamples=20"]
    # Text holds the shortest decimals, which single precision does not.
    np.save("ida_r.npy", np.load("ida_r.npy").astype(np.float64))
    run("--json=a.json", "--groups=groups.npy", "--identities=identities.npy", *flags)
    scores, same, groups, identities = loaded("ida_r", "labels", "groups", "identities")
    names = [f"person {i}" for i in range(PEOPLE)]
    columns = {
        "s": {"score": scores},
        "l": {"label": same.astype(int)},
        "g": {"pair": np.arange(600), "group": groups},
        "i": {f"identity_{k + 1}": [names[i] for i in identities[:, k]] for k in (0, 1)},
    }
    for name, table in columns.items():
        write = csv.write_csv if suffix == ".csv" else parquet.write_table
        write(pa.table(table), f"{name}{suffix}")
    files = [f"--{flag}={flag[0]}{suffix}" for flag in ("scores", "labels", "groups", "identities")]
    main([*files, "--json=b.json", *flags])
    one, other = (json.loads((folder / name).read_text()) for name in ("a.json", "b.json"))
    for results in (one, other):
        del results["labels"], results["methods"]["scores"]["file"]
        del results["methods"]["scores"]["name"]
        # Names are numbered by appearance, so that other people are drawn.
        del results["methods"]["scores"]["tar_interval@far"]
        del results["methods"]["scores"]["threshold_interval@far"]
        for group in results["methods"]["scores"]["groups"].values():
            del group["tar_interval@far"], group["realised_far_interval"]
        for ratio in results["methods"]["scores"]["far_ratio"].values():
            ratio.pop("interval", None)
    assert one == other


@pytest.mark.parametrize(
    ("replaced", "flags", "message"),
    [
        ({"labels": np.ones(600)}, [], "all 600 labels are 1"),
        ({"labels": np.zeros(600, bool)}, [], "all 600 labels are 0"),
        ({"labels": np.arange(600)}, [], r"pair 2 \(from 0\) is 2, expected 1"),
        ({"labels": np.full(600, np.nan)}, [], r"pair 0 \(from 0\) is nan"),
        ({"labels": np.full(600, "1")}, [], "holds text: expected 0 or 1"),
        ({"labels": np.ones(599, int)}, [], "ida_r.npy has 600 rows and labels.npy has 599"),
        ({"ida_r": np.ones(600, bool)}, [], "holds bool values: expected numbers"),
        ({"ida_r": np.ones((600, 1))}, [], r"\[600, 1\]: expected \[P\]"),
        ({"ida_r": np.ones(600, complex)}, [], "complex"),
        ({"cosine": np.ones(3)}, ["--baseline=cosine.npy"], "cosine.npy has 3 rows"),
        ({"groups": np.ones(3, int)}, ["--groups=groups.npy"], "groups.npy has 3 rows"),
        ({"groups": np.ones(600)}, ["--groups=groups.npy"], "double values: expected a name"),
        (
            {"groups": np.repeat(["a", "no group"], 300)},
            ["--groups=groups.npy"],
            "a group is named 'no group'",
        ),
        ({"identities": np.ones((3, 2), int)}, ["--identities=identities.npy"], "has 3 rows"),
        ({"identities": np.ones(600, int)}, ["--identities=identities.npy"], r"expected \[P, 2\]"),
        ({"identities": np.ones((600, 2))}, ["--identities=identities.npy"], "expected names or"),
        (
            {"identities": np.ones((600, 2), int)},
            ["--identities=identities.npy"],
            r"is labelled 0 and has the identities 1 and 1",
        ),
        ({}, ["--baseline=absent.npy"], "absent.npy"),
        ({}, ["--baseline=absent.txt"], "ends in '.txt'"),
        ({}, ["--fars=0.1,0"], "--fars: 0 is not above 0"),
        ({}, ["--fars=a"], "numbers separated by commas"),
        ({}, ["--fit=logistic"], "--fit and --calibration go together"),
        ({}, ["--calibration=c"], "--fit and --calibration go together"),
        ({}, ["--fit=platt", "--calibration=c"], "platt"),
        ({}, ["--resamples=1"], "at least 2 resamples"),
        ({}, ["--seed=-1"], "expected a whole number of 0 or more"),
        ({}, ["--json=absent/out.json"], "no folder absent"),
        ({}, ["--plot=out.pdf"], "expected a name that ends in .png"),
        ({}, ["--unknown=1"], "unknown"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(folder, replaced, flags, message):
    for name, array in replaced.items():
        np.save(f"{name}.npy", array)
    before = {path.name for path in folder.iterdir()}
    if not any("fit" in flag or "calibration" in flag for flag in flags):
        flags = ["--fit=logistic", "--calibration=made.safetensors", "--plot=made.png", *flags]
    with pytest.raises(UserError, match=message) as error:
        run("--json=made.json", *flags)
    assert "\n" not in str(error.value)
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda scores: -scores, "as distances do"),
        (lambda scores: 1 - scores, "give the distances' negatives"),
        (lambda scores: np.full_like(scores, 0.25), "all scores are 0.25"),
    ],
)
def test_distances_and_constants_are_told_and_not_calibrated(folder, capsys, change, said):
    np.save("ida_r.npy", change(np.load("ida_r.npy")))
    run("--resamples=0")
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: ida_r.npy: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
    before = {path.name for path in folder.iterdir()}
    for kind in ("logistic", "isotonic"):
        with pytest.raises(UserError, match=r"ida_r.npy: no calibration can be made") as caught:
            run("--resamples=0", f"--fit={kind}", "--calibration=c", "--json=j")
        assert said in str(caught.value)
    assert {path.name for path in folder.iterdir()} == before


def test_similarities_are_not_warned_of(folder, capsys):
    run("--resamples=0", "--baseline=cosine.npy")
    # Of no use, but no distances: a fair coin is not told from one by 600 pairs.
    np.save("ida_r.npy", np.random.default_rng(3).random(600))
    run("--resamples=0")
    assert capsys.readouterr().err == ""


def test_names_of_groups_are_harmless(folder, capsys):
    """A $ is no formula to matplotlib, and an escape sequence none to the terminal."""
    names = ["price $10_$20", "price $20_$40", "=cmd|' /C calc'!A0\x1b[31m"]
    parquet.write_table(pa.table({"group": [names[i % 3] for i in range(600)]}), "g.parquet")
    (folder / "$a_$b.npy").write_bytes((folder / "ida_r.npy").read_bytes())
    main(
        ["--scores=$a_$b.npy", "--labels=labels.npy", "--groups=g.parquet", "--fars=0.1",
         "--resamples=0", "--plot=out.png", "--json=out.json"]
    )  # fmt: skip
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    assert set(json.loads((folder / "out.json").read_text())["methods"]["scores"]["groups"]) == {
        *names
    }
    said = capsys.readouterr().out
    assert "price $10_$20" in said
    assert "\x1b" not in said


def test_groups_of_people(folder, capsys):
    same, identities = loaded("labels", "identities")
    names = np.array([f"p{i}" for i in range(PEOPLE)])
    table = pa.table({f"identity_{side + 1}": names[identities[:, side]] for side in (0, 1)})
    csv.write_csv(table, "people.csv")
    (folder / "groups.csv").write_text(
        "person,group\n" + "".join(f"p{i},{'FM'[i % 2]}\n" for i in range(2, PEOPLE))
    )
    run("--groups=groups.csv", "--identities=people.csv", "--fars=0.1", "--json=out.json",
        "--resamples=20", "--group_thresholds", "--plot=out.png")  # fmt: skip
    results = json.loads((folder / "out.json").read_text())
    (scores,) = loaded("ida_r")
    figures = results["methods"]["scores"]
    known = (identities >= 2).all(axis=1)
    parity = identities % 2
    cells = {"F": known & (parity == 0).all(axis=1), "M": known & (parity == 1).all(axis=1),
             "across groups": known & (parity[:, 0] != parity[:, 1])}  # fmt: skip
    held = figures["group_thresholds"]["0.1"]
    right = scores[same & ~known] > figures["threshold@far"]["0.1"]
    accepted = np.count_nonzero(right)
    for name, inside in cells.items():
        group = figures["groups"][name]
        assert group["genuine"] == np.count_nonzero(inside & same)
        assert group["impostor"] == np.count_nonzero(inside & ~same)
        (point,) = (
            tar_at_far(scores[inside & same], scores[inside & ~same], [0.1])
            if (inside & same).any()
            else (None,)
        )
        if point is not None:
            assert held["threshold"][name] == point.threshold
            accepted += np.count_nonzero(scores[inside & same] > point.threshold)
    assert held["tar"] == pytest.approx(accepted / np.count_nonzero(same))
    text = capsys.readouterr().out
    assert "2 of 15 people have no group" in text
    assert "one threshold per group" in text


def test_people_in_groups_need_identities(folder):
    (folder / "groups.csv").write_text("person,group\n1,a\n2,b\n")
    with pytest.raises(UserError, match="give --identities=I"):
        run("--groups=groups.csv")
    run("--groups=groups.csv", "--identities=identities.npy", "--resamples=0")
    with pytest.raises(UserError, match="--group_thresholds goes with --groups"):
        run("--group_thresholds")
    (folder / "groups.csv").write_text("person,group\nnobody,a\n")
    with pytest.raises(UserError, match="none of the 15 names, such as '0', is among the 1"):
        run("--groups=groups.csv", "--identities=identities.npy")
