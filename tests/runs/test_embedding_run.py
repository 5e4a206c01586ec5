"""The SSR module from a file of embeddings: the command, its resumption, and mistakes."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
from environment import with_devices
from ml_collections import ConfigDict

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import embedding_anchors
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.errors import UserError
from ida_jax.rescoring.density import searched_log_density
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.runs import embedding_run
from ida_jax.runs.embedding_inputs import anchors_of_others, held_out_rows, read_inputs
from ida_jax.runs.stages import run
from ida_jax.training import ssr_choice

CONFIG = Path(__file__).parents[2] / "configs" / "ssr_from_embeddings.py"
GET_CONFIG = runpy.run_path(str(CONFIG))["get_config"]
PEOPLE = np.repeat(np.arange(60), 5)
NAMES = np.array([f"person {number:02}" for number in range(60)])


@pytest.fixture
def files(tmp_path):
    """Embeddings of any norm, who is on them, and anchors: each identity's first image."""
    group = np.arange(60) % 4  # the groups are of other densities
    spread = np.array([0.1, 0.3, 0.6, 1.0])[group, None]
    centres = reference.unit((4, 12), 0)[group] + spread * reference.unit((60, 12), 2)
    faces = (centres[PEOPLE] + 0.2 * reference.unit((300, 12), 1)).astype(np.float32)
    np.save(tmp_path / "e.npy", 3 * faces)
    np.save(tmp_path / "l.npy", PEOPLE)
    (tmp_path / "names.txt").write_text("\n".join(NAMES[PEOPLE]) + "\n")
    named = embedding_anchors(faces, people=NAMES[PEOPLE], size=60, k=4)
    assert named.names == tuple(NAMES)
    AnchorSet.from_embeddings(
        named.embeddings, labels=named.labels, names=named.names, fingerprint="abc"
    ).save(tmp_path / "a.safetensors")
    AnchorSet.from_embeddings(named.embeddings, labels=named.labels).save(
        tmp_path / "nameless.safetensors"
    )
    AnchorSet.from_embeddings(named.embeddings).save(tmp_path / "unlabelled.safetensors")
    return tmp_path


def _config(folder, **changes):
    c = GET_CONFIG("smoke")
    c.embeddings, c.anchors, c.labels = (
        str(folder / name) for name in ("e.npy", "a.safetensors", "l.npy")
    )
    c.k = 4
    c.held_out = 0.25
    c.evaluate.fars = (1e-2,)
    c.ssr.update({"batch_size": 64, "input": "scaled", "learning_rate": 0.02, "copies": 1})
    for key, value in changes.items():
        where, *rest = key.split("__")
        if rest:
            c[where][rest[0]] = value
        else:
            c[where] = value
    return c


def test_the_module_follows_the_search_on_identities_it_has_not_seen(files, tmp_path):
    further = ("ida_q_label_free",)
    results = run(_config(files, evaluate__further=further), tmp_path / "run")
    assert results["model"]["fingerprint"] == "abc"
    assert set(results["ssr"]) == {"r2", "rank_correlation"}
    assert results["ssr"]["r2"] > 0.5
    # A quarter of the identities, and none of their anchors.
    assert results["held_out"] == {"faces": 75, "training_faces": 225, "identities": 15}
    assert results["anchors"]["size"] == 45
    assert {"command", "commit", "devices", "versions"} <= set(results["provenance"])
    assert set(results["protocols"]) == {"held_out_all_pairs"}
    methods = results["protocols"]["held_out_all_pairs"]
    assert set(methods) == {"cosine", "ida_r", "ida_l", *further}
    for figures in methods.values():
        assert (figures["genuine"], figures["impostor"]) == (150, 75 * 74 // 2 - 150)
        assert set(figures["tar@far"]) == {"0.01"}
    for name in ("results.json", "report.html", "metrics.jsonl", "ssr.safetensors", "results.md"):
        assert (tmp_path / "run" / name).is_file(), name
    assert not list((tmp_path / "run").rglob(".*"))

    faces = np.load(files / "e.npy")
    rescorer = Rescorer.from_ssr(tmp_path / "run" / "ssr.safetensors")
    assert rescorer.score(faces[:7], faces[7:14]).shape == (7,)
    assert SSRModule.load(tmp_path / "run" / "ssr.safetensors").k == 4


def test_settings_chosen_on_held_out_people(files, tmp_path, monkeypatch, capsys):
    setting = ssr_choice.Setting(32, 1, 0.5, 5e-3)
    monkeypatch.setattr(ssr_choice, "GRID", (setting,))
    monkeypatch.setattr(ssr_choice, "FOLDS", 3)
    config = _config(files, ssr__choose="auto", held_out=0.1)
    results = run(config, tmp_path / "run")
    module = SSRModule.load(tmp_path / "run" / "ssr.safetensors")
    assert results["ssr"].items() >= module.judgement().items()
    assert module.held_out.people == 36  # of 54 trained on; a third has chosen
    assert (module.held_out.hidden, module.fingerprint) == (32, "abc")
    assert module.held_out.note() in results["notes"]["held_out_all_pairs"]
    printed = capsys.readouterr().out
    assert "ssr: width 32, 1 copies" in printed
    assert module.held_out.note() in printed
    files = sorted(path.name for path in (tmp_path / "run" / "targets").iterdir())
    assert files == ["held_out-from-000000000.safetensors"]
    config.ssr.choose = "given"
    assert set(run(config, tmp_path / "run")["ssr"]) == {"r2", "rank_correlation"}
    assert "ssr.choose was auto, is now given" in capsys.readouterr().out


def test_held_out_people_are_nowhere_else(files):
    config = _config(files)
    inputs = read_inputs(config)
    held = held_out_rows(inputs, config)
    identities = np.unique(PEOPLE[held])
    assert len(identities) == 15
    np.testing.assert_array_equal(held, np.isin(PEOPLE, identities))
    others = anchors_of_others(inputs, held)
    np.testing.assert_array_equal(others.labels, np.setdiff1d(np.arange(60), identities))
    np.testing.assert_array_equal(held, held_out_rows(inputs, config))
    config.seed = 1
    assert np.any(held != held_out_rows(inputs, config))


@pytest.mark.parametrize("limit", [10, 74, 75, 76])
def test_the_report_is_of_so_many_faces_at_most(files, limit):
    config = _config(files, evaluate__most_faces=limit)
    held = held_out_rows(read_inputs(config), config)
    assert held.sum() == 5 * (min(limit, 75) // 5)


def test_names_and_numbers_give_the_same_run(files, tmp_path):
    by_number = run(_config(files), tmp_path / "number")
    by_name = run(_config(files, labels=str(files / "names.txt")), tmp_path / "name")
    for key in ("ssr", "protocols", "held_out", "notes"):
        assert by_number[key] == by_name[key]


def test_a_fingerprint_of_the_embeddings_is_taken_over(files, tmp_path):
    np.savez(files / "xyz.npz", embeddings=np.load(files / "e.npy"), fingerprint="xyz")
    given = {"embeddings": "xyz.npz", "anchors": "nameless.safetensors"}
    given = {key: str(files / name) for key, name in given.items()}
    results = run(_config(files, **given), tmp_path / "run")
    assert results["model"]["fingerprint"] == "xyz"
    assert SSRModule.load(tmp_path / "run" / "ssr.safetensors").fingerprint == "xyz"


@pytest.mark.parametrize("labels", ["l.npy", "names.txt"])
def test_people_who_are_one_person_are_left_out(files, tmp_path, labels):
    config = _config(files, labels=str(files / labels))
    held = np.unique(PEOPLE[held_out_rows(read_inputs(config), config)])
    others = np.setdiff1d(np.arange(60), held)
    pairs = [(held[3], held[0]), (held[1], others[0]), (held[2], 99)]
    names = [str, lambda number: f"person {number:02}"][labels == "names.txt"]
    lines = [f"{names(a)}\t{names(b)}" for a, b in pairs]
    (files / "one.tsv").write_text("\n".join(lines))
    config.evaluate.ignore_identity_pairs = str(files / "one.tsv")
    results = run(config, tmp_path / "run")
    for figures in results["protocols"]["held_out_all_pairs"].values():
        assert figures["ignored_pairs"] == 25
        assert (figures["genuine"], figures["impostor"]) == (150, 75 * 74 // 2 - 150 - 25)
    note = results["notes"]["held_out_all_pairs"][0]
    assert note.startswith("25 impostor pairs between 1 pairs of identities")
    assert "2 pairs of the list have" in note
    # The list is of the evaluation alone: without it nothing else is run again.
    config.evaluate.ignore_identity_pairs = None
    before = (tmp_path / "run" / "ssr.safetensors").stat().st_mtime_ns
    methods = run(config, tmp_path / "run")["protocols"]["held_out_all_pairs"]
    assert {of["impostor"] for of in methods.values()} == {75 * 74 // 2 - 150}
    assert (tmp_path / "run" / "ssr.safetensors").stat().st_mtime_ns == before


def test_unknown_people_are_trained_on_and_never_held_out(files, tmp_path):
    labels = PEOPLE.copy()
    labels[::5] = -7
    np.save(files / "l.npy", labels)
    results = run(_config(files), tmp_path / "run")
    assert results["held_out"] == {"faces": 60, "training_faces": 240, "identities": 15}
    (notes,) = results["notes"].values()
    assert any(f"{np.sum(labels < 0)} faces of unknown identity" in note for note in notes)


def test_a_faces_own_identity_is_left_out_of_its_target(files, tmp_path):
    config = _config(files, ssr__copies=0)
    run(config, tmp_path / "run")
    inputs = read_inputs(config)
    held = held_out_rows(inputs, config)
    anchors = anchors_of_others(inputs, held)
    from ida_jax.common.files import load_tensors

    path = tmp_path / "run" / "targets" / "training-from-000000000.safetensors"
    found, _ = load_tensors(path, kind="ssr_targets")
    faces = np.asarray(inputs.faces[~held], np.float64)
    top = reference.top_k(
        faces, np.asarray(anchors.embeddings, np.float64), 4, PEOPLE[~held], anchors.labels
    )
    expected = -np.log(np.sum(np.exp(top), axis=1))
    np.testing.assert_allclose(found["log_density"], expected, atol=1e-5)
    with_own = searched_log_density(inputs.faces[~held], anchors, k=4, tau=1.0)
    assert np.mean(with_own < found["log_density"] - 1e-3) > 0.5


def test_anchors_of_other_people_need_no_labels(files, tmp_path, capsys):
    strangers = AnchorSet.from_embeddings(reference.unit((50, 12), 9, clusters=5))
    strangers.save(files / "strangers.safetensors")
    given = {"anchors": str(files / "strangers.safetensors"), "disjoint": True}
    results = run(_config(files, labels=None, **given), tmp_path / "unlabelled")
    assert results["protocols"] == {}
    assert set(results["ssr"]) == {"r2", "rank_correlation"}
    assert results["held_out"] == {"faces": 75, "training_faces": 225}
    assert "no TAR can be given" in results["notes"]["held_out"][0]
    assert "no TAR can be given" in capsys.readouterr().out
    # With labels, the report has its pairs.
    results = run(_config(files, **given), tmp_path / "labelled")
    assert results["held_out"]["identities"] == 15
    assert results["anchors"]["size"] == 50
    assert set(results["protocols"]["held_out_all_pairs"]) == {"cosine", "ida_r", "ida_l"}


def test_a_killed_run_keeps_the_targets_it_has(files, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_run, "_PART", 100)
    undisturbed = run(_config(files), tmp_path / "undisturbed")
    calls = []

    class Search(embedding_run.SupportSearch):
        def __call__(self, queries, labels=None):
            calls.append(len(queries))
            if len(calls) == kill_at:
                raise KeyboardInterrupt
            return super().__call__(queries, labels)

    monkeypatch.setattr(embedding_run, "SupportSearch", Search)
    kill_at = 4
    with pytest.raises(KeyboardInterrupt):
        run(_config(files), tmp_path / "run")
    assert calls == [75, 100, 100, 100]
    assert len(list((tmp_path / "run" / "targets").iterdir())) == 3
    calls.clear()
    kill_at = 0
    resumed = run(_config(files), tmp_path / "run")
    assert calls == [100, 100, 50]
    for key in ("ssr", "protocols"):
        assert resumed[key] == undisturbed[key]
    calls.clear()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert run(_config(files), tmp_path / "run") == resumed
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert not calls


def test_anchors_that_are_the_faces_are_refused(files, tmp_path):
    AnchorSet.from_embeddings(np.load(files / "e.npy")).save(files / "own.safetensors")
    given = {"anchors": str(files / "own.safetensors"), "disjoint": True}
    with pytest.raises(UserError, match="75 of 75 faces are themselves among their anchors"):
        run(_config(files, labels=None, **given), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_targets_of_other_files_are_not_taken(files, tmp_path):
    run(_config(files), tmp_path / "run")
    for name in ("results.json", "ssr.safetensors"):
        (tmp_path / "run" / name).unlink()
    np.save(files / "e.npy", np.load(files / "e.npy")[::-1])
    with pytest.raises(UserError, match="was searched for other embeddings"):
        run(_config(files), tmp_path / "run")


def test_a_workdir_of_another_config_is_refused(files, tmp_path):
    run(_config(files), tmp_path / "run")
    with pytest.raises(UserError, match=r"begun by another config \(k was 4, is now 5"):
        run(_config(files, k=5), tmp_path / "run")


def test_on_the_fly_targets_leave_the_same_files(files, tmp_path):
    results = run(_config(files, ssr__targets="on_the_fly"), tmp_path / "run")
    assert results["ssr"]["r2"] > 0.5
    made = {path.name for path in (tmp_path / "run" / "targets").iterdir()}
    assert made == {"held_out-from-000000000.safetensors"}


def _write(folder):
    np.save(folder / "short.npy", PEOPLE[:5])
    np.save(folder / "floats.npy", PEOPLE / 2)
    np.save(folder / "others.npy", PEOPLE + 100)
    np.save(folder / "one.npy", np.zeros(300, int))
    np.save(folder / "pairs.npy", PEOPLE.reshape(-1, 2))
    (folder / "strangers.txt").write_text("\n".join(f"s{i}" for i in PEOPLE) + "\n")
    np.save(folder / "narrow.npy", reference.unit((300, 8), 0).astype(np.float32))
    faces = np.load(folder / "e.npy")
    np.savez(folder / "xyz.npz", embeddings=faces, fingerprint="xyz")
    bad = faces.copy()
    bad[3], bad[8] = 0, np.nan
    np.save(folder / "bad.npy", bad)
    np.save(folder / "lonely.npy", np.where(np.arange(300) < 60, np.arange(300), -1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": None}, "embeddings is not given: add --config.embeddings=E.npy"),
        ({"anchors": None}, "anchors is not given: add --config.anchors=A.safetensors"),
        ({"embeddings": "missing.npy"}, "no embeddings at"),
        ({"anchors": "missing.safetensors"}, "no file at"),
        ({"labels": "missing.npy"}, "no labels at"),
        ({"labels": None}, "labels are not given, and a face's own identity must be left out"),
        ({"anchors": "unlabelled.safetensors"}, "has no labels, so that a face's own identity"),
        ({"anchors": "nameless.safetensors", "labels": "names.txt"}, "the anchors have none"),
        ({"anchors": "e.npy", "disjoint": True}, "anchors are the embeddings themselves"),
        ({"labels": "strangers.txt"}, "none of the labels' identities ('s0', …) is among"),
        ({"labels": "others.npy"}, "none of the labels' identities ('100', …) is among"),
        ({"labels": "short.npy"}, "5 labels for 300 embeddings"),
        ({"labels": "floats.npy"}, "is float64 [300]: expected integers or names"),
        ({"labels": "pairs.npy"}, "is int64 [150, 2]: expected integers or names [N]"),
        ({"labels": "one.npy"}, "held_out is 0.25 of 1 identities, 0"),
        ({"labels": "lonely.npy"}, "and one with two faces; raise held_out"),
        ({"embeddings": "narrow.npy"}, "narrow.npy's embeddings are 8 wide, the anchors' 12"),
        ({"embeddings": "xyz.npz"}, "xyz.npz's fingerprint is xyz, the anchors' abc"),
        ({"embeddings": "bad.npy"}, "rows 3, 8 are zero, NaN or infinite"),
        ({"k": 45}, "k is 45, but a support set can have at most 44 anchors here"),
        ({"k": 0}, "k is 0: expected 1 or more"),
        ({"tau": 0.0}, "tau is 0.0: expected a finite number above 0"),
        ({"held_out": 0.0}, "held_out is 0.0: expected a share between 0 and 1"),
        ({"held_out": 0.01}, "held_out is 0.01 of 60 identities, 1: expected at least 2"),
        ({"held_out": 0.001, "labels": None, "disjoint": True}, "0.001 of 300 faces, 0"),
        ({"evaluate__most_faces": 9}, "the 1 identities held out have 5 faces"),
        ({"evaluate__most_faces": 1}, "evaluate.most_faces is 1"),
        ({"evaluate__fars": (2.0,)}, "evaluate.fars is (2.0,)"),
        ({"evaluate__resamples": 1}, "evaluate.resamples is 1: expected 2 or more"),
        ({"evaluate__further": ("ida_x",)}, "evaluate.further is 'ida_x': choose one of cosine"),
        ({"evaluate__further": ("as_norm", "csn")}, "evaluate.further is 'csn'"),
        ({"ssr__targets": "guessed"}, "'guessed': choose one of searched, on_the_fly"),
        ({"ssr__target": "f"}, "ssr.target is 'f'"),
        ({"ssr__steps": 0}, "ssr.steps is 0: expected 1 or more"),
        ({"ssr__momentum": 1.0}, "ssr.momentum is 1.0: expected 0 ≤ momentum < 1"),
        ({"ssr__decay_steps": (9, 3)}, "ssr.decay_steps is (9, 3): expected ascending"),
        ({"stages": ("ssr",)}, "stages is ('ssr',): expected targets, ssr, evaluate"),
        ({"evaluate__ignore_identity_pairs": "no list"}, "no identity pairs at no list"),
        ({"evaluate__ignore_identity_pairs": "nobody"}, "names none of the 60 people ('0', …)"),
        (
            {"labels": None, "disjoint": True, "evaluate__ignore_identity_pairs": "nobody"},
            "evaluate.ignore_identity_pairs names people: add --config.labels=L",
        ),
        ({"embeddings": "synthetic"}, "'synthetic', which makes anchors and labels too"),
        ({"seed": -1}, "seed is -1: expected 0 or more"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(files, tmp_path, changes, message):
    _write(files)
    if changes.get("evaluate__ignore_identity_pairs") == "nobody":
        (files / "nobody.txt").write_text("Ann Bea")
        changes = {**changes, "evaluate__ignore_identity_pairs": str(files / "nobody.txt")}
    for key in ("embeddings", "anchors", "labels"):
        if changes.get(key) not in (None, "synthetic"):
            changes = {**changes, key: str(files / changes[key])}
    with pytest.raises(UserError) as raised:
        run(_config(files, **changes), tmp_path / "run")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_norms_that_say_nothing_are_found_before_any_work(files, tmp_path):
    faces = np.load(files / "e.npy")
    np.save(files / "e.npy", faces / np.linalg.norm(faces, axis=1, keepdims=True))
    with pytest.raises(UserError, match="ida_q_label_free has nothing to gain"):
        run(_config(files, evaluate__further=("ida_q_label_free",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _command(*flags):
    command = [sys.executable, "-m", "ida_jax.main", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=with_devices(1), timeout=300)


def test_the_command(tmp_path):
    done = _command(f"--config={CONFIG}:smoke", f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "held_out_all_pairs" in done.stdout
    assert "SSR against the searched density: R²" in done.stdout
    assert done.stdout.endswith(f"report: {tmp_path}/run/report.html\n")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["ssr"]["r2"] > 0

    done = _command(f"--config={CONFIG}", f"--workdir={tmp_path}/none")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: embeddings is not given: add --config.embeddings=E.npy"]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()


def test_placeholders_take_text():
    assert isinstance(GET_CONFIG(), ConfigDict)
    assert GET_CONFIG().labels is None


def test_figures_by_group_of_people(files, tmp_path):
    groups = tmp_path / "groups.csv"
    config = _config(files)
    held = PEOPLE[held_out_rows(read_inputs(config), config)]
    known = held[held != held[0]]
    groups.write_text("".join(f"{p},{'ab'[p % 2]}\n" for p in range(60) if p != held[0]))
    asked = {"evaluate__groups": str(groups), "evaluate__group_thresholds": True}
    results = run(_config(files, **asked, ssr__steps=2), tmp_path / "run")
    figures = results["protocols"]["held_out_all_pairs"]["ida_r"]
    for group, parity in (("a", 0), ("b", 1)):
        faces = np.count_nonzero(known % 2 == parity)
        counts = figures["groups"][group]
        assert counts["genuine"] == 2 * faces  # five images per person: ten pairs of five faces
        assert counts["impostor"] == faces * (faces - 1) // 2 - 2 * faces
    assert set(figures["group_thresholds"]["0.01"]["threshold"]) == {
        "a", "b", "across groups", "no group"
    }  # fmt: skip
    (note,) = (n for n in results["notes"]["held_out_all_pairs"] if "have no group" in n)
    assert note.startswith(f"{held.size - known.size} of {held.size} faces")
    listed = tmp_path / "listed.csv"
    listed.write_text("".join(f"{person},no group\n" for person in range(60)))
    mistakes = (
        ({"labels": None, "disjoint": True}, "evaluate.groups are of people"),
        ({"evaluate__groups": "absent.csv"}, r"no groups \(evaluate.groups\) at absent.csv"),
        ({"evaluate__groups": None}, "evaluate.group_thresholds goes with evaluate.groups"),
        ({"evaluate__groups": str(listed)}, "a group is named 'no group'"),
    )
    for changes, said in mistakes:
        with pytest.raises(UserError, match=said):
            run(_config(files, **(asked | changes)), tmp_path / "other")
