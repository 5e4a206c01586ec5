"""ida-jax evaluate --protocol=…, from files to results and report."""

import json
import pickle

import cv2
import numpy as np
import pytest
from ijb_release import Size, write_release

from ida_jax import evaluate
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.supported_weight import SupportedWeight
from ida_jax.common.errors import UserError
from ida_jax.common.validation import unit_embeddings
from ida_jax.metrics.roc import tar_at_far
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.rescoring.rescorer import Rescorer

D = 12
PEOPLE = [f"P{chr(65 + i)}" for i in range(12)]


def _embeddings(names, person_of, seed=0):
    rng = np.random.default_rng(seed)
    centres = {person: rng.normal(size=D) for person in sorted({person_of(n) for n in names})}
    return np.float32([centres[person_of(n)] + 0.5 * rng.normal(size=D) for n in names])


@pytest.fixture
def anchors(tmp_path):
    path = tmp_path / "anchors.safetensors"
    embeddings = np.random.default_rng(7).normal(size=(70, D)).astype(np.float32)
    AnchorSet.from_embeddings(embeddings, k=5).save(path)
    return path


@pytest.fixture
def lfw(tmp_path):
    names = [f"{person}/{person}_{i:04d}.jpg" for person in PEOPLE for i in (1, 2, 3)]
    np.save(tmp_path / "E.npy", _embeddings(names, lambda name: name.split("/")[0]))
    (tmp_path / "E.names.txt").write_text("\r\n".join(names) + "\r\n")
    lines = ["3\t4"]
    for fold in range(3):
        own = PEOPLE[4 * fold : 4 * fold + 4]
        lines += [f"{person}\t1\t{2 + i % 2}" for i, person in enumerate(own)]
        lines += [f"{a}\t1\t{b}\t3" for a, b in zip(own, own[1:] + own[:1], strict=True)]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    return tmp_path


def _run(folder, *flags):
    evaluate.main([*flags, f"--output={folder / 'out'}", "--resamples=20"])
    results = json.loads((folder / "out" / "results.json").read_text())
    for name in ("report.html", "results.md", "results.tex"):
        assert (folder / "out" / name).stat().st_size
    return results["protocols"], results


def test_lfw(lfw, anchors, capsys):
    protocols, results = _run(
        lfw,
        "--protocol=lfw",
        f"--files={lfw / 'pairs.txt'}",
        f"--embeddings={lfw / 'E.npy'}",
        f"--anchors={anchors}",
        "--top_n=9",
    )
    (figures,) = protocols.values()
    assert list(protocols) == ["lfw_3fold"]
    assert list(figures) == ["cosine", "ida_r", "ida_r_fallback", "s_norm", "as_norm"]
    assert 0.5 < figures["cosine"]["accuracy"] <= 1
    assert {"accuracy_interval", "accuracy_gain_interval"} <= set(figures["ida_r"])
    assert results["settings"]["k"] == 5
    assert results["settings"]["methods"] == list(figures)
    assert not {"norm", "fars"} & set(results["settings"])
    assert results["anchors"] == {"source": "embeddings", "size": 70, "fingerprint": ""}
    assert results["provenance"]["versions"]
    assert "lfw_3fold" in capsys.readouterr().out


def test_insightfaces_rule_beside_ours(lfw, anchors, capsys):
    flags = [
        f"--files={lfw / 'pairs.txt'}",
        f"--embeddings={lfw / 'E.npy'}",
        f"--anchors={anchors}",
    ]
    protocols, results = _run(lfw, "--protocol=lfw", *flags, "--rule=insightface")
    assert list(protocols) == ["lfw_3fold", "lfw_3fold_insightface"]
    assert set(protocols["lfw_3fold"]) > {"cosine", "ida_r"}
    (figures,) = protocols["lfw_3fold_insightface"].values()
    norms = np.linalg.norm(np.load(lfw / "E.npy"), axis=1)
    np.testing.assert_allclose(figures["xnorm"], norms.mean())
    assert results["settings"]["rule"] == "insightface"
    assert "lfw_3fold has every method" in " ".join(results["notes"]["lfw_3fold_insightface"])
    assert "VAL@1e-3 %" in capsys.readouterr().out


def test_few_anchors_have_a_smaller_cohort(lfw, anchors, capsys):
    """Nobody asked for as_norm's usual 300 of the 70 anchors; of 71 somebody did."""
    flags = ["--protocol=all_pairs", f"--embeddings={lfw / 'E.npy'}", f"--anchors={anchors}"]
    protocols, results = _run(lfw, *flags, "--fars=0.1")
    assert "as_norm" in protocols["all_pairs"]
    assert results["settings"]["top_n"] == 70
    said = "as_norm: top_n is 70, for want of the usual 300: the set has only 70 anchors"
    assert said in results["notes"]["all_pairs"]
    assert said in capsys.readouterr().out
    assert "for want of the usual 300" in (lfw / "out" / "report.html").read_text()
    with pytest.raises(UserError, match="top_n = 71 neighbours were asked for among 70 anchors"):
        evaluate.main([*flags, "--top_n=71", f"--output={lfw / 'other'}"])


def test_people_among_the_anchors_are_left_out(lfw):
    """An anchor that is the face itself would be its own nearest neighbour."""
    faces = np.load(lfw / "E.npy")
    others = np.random.default_rng(7).normal(size=(70, D)).astype(np.float32)
    anchors = AnchorSet.from_embeddings(
        np.concatenate([others, faces[::3]]),
        labels=np.arange(82, dtype=np.int32),
        names=[f"X{i}" for i in range(70)] + PEOPLE,
        k=5,
        tau=20.0,
    )
    anchors.save(lfw / "anchors.safetensors")
    protocols, _ = _run(
        lfw, "--protocol=all_pairs", f"--embeddings={lfw / 'E.npy'}", "--methods=cosine,ida_r",
        f"--anchors={lfw / 'anchors.safetensors'}", "--fars=0.1,0.01",
    )  # fmt: skip
    people = np.repeat(np.arange(12), 3)
    unit = unit_embeddings(faces)
    scorer = Rescorer(anchors)
    found = {}
    for left_out, own in ((True, (70 + people).astype(np.int32)), (False, None)):
        split = score_all_pairs(unit, people, scorer.terms(unit, labels=own))
        found[left_out] = [point.threshold for point in tar_at_far(*split, [0.1, 0.01])]
    assert list(protocols["all_pairs"]["ida_r"]["threshold@far"].values()) == found[True]
    assert found[True] != found[False]


@pytest.mark.parametrize("protocol", ["lfw", "all_pairs"])
def test_people_among_the_anchors_are_left_out_for_the_weight(lfw, monkeypatch, protocol):
    others = np.random.default_rng(7).normal(size=(70, D)).astype(np.float32)
    AnchorSet.from_embeddings(
        np.concatenate([others, np.load(lfw / "E.npy")[::3]]),
        labels=np.arange(82, dtype=np.int32),
        names=[f"X{i}" for i in range(70)] + PEOPLE,
        k=5,
    ).save(lfw / "anchors.safetensors")
    given = []

    def found(probes, anchors, *, labels, **_):
        given.append(labels)
        return SupportedWeight(0.5, (), (), len(probes))

    monkeypatch.setattr("ida_jax.rescoring.methods.supported_weight", found)
    files = [f"--files={lfw / 'pairs.txt'}"] if protocol == "lfw" else []
    _, results = _run(
        lfw, f"--protocol={protocol}", *files, f"--embeddings={lfw / 'E.npy'}",
        "--methods=cosine,ida_r_fallback", f"--anchors={lfw / 'anchors.safetensors'}",
    )  # fmt: skip
    assert results["settings"]["weight"] == 0.5
    np.testing.assert_array_equal(given, [70 + np.repeat(np.arange(12), 3)])


def test_groups_are_shown(lfw, anchors):
    np.save(lfw / "groups.npy", np.arange(36) % 2)
    flags = ["--protocol=all_pairs", f"--embeddings={lfw / 'E.npy'}", "--fars=0.1"]
    groups = f"--groups={lfw / 'groups.npy'}"
    _run(lfw, *flags, f"--anchors={anchors}", "--top_n=9", groups)
    assert (lfw / "out" / "log-f-by-group.png").stat().st_size
    bad = [*flags, groups, "--top_n=9", f"--output={lfw / 'other'}"]
    with pytest.raises(UserError, match="give --anchors"):  # a protocol of accuracies shows log F
        evaluate.main(["--protocol=lfw", "--files=absent", bad[1], groups, bad[-1]])
    faces = np.load(lfw / "E.npy")
    faces[4] = 0
    np.save(lfw / "E.npy", faces)
    (lfw / "out" / "results.json").unlink()
    _run(lfw, *flags, f"--anchors={anchors}", "--top_n=9", groups, "--skip_bad")
    np.save(lfw / "groups.npy", np.arange(35) % 2)
    with pytest.raises(UserError, match="has 35 rows"):
        evaluate.main(bad)


def _group_list(lfw):
    (lfw / "groups.csv").write_text(
        "person,group\n"
        + "".join(f"{person},{'FM'[i % 2]}\n" for i, person in enumerate(PEOPLE[1:]))
    )
    return f"--groups={lfw / 'groups.csv'}", {p: "FM"[i % 2] for i, p in enumerate(PEOPLE[1:])}


def test_rates_by_group_of_all_pairs(lfw, capsys):
    flag, group_of = _group_list(lfw)
    flags = ["--protocol=all_pairs", f"--embeddings={lfw / 'E.npy'}", "--fars=0.1,0.02"]
    protocols, results = _run(lfw, *flags, flag, "--group_thresholds")
    figures = protocols["all_pairs"]["cosine"]
    faces = unit_embeddings(np.load(lfw / "E.npy"))
    people = np.repeat(PEOPLE, 3)
    first, second = np.triu_indices(36, 1)
    cosines, same = (faces @ faces.T)[first, second], people[first] == people[second]
    groups = np.array([group_of.get(person, "") for person in people])
    for name in ("F", "M", "across groups"):
        pair = np.char.add(groups[first], groups[second])
        inside = pair == name * 2 if len(name) == 1 else (pair == "FM") | (pair == "MF")
        group = figures["groups"][name]
        assert group["impostor"] == np.count_nonzero(inside & ~same)
        threshold = figures["threshold@far"]["0.1"]
        assert (
            abs(
                np.count_nonzero(cosines[inside & ~same] > threshold)
                - group["false_accepts"]["0.1"]
            )
            <= 1
        )  # the last bit of a cosine
        low, high = group["realised_far_interval"]["0.1"]
        assert low <= high
    assert set(figures["group_thresholds"]["0.02"]["threshold"]) == {
        "F", "M", "across groups", "no group"
    }  # fmt: skip
    assert any("3 of 36 faces have no group" in note for note in results["notes"]["all_pairs"])
    assert (lfw / "out" / "far-by-group-all_pairs.png").stat().st_size
    for file in ("report.html", "results.md"):
        assert "one threshold per group" in (lfw / "out" / file).read_text()
    assert "Groups at the one threshold of FAR 1e-1" in capsys.readouterr().out


def test_rates_by_group_of_listed_pairs(lfw):
    flag, _ = _group_list(lfw)
    rng = np.random.default_rng(0)
    pairs = np.array([rng.choice(36, 2, replace=False) for _ in range(200)])
    people = np.repeat(PEOPLE, 3)[pairs]
    np.save(lfw / "pairs.npy", pairs)
    np.save(lfw / "labels.npy", people[:, 0] == people[:, 1])
    np.save(lfw / "people.npy", np.unique(people, return_inverse=True)[1].reshape(-1, 2))
    flags = ["--protocol=pairs", f"--embeddings={lfw / 'E.npy'}", f"--files={lfw / 'pairs.npy'}",
             f"--labels={lfw / 'labels.npy'}", "--fars=0.1", flag]  # fmt: skip
    protocols, results = _run(lfw, *flags)
    group = protocols["pairs"]["cosine"]["groups"]["F"]
    assert "realised_far_interval" not in group
    assert any("no intervals" in note for note in results["notes"]["pairs"])
    (lfw / "out" / "results.json").unlink()
    protocols, _ = _run(lfw, *flags, f"--identities={lfw / 'people.npy'}")
    with_intervals = protocols["pairs"]["cosine"]["groups"]["F"]
    assert len(with_intervals.pop("realised_far_interval")["0.1"]) == 2
    assert with_intervals.pop("tar_interval@far")
    assert with_intervals == group


def test_levels_of_norms(lfw):
    flags = ["--protocol=all_pairs", f"--embeddings={lfw / 'E.npy'}", "--fars=0.1"]
    protocols, results = _run(lfw, *flags, "--groups=norms:4")
    counts = [
        g["genuine"] + g["impostor"] for g in protocols["all_pairs"]["cosine"]["groups"].values()
    ]
    assert len(counts) == 4
    assert sum(counts) == 36 * 35 // 2
    assert any("levels of the embeddings' norms" in note for note in results["notes"]["all_pairs"])
    assert results["settings"]["groups"] == "norms:4"
    np.save(lfw / "E.npy", unit_embeddings(np.load(lfw / "E.npy")))
    (lfw / "out" / "results.json").unlink()
    with pytest.raises(UserError, match="norms that are all alike"):
        _run(lfw, *flags, "--groups=norms:4")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--groups=norms:1"], "expected norms:N"),
        (["--group_thresholds"], "--group_thresholds goes with --groups"),
        (["--groups=absent.csv"], "no groups at absent.csv"),
        (["--protocol=lfw", "--groups=norms:3", "--group_thresholds", "--files=x"],
         "is for pairs, all_pairs, not for lfw"),
    ],
)  # fmt: skip
def test_groups_that_cannot_be(lfw, flags, said):
    protocol = [] if flags[0].startswith("--protocol") else ["--protocol=all_pairs"]
    with pytest.raises(UserError, match=said):
        _run(lfw, *protocol, f"--embeddings={lfw / 'E.npy'}", *flags)
    assert not (lfw / "out" / "results.json").exists()


def test_calfw(lfw):
    lines = []
    for fold, person in enumerate(PEOPLE[:4], 1):
        lines += [f"{person}_0001.jpg {1 + fold % 2}", f"{person}_0002.jpg {1 + fold % 2}"]
    for a, b in zip(PEOPLE[:4], PEOPLE[4:8], strict=True):
        lines += [f"{a}_0003.jpg 0", f"{b}_0003.jpg 0"]
    (lfw / "pairs_CALFW.txt").write_text("\r\n".join(lines))
    protocols, _ = _run(lfw, "--protocol=calfw", f"--files={lfw}", f"--embeddings={lfw / 'E.npy'}")
    assert protocols["calfw_2fold"]["cosine"]["pairs"] == 8


def test_bin(lfw):
    encoded = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    same = [i % 2 == 0 for i in range(18)]
    (lfw / "agedb_30.bin").write_bytes(pickle.dumps(([encoded] * 36, same)))
    faces = np.load(lfw / "E.npy")
    order = [row for i in range(18) for row in ((i, i) if same[i] else (i, (i + 9) % 36))]
    np.save(lfw / "of_bin.npy", faces[order])
    flags = ["--protocol=bin", f"--files={lfw / 'agedb_30.bin'}"]
    protocols, results = _run(lfw, *flags, f"--embeddings={lfw / 'of_bin.npy'}")
    assert protocols["agedb_30_10fold"]["cosine"]["accuracy"] == 1
    assert protocols["agedb_30_10fold"]["cosine"]["pairs"] == 18
    assert "pairs for independent" in results["notes"]["agedb_30_10fold"][-1]
    np.save(lfw / "of_bin.npy", faces[:35])
    with pytest.raises(UserError, match=r"has 35 embeddings and .* 36 images"):
        evaluate.main([*flags, f"--embeddings={lfw / 'of_bin.npy'}", f"--output={lfw / 'other'}"])


@pytest.mark.parametrize("identities", [False, True])
def test_labelled_pairs(lfw, identities):
    rng = np.random.default_rng(3)
    pairs = rng.integers(36, size=(300, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    names = (lfw / "E.names.txt").read_text().split()
    people = np.array([name.split("/")[0] for name in names])
    same = people[pairs[:, 0]] == people[pairs[:, 1]]
    place = np.empty(len(pairs))  # both kinds in each of ten folds
    for kind in (same, ~same):
        place[kind] = np.linspace(0, 1, kind.sum())
    pairs, same = pairs[np.argsort(place)], same[np.argsort(place)]
    rows = [f"{names[a]},{names[b]}" for a, b in pairs]
    (lfw / "list.csv").write_text("\r\n".join(["first,second", *rows]))
    np.save(lfw / "labels.npy", same)
    flags = []
    if identities:
        sides = [f"{people[a]},{people[b]}" for a, b in pairs]
        (lfw / "people.csv").write_text("\n".join(["identity_1,identity_2", *sides]))
        flags = [f"--identities={lfw / 'people.csv'}"]
    (lfw / "rule").mkdir()
    protocols, results = _run(
        lfw, "--protocol=pairs", f"--files={lfw / 'list.csv'}", f"--labels={lfw / 'labels.npy'}",
        f"--embeddings={lfw / 'E.npy'}", "--fars=0.1", *flags,
    )  # fmt: skip
    figures = protocols["pairs"]["cosine"]
    assert figures["genuine"] == same.sum()
    both, _ = _run(
        lfw / "rule", "--protocol=pairs", "--rule=insightface", f"--files={lfw / 'list.csv'}",
        f"--labels={lfw / 'labels.npy'}", f"--embeddings={lfw / 'E.npy'}", "--fars=0.1", *flags,
    )  # fmt: skip
    assert both["pairs"] == protocols["pairs"]
    assert both["pairs_10fold_insightface"]["cosine"]["pairs"] == same.size
    told = any("take pairs for independent" in note for note in results["notes"].get("pairs", []))
    assert told is not identities


def test_ytf(tmp_path, anchors):
    lines = [
        f"{fold}, {i}, {PEOPLE[fold + a]}/0, {PEOPLE[fold + b]}/1, {int(a == b)}"
        for fold in (1, 2, 3)
        for i, (a, b) in enumerate([(0, 0), (4, 4), (0, 4), (4, 0)], 1)
    ]
    (tmp_path / "splits.txt").write_text("\n".join(lines))
    names = [f"{p}/{v}/{i}.jpg" for p in PEOPLE for v in (0, 1) for i in range(3)]
    np.savez(
        tmp_path / "E.npz",
        embeddings=_embeddings(names, lambda name: name.split("/")[0]),
        names=np.array(names),
    )
    protocols, _ = _run(
        tmp_path, "--protocol=ytf", f"--files={tmp_path}", f"--embeddings={tmp_path / 'E.npz'}",
        f"--anchors={anchors}", "--methods=cosine,ida_r",
    )  # fmt: skip
    assert list(protocols) == ["ytf_mean_feature", "ytf_first100_pairs"]


def test_ijb(tmp_path, anchors):
    release = tmp_path / "release"
    write_release(release, Size(120, 40, 16, 300, 20, D))
    names = [f"loose_crop/{i + 1}.jpg" for i in range(120)]
    order = np.random.default_rng(0).permutation(120)  # names bring them back into the lists' order
    shuffled = np.load(release / "embeddings.npy")[order]
    np.savez(tmp_path / "E.npz", embeddings=shuffled, names=np.array(names)[order])
    common = ["--protocol=ijbc", f"--files={release}", f"--anchors={anchors}", "--fars=0.1",
              "--methods=cosine,ida_r", "--galleries=joined"]  # fmt: skip
    found = {}
    for kind, embeddings in (("names", tmp_path / "E.npz"), ("rows", release / "embeddings.npy")):
        (tmp_path / kind).mkdir()
        found[kind], _ = _run(tmp_path / kind, *common, f"--embeddings={embeddings}")
    assert found["names"] == found["rows"]
    twice = np.array(names)[order]
    twice[1] = "other/" + twice[0].rsplit("/")[-1]
    np.savez(tmp_path / "E.npz", embeddings=shuffled, names=twice)
    with pytest.raises(UserError, match="several images named"):
        evaluate.main([*common, f"--embeddings={tmp_path / 'E.npz'}", f"--output={tmp_path / 'x'}"])
    assert {"ijbc_1to1_norm_detector", "ijbc_1toN_joined_norm_detector"} <= set(found["rows"])
    assert "rank" in found["rows"]["ijbc_1toN_norm_detector"]["ida_r"]
    # With PFE: the same names bring the variances into the lists' order too.
    np.savez(tmp_path / "E.npz", embeddings=shuffled, names=np.array(names)[order])
    log_variances = np.random.default_rng(1).normal(-6, 1, shuffled.shape).astype(np.float32)
    np.save(tmp_path / "V.npy", log_variances[order])
    np.save(tmp_path / "rows.npy", log_variances)
    np.save(tmp_path / "A.npy", np.zeros((70, D), np.float32))
    for kind, embeddings, variances in (
        ("pfe", tmp_path / "E.npz", "V.npy"), ("pfe_rows", release / "embeddings.npy", "rows.npy")
    ):  # fmt: skip
        (tmp_path / kind).mkdir()
        found[kind], _ = _run(
            tmp_path / kind, *common, f"--embeddings={embeddings}",
            f"--log_variances={tmp_path / variances}",
            f"--anchor_log_variances={tmp_path / 'A.npy'}",
        )  # fmt: skip
    assert found["pfe"] == found["pfe_rows"]
    assert set(found["pfe"]["ijbc_1to1_norm_detector"]) == {
        "cosine", "ida_r", "pfe_fusion", "pfe", "pfe_ida_r", "pfe_mls_ida_r"
    }  # fmt: skip
    with pytest.raises(UserError, match="--anchor_log_variances needs --log_variances=V"):
        evaluate.main(
            [*common, f"--embeddings={tmp_path / 'E.npz'}", f"--output={tmp_path / 'x'}",
             f"--anchor_log_variances={tmp_path / 'A.npy'}"]
        )  # fmt: skip
    with pytest.raises(UserError, match="is E itself"):
        evaluate.main(
            [*common, f"--embeddings={release / 'embeddings.npy'}", f"--output={tmp_path / 'x'}",
             f"--log_variances={release / 'embeddings.npy'}"]
        )  # fmt: skip
    np.save(tmp_path / "V.npy", log_variances[:7])
    with pytest.raises(UserError, match="expected one of each entry"):
        evaluate.main(
            [*common, f"--embeddings={tmp_path / 'E.npz'}", f"--output={tmp_path / 'x'}",
             f"--log_variances={tmp_path / 'V.npy'}"]
        )  # fmt: skip


def test_megaface(tmp_path, anchors):
    lists = tmp_path / "lists"
    lists.mkdir()
    probes = [f"{p}/{p}_{i}.png" for p in PEOPLE[:4] for i in range(3)]
    ids = [path.split("/")[0] for path in probes]
    others = [f"{i}/{i}_0.jpg" for i in range(25)]
    features = {"path": probes, "id": ids}
    (lists / "facescrub_features_list.json").write_text(json.dumps(features))
    (lists / "megaface_features_list.json_25_1").write_text(json.dumps({"path": others}))
    (lists / "megaface_noises.txt").write_text(f"# found by hand\r\n{others[3]}\r\n")
    for name, paths in (("E", probes), ("D", others)):
        np.savez(
            tmp_path / f"{name}.npz",
            embeddings=_embeddings(paths, lambda path: path.split("/")[0]),
            names=np.array(paths),
        )
    protocols, results = _run(
        tmp_path, "--protocol=megaface", f"--files={lists}", f"--embeddings={tmp_path / 'E.npz'}",
        f"--distractors={tmp_path / 'D.npz'}", f"--anchors={anchors}", "--methods=cosine,ida_r",
    )  # fmt: skip
    assert "10" in protocols["megaface"]["ida_r"]["rank1@distractors"]
    assert results["notes"]["megaface"]


MISTAKES = [
    (["--protocol=lfw"], "--protocol=lfw needs --files"),
    (["--protocol=pairs", "--files=x"], "--protocol=pairs needs --labels"),
    (["--protocol=agedb"], "invalid choice"),
    (["--protocol=all_pairs", "--methods=ida_r"], "ida_r needs --anchors, or --run"),
    (["--protocol=all_pairs", "--methods=best"], "'best' is unknown"),
    (["--protocol=all_pairs", "--run=nowhere"], "no workdir at nowhere"),
    (["--protocol=all_pairs", "--anchors=nowhere.npy"], "no anchors at nowhere.npy"),
    (["--protocol=all_pairs", "--resamples=1"], "at least 2"),
    (["--protocol=all_pairs", "--methods=,"], "--methods: is empty"),
    (["--protocol=all_pairs", "--norm=unit"], "--norm is for ijbb, ijbc, not for all_pairs"),
    (["--protocol=all_pairs", "--fars=0.1,2"], "--fars: 2 is not"),
    (["--protocol=all_pairs", "--run=."], "holds none of anchors/anchors.safetensors"),
    (["--protocol=all_pairs", "--names=nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_mistakes_leave_nothing_behind(lfw, flags, message):
    given = [f"--embeddings={lfw / 'E.npy'}", f"--output={lfw / 'out'}", *flags]
    with pytest.raises(UserError, match=message) as caught:
        evaluate.main(given)
    assert "\n" not in str(caught.value)
    assert not (lfw / "out").exists()


def test_mistakes_in_the_files(lfw):
    given = [f"--embeddings={lfw / 'E.npy'}", f"--output={lfw / 'out'}"]
    lines = (lfw / "pairs.txt").read_text().splitlines()
    (lfw / "pairs.txt").write_text("\n".join([lines[0], "Nobody\t1\t2", *lines[2:]]))
    with pytest.raises(UserError, match=r"pairs.txt:2: Nobody/Nobody_0001 is not among the 36"):
        evaluate.main([*given, "--protocol=lfw", f"--files={lfw / 'pairs.txt'}"])
    np.save(lfw / "labels.npy", np.ones(3, bool))
    (lfw / "list.csv").write_text("PA/PA_0001.jpg,PB/PB_0001.jpg\n")
    with pytest.raises(UserError, match=r"has 3 rows and .* has 1 pairs"):
        evaluate.main(
            [*given, "--protocol=pairs", f"--files={lfw / 'list.csv'}",
             f"--labels={lfw / 'labels.npy'}"]
        )  # fmt: skip
    (lfw / "E.names.txt").write_text("\n".join(f"face{i}" for i in range(36)))
    with pytest.raises(UserError, match=r"row 0 of .* is named face0: expected PERSON/IMAGE"):
        evaluate.main([*given, "--protocol=all_pairs"])
    (lfw / "E.names.txt").unlink()
    with pytest.raises(UserError, match="has no names"):
        evaluate.main([*given, "--protocol=all_pairs"])
    assert not (lfw / "out").exists()


def test_faces_without_an_embedding(lfw):
    faces = np.load(lfw / "E.npy")
    faces[0] = np.nan
    np.save(lfw / "E.npy", faces)
    common = [f"--embeddings={lfw / 'E.npy'}", "--protocol=lfw", f"--files={lfw / 'pairs.txt'}"]
    with pytest.raises(UserError, match=r"E\.npy"):
        evaluate.main([*common, f"--output={lfw / 'out'}"])
    assert not (lfw / "out").exists()
    protocols, results = _run(lfw, *common, "--skip_bad")
    assert "1 faces without an embedding never match" in results["notes"]["lfw_3fold"]
    assert protocols["lfw_3fold"]["cosine"]["pairs"] == 24
    (lfw / "every").mkdir()
    protocols, _ = _run(
        lfw / "every", common[0], "--protocol=all_pairs", "--skip_bad", "--fars=0.1"
    )
    assert protocols["all_pairs"]["cosine"]["genuine"] == 35 - 1


def test_pairs_of_rows_though_names_lie_beside(lfw):
    np.save(lfw / "labels.npy", np.array([True, True, False, False]))
    (lfw / "list.csv").write_text("first,second\n0,1\n3,4\n0,3\n4,9\n")
    protocols, _ = _run(
        lfw, "--protocol=pairs", f"--files={lfw / 'list.csv'}", f"--labels={lfw / 'labels.npy'}",
        f"--embeddings={lfw / 'E.npy'}", "--fars=0.5",
    )  # fmt: skip
    assert protocols["pairs"]["cosine"]["genuine"] == 2


def test_an_output_that_cannot_be_written(lfw):
    given = [f"--embeddings={lfw / 'E.npy'}", "--protocol=all_pairs", "--fars=0.1"]
    with pytest.raises(UserError, match=r"cannot write .*pairs.txt/out"):
        evaluate.main([*given, f"--output={lfw / 'pairs.txt' / 'out'}"])


def test_results_are_not_overwritten(lfw):
    flags = ["--protocol=all_pairs", f"--embeddings={lfw / 'E.npy'}", "--fars=0.1"]
    _run(lfw, *flags)
    with pytest.raises(UserError, match="already holds results"):
        _run(lfw, *flags)
