"""The paper's tables and figures: their scripts at smoke scale, and what they are made of."""

import argparse
import importlib
import json
import sys
from functools import partial

import class_scores
import fake_db
import fig10
import jax
import numpy as np
import paper
import paper_runs
import pytest
import table4
from class_scores import Sample, log_odds, overlap, segments
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from ida_jax.common.devices import training_mesh
from ida_jax.common.errors import UserError
from ida_jax.common.files import json_text
from ida_jax.report.pair_cards import ChangedDecisions, ChangedPairs
from ida_jax.training import recognition

SCRIPTS = (
    "table1", "table2", "table3", "table4", "table5", "fig3", "fig6", "fig7", "fig8", "fig9",
    "fig10",
)  # fmt: skip


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    cache = jax.config.jax_compilation_cache_dir
    folder = tmp_path_factory.mktemp("paper")
    # The step compiles several times as fast for one device as for eight.
    alone = partial(training_mesh, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognition, "training_mesh", alone)
        yield argparse.Namespace(
            scale="smoke", data_dir=folder / "data", workdir=folder / "runs", output=folder / "x"
        )
    jax.config.update("jax_compilation_cache_dir", cache)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_at_smoke_scale(name, options, monkeypatch):
    script = importlib.import_module(name)
    if name == "table1":
        monkeypatch.setattr(script, "HEADS", {"arcface": "ArcFace"})
    options.output = options.output.with_name(f"{name}.json")
    content = script.small(options)
    assert set(content) >= {"ours", "differs"}
    assert content["differs"]
    json.loads(json_text(content))
    assert len({tuple(row) for row in content.get("rows", [{}])}) == 1  # one set of columns
    for picture in [content.get("picture"), *content.get("pictures", ())]:
        assert picture is None or (options.output.parent / picture).stat().st_size > 5000
    if name.startswith("table"):
        rates = [row for row in paper.markdown(content["rows"]).splitlines()[2:] if "[" in row]
        assert len(rates) >= 2


@pytest.fixture
def generators(options, monkeypatch, tmp_path):
    """A workdir with a generator of random weights at two moments of a training."""
    from ida_jax.anchors import candidates
    from ida_jax.artefacts.generator import FaceGenerator
    from ida_jax.models.stylegan import GeneratorNetwork, draw_noise

    monkeypatch.setattr(candidates, "_CHUNK", 64)
    sizes = {"resolution": 8, "latent_dim": 8, "style_dim": 8, "mapping_layers": 1,
             "channel_base": 64, "channel_max": 8}  # fmt: skip
    rng, network = np.random.default_rng(0), GeneratorNetwork(**sizes)
    shapes = jax.eval_shape(
        network.init, jax.random.key(0), np.zeros((1, 8), np.float32),
        draw_noise(jax.random.key(0), 1, 8),
    )  # fmt: skip
    side = paper_runs.rendered_run(options).model.preprocessing.image_size
    (tmp_path / "generators").mkdir()
    for step in (2, 10):
        params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
        about = {"images": 8 * step}
        made = FaceGenerator.of(sizes, params["params"], image_size=side, provenance=about)
        made.save(tmp_path / "generators" / f"{step:06}.safetensors")
    made.save(tmp_path / "generator.safetensors")
    return argparse.Namespace(**vars(options), generator=tmp_path)


def test_table4_takes_the_faces_of_a_generator(generators):
    content = table4.small(generators)
    ours = content["ours"]
    expected = {name: title for name, title in table4.TITLES.items() if "aligned" not in name}
    assert [row["anchors"] for row in content["rows"]] == list(expected.values())
    assert "cannot be estimated from 16 faces" in content["notes"][0]
    for name in ("fake_db", "fake_db_unchecked"):
        assert ours[name]["anchors"] == ours["real_db"]["anchors"]
        assert ours[name]["trained"] == {"images": 80}
    assert ours["fake_db"]["drawn"] - sum(ours["fake_db"]["dropped"].values()) == 16
    assert ours["real_db"]["over_real_db"] == {}
    far = "0.001"
    tars = {name: of["tar@far"][far] for name, of in ours.items()}
    for name in tars.keys() - {"real_db"}:
        over = ours[name]["over_real_db"]["tar_gain@far"][far]
        assert over == pytest.approx(tars[name] - tars["real_db"], abs=1e-9)


def test_table4_goes_on_without_a_fake_db(generators, options, monkeypatch):
    from ida_jax.anchors import fake

    def too_few(*args, **kwargs):
        raise UserError("found only 3 of 16 anchors")

    run, notes = paper_runs.rendered_run(options), []
    monkeypatch.setattr(fake, "fake_anchors", too_few)
    assert list(table4.fake_sources(run, generators, 16, notes)) == ["fake_db_unchecked"]
    assert notes[0] == "no fake-db, with its checks: found only 3 of 16 anchors"
    assert table4.fake_sources(run, options, 16, notes) == {}
    assert "configs/stylegan_lfw.py" in notes[2]
    generators.generator = generators.data_dir
    with pytest.raises(UserError, match=str(generators.data_dir)):
        table4.fake_sources(run, generators, 16, notes)


def test_fake_db_changes_one_thing_at_a_time(generators):
    generators.output = generators.output.with_name("fake_db.json")
    content = fake_db.small(generators)
    ours = content["ours"]
    size = ours["real_db"]["anchors"]
    # Sixteen faces tell no covariance, and nothing is aligned.
    assert [name for name in ours if name.startswith("images")] == ["images_16", "images_80"]
    assert ours["images_80"]["faces"] == size
    assert ours["images_80"]["truncation"] == 1
    assert ours[f"faces_{7 * size}"]["anchors"] == 7 * size
    assert ours["truncation_0.5"]["anchors"] == ours["real_db_32px"]["anchors"] == size
    # The model takes 32 px: those are the crops as they were.
    assert ours["real_db_32px"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert len({tuple(row) for row in content["rows"]}) == 1
    assert len(content["rows"]) == len(ours)
    assert (generators.output.parent / content["picture"]).stat().st_size > 5000


@pytest.mark.parametrize("name", SCRIPTS)
def test_paper_scale_names_all_that_is_missing(name, tmp_path, capsys):
    options = argparse.Namespace(
        scale="paper", data_dir=tmp_path / "data", workdir=tmp_path / "runs", output=tmp_path / "o"
    )
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).paper(options)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith(f"missing: {tmp_path}") for line in lines)
    assert len(set(lines)) == len(lines)
    expected = {
        "table1": "ijbc/meta",
        "table2": "ytf/splits.txt",
        "table3": "megaface",
        "fig8": "ms1m",
    }
    assert any(expected.get(name, "data/") in line for line in lines)
    assert not options.workdir.exists()


def test_a_protocol_is_evaluated_by_the_command_and_once(options, monkeypatch):
    run = paper_runs.rendered_run(options)
    people = [f"P_{i}" for i in range(8)]
    names = [f"{person}/{person}_{image:04}" for person in people for image in (1, 2)]
    (options.data_dir / "lfw").mkdir(parents=True)
    pairs = ["2\t2"]
    for fold in (0, 4):
        a, b, c, d = people[fold : fold + 4]
        pairs += [f"{a}\t1\t2", f"{b}\t1\t2", f"{c}\t1\t{d}\t2", f"{a}\t1\t{c}\t1"]
    (options.data_dir / "lfw" / "pairs.txt").write_text("\n".join(pairs))
    rng = np.random.default_rng(0)
    np.save(run.workdir / "lfw.npy", rng.standard_normal((16, run.model.width)).astype(np.float32))
    (run.workdir / "lfw.names.txt").write_text("\n".join(names))
    found = paper_runs.evaluated(options, run, "lfw", resamples=20)
    assert list(found) == ["cosine", "ida_r", "ida_l"]
    assert 0 <= found["ida_r"]["accuracy"] <= 1
    assert not set(map(str, paper_runs.protocol_files(options, run.workdir, "lfw", flip=False))) - {
        str(options.data_dir / "lfw" / "pairs.txt"), str(run.workdir / "lfw.npy")
    }  # fmt: skip
    (run.workdir / "lfw.npy").unlink()
    assert paper_runs.evaluated(options, run, "lfw") == found


def test_a_run_that_is_past_a_moment_is_refused(options):
    run = paper_runs.rendered_run(options)
    first = next(iter(paper_runs.moments(run)))
    kept = first.read_bytes()
    first.unlink()
    with pytest.raises(UserError, match="past step 2"):
        paper_runs.rendered_run(options)
    first.write_bytes(kept)


def test_states_of_the_training_differ_and_the_last_is_the_model(options):
    from ida_jax.artefacts.face_model import FaceModel

    run = paper_runs.rendered_run(options)
    prints = [FaceModel.load(path).fingerprint for path in paper_runs.moments(run)]
    assert len(set(prints)) == 3
    assert prints[-1] == run.model.fingerprint


def test_the_record_and_its_markdown(tmp_path, monkeypatch, capsys):
    output = tmp_path / "new" / "t.json"
    monkeypatch.setattr(sys, "argv", ["t.py", "--scale=smoke", f"--output={output}"])
    content = {"ours": {"x": np.float32(0.5), "y": float("nan"), "z": np.arange(2)},
               "differs": ["small"], "rows": [{"method": "A", "TAR": "1.00"}]}  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        paper.experiment("t", "What.", small=lambda o: content, paper=None, published={"x": 0.6})
    assert ended.value.code == 0
    record = json.loads(output.read_text())
    assert record["ours"] == {"x": 0.5, "y": None, "z": [0, 1]}
    assert record["paper"] == {"x": 0.6}
    assert {"command", "commit", "versions", "processor"} <= set(record["provenance"])
    table = "| method | TAR |\n| --- | --- |\n| A | 1.00 |"
    assert output.with_suffix(".md").read_text() == table + "\n"
    assert table in capsys.readouterr().out


def test_a_wrong_flag_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["t.py", "--scale=large"])
    with pytest.raises(SystemExit) as ended:
        paper.experiment("t", "What.", small=None, paper=None, published=None)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_cells():
    figures = {
        "accuracy": 0.9873, "accuracy_interval": [0.98, 0.99], "accuracy_gain": 0.001,
        "tar@far": {"1e-05": 0.5}, "tar_gain@far": {"1e-05": -0.01},
        "tar_gain_interval@far": {"1e-05": [-0.02, 0.005]},
    }  # fmt: skip
    assert paper.columns("lfw", figures, "accuracy", published=0.9903) == {
        "lfw": "98.73 [98.00, 99.00]", "lfw gain": "+0.10", "lfw in the paper": "99.03"
    }  # fmt: skip
    assert paper.columns("T", figures, "tar@far", "1e-05") == {
        "T": "50.00", "T gain": "-1.00 [-2.00, +0.50]"
    }  # fmt: skip
    assert paper.columns("T", None, "tar@far", "1e-05") == {"T": "–", "T gain": ""}


def test_published_tables_are_the_papers(shared_data):
    articles = list((shared_data.parent / "paper").glob("*.md"))
    if not articles:
        pytest.skip("the paper's text is not beside the real data")
    rows = [line.split("\t") for line in articles[0].read_text(encoding="utf-8").splitlines()]
    rows = [(row[0], tuple(cell for cell in row[1:] if cell)) for row in rows if len(row) > 1]

    def flat(of):
        return [x for v in of.values() for x in (flat(v) if isinstance(v, dict) else [v])]

    def texts(of):
        return tuple(f"{100 * rate:.2f}" for rate in flat(of))

    found = [row[1] for row in rows]
    for table in (*paper.TABLE1.values(), paper.TABLE2, paper.TABLE3, paper.TABLE4, paper.TABLE5):
        for of_method in table.values():
            assert texts(of_method) in found
    start = next(i for i, (name, _) in enumerate(rows) if name.startswith("L2-Face"))
    expected = [texts(of) for head in paper.TABLE1.values() for of in head.values()]
    assert found[start : start + 9] == expected


@pytest.mark.parametrize(
    ("head", "margin"), [("arcface", 0.3), ("cosface", 0.2), ("l2_softmax", 0)]
)
@pytest.mark.parametrize("slab", [1, 3, 64])
def test_log_odds_are_those_of_the_softmax(head, margin, slab, monkeypatch):
    monkeypatch.setattr(class_scores, "_SLAB", slab)
    rng = np.random.default_rng(1)
    unit = [rng.standard_normal((n, 6)) for n in (7, 5)]
    faces, weights = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit)
    labels = rng.integers(5, size=7)
    train = ConfigDict({"head": head, "margin": float(margin), "scale": 8.0, "sub_centres": 1,
                        "straight_through": False})  # fmt: skip
    sample = Sample(np.float32(faces), labels.astype(np.int32), np.float32(weights))
    cosine, odds = log_odds(sample, ConfigDict({"train": train}))
    expected = (faces @ weights.T)[np.arange(7), labels]
    np.testing.assert_allclose(cosine, expected, atol=1e-6)
    for i in range(7):
        z = 8 * faces[i] @ weights.T
        own = expected[i]
        z[labels[i]] = 8 * {
            "arcface": np.cos(np.arccos(own) + margin), "cosface": own - margin, "l2_softmax": own
        }[head]  # fmt: skip
        p = np.exp(z[labels[i]]) / np.exp(z).sum()
        np.testing.assert_allclose(1 / (1 + np.exp(-odds[i])), p, rtol=1e-4)


def test_segments_are_disjoint_and_of_their_size():
    odds = np.random.default_rng(2).standard_normal(1001)
    low, high = segments(odds)
    assert not np.any(low & high)
    assert abs(low.sum() - 200) <= 2
    assert abs(high.sum() - 200) <= 2
    assert odds[low].max() < odds[high].min()


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
)
def test_overlap_is_the_best_thresholds_error(low, high):
    low, high = np.array(low, float), np.array(high, float)
    errors = [np.mean(low > t) + np.mean(high <= t) for t in np.arange(-1, 10)]
    assert overlap(low, high) == pytest.approx(min(1, *errors))
    assert overlap(np.exp(low), np.exp(high)) == overlap(low, high)


def test_the_pairs_that_ida_changes_are_drawn(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(8, 16, 16, 3), dtype=np.uint8)
    groups = tuple(
        ChangedPairs(
            kind,
            genuine,
            np.array([[0, 1], [2, 3]]),
            np.array([0.2, 0.2]),
            np.array([-1.0, -1.0]),
            7,
        )
        for kind in ("corrected", "broken")
        for genuine in (True, False)
    )
    changed = ChangedDecisions("cosine", "ida_r", 1e-3, 0.25, -0.95, groups)
    figure = fig10._figure(changed, images)
    drawn = [axis for axis in figure.axes if axis.images]
    assert len(drawn) == 8
    np.testing.assert_array_equal(
        drawn[1].images[0].get_array(), np.concatenate([images[2], images[3]], axis=1)
    )
    assert drawn[0].get_title() == "cosine -0.050, IDA-R -0.050"
