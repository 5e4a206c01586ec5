"""The command as users run it: the road end to end, interruptions, and mistakes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from environment import with_devices

from ida_jax import main
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.face_model import FaceModel
from ida_jax.common.errors import UserError
from ida_jax.training.loop import read_metrics

ROOT = Path(__file__).parents[2]
GAN = f"--config={ROOT}/configs/stylegan_ms1m.py:smoke"
SMOKE = f"--config={ROOT}/configs/quickstart.py:smoke"
ENVIRONMENT = with_devices(1)


def _command(*flags):
    return [sys.executable, "-m", "ida_jax.main", *flags]


def _run(*flags):
    return subprocess.run(_command(*flags), capture_output=True, text=True, env=ENVIRONMENT)


@pytest.fixture
def here(monkeypatch, capsys):
    """(*flags) → what the command prints, run in this process."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["main", *flags])
        main.main(sys.argv[1:])
        return capsys.readouterr().out

    return run


def _checkpoints(workdir):
    """The whole ones; a checkpoint being written has a longer name."""
    return [path for path in workdir.glob("checkpoints/*") if path.name.isdigit()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run's workdir and its output."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = _run(SMOKE, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_the_road_leaves_what_the_contract_names(finished):
    workdir, output = finished
    results = json.loads((workdir / "results.json").read_text())
    assert (
        results["model"]["fingerprint"] == FaceModel.load(workdir / "model.safetensors").fingerprint
    )
    protocols = results["protocols"]
    assert set(protocols) == {"rendered_drawn_5fold", "rendered_all_pairs"}
    for methods in protocols.values():
        assert set(methods) == {
            "cosine", "ida_r", "ida_r_fallback", "ida_l", "s_norm", "as_norm", "csn"
        }  # fmt: skip
    figures = protocols["rendered_all_pairs"]["ida_r"]
    assert set(figures["tar@far"]) == {"0.001", "0.0001", "1e-05"}
    assert figures["genuine"] == 10
    assert figures["genuine"] + figures["impostor"] == 20 * 19 // 2
    assert 0 <= protocols["rendered_drawn_5fold"]["cosine"]["accuracy"] <= 1
    assert {"r2", "rank_correlation"} == set(results["ssr"])
    assert {"command", "commit", "devices", "versions"} <= set(results["provenance"])
    for name in (
        "metrics.jsonl", "tensorboard", "report.html", "results.md", "results.tex",
        "roc-rendered_all_pairs.png", "contact_sheet.png",
        "checkpoints", "anchors/anchors.safetensors", "ssr.safetensors",
    ):  # fmt: skip
        assert (workdir / name).exists(), name
    for method in ("Cosine", "IDA-R", "IDA-L"):
        assert method in output
    assert not list(workdir.rglob(".*"))  # no temporary file is left


def test_a_finished_run_is_not_run_again(finished, here):
    workdir, output = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    again = here(SMOKE, f"--workdir={workdir}")
    assert again.count("finished before") == 5
    assert again.endswith(output)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


def test_people_who_are_one_person_are_left_out(finished, here, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "one.txt").write_text("person_00017 person_00016\nperson_00020 nobody\n")
    flag = f"--config.evaluate.ignore_identity_pairs={tmp_path}/one.txt"
    output = here(SMOKE, f"--workdir={workdir}", flag)
    assert output.count("finished before") == 4
    results = json.loads((workdir / "results.json").read_text())
    figures = results["protocols"]["rendered_all_pairs"]["ida_l"]
    assert figures["ignored_pairs"] == 4
    assert figures["genuine"] + figures["impostor"] == 20 * 19 // 2 - 4
    assert "4 impostor pairs between 1 pairs of identities" in output
    former = json.loads((finished[0] / "results.json").read_text())["protocols"]
    listed = results["protocols"]["rendered_drawn_5fold"]["cosine"]
    before = former["rendered_drawn_5fold"]["cosine"]["pairs"]
    assert listed["pairs"] == before - listed["ignored_pairs"]
    # A list of other people is refused before anything is written.
    (tmp_path / "one.txt").write_text("Ann Bea\n")
    with pytest.raises(UserError, match="names none of the 10 people"):
        here(SMOKE, f"--workdir={tmp_path}/other", flag)
    assert not (tmp_path / "other").exists()


def test_killed_in_training_it_ends_in_the_same_model(finished, tmp_path):
    workdir = tmp_path / "killed"
    # The kill waits for the first checkpoint and strikes while later steps run.
    process = subprocess.Popen(
        _command(SMOKE, f"--workdir={workdir}"), env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not _checkpoints(workdir) and time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert _checkpoints(workdir), "the run made no checkpoint"
    assert not (workdir / "model.safetensors").exists(), "the kill came too late to be a test"
    before = [r for r in read_metrics(workdir) if r["step"] <= 1]
    assert before
    done = _run(SMOKE, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    # Its speed shows that the step before the checkpoint was not taken again.
    assert read_metrics(workdir)[: len(before)] == before
    models = [FaceModel.load(d / "model.safetensors") for d in (workdir, finished[0])]
    assert models[0].fingerprint == models[1].fingerprint
    results = [json.loads((d / "results.json").read_text()) for d in (workdir, finished[0])]
    assert results[0]["protocols"] == results[1]["protocols"]
    assert results[0]["ssr"] == results[1]["ssr"]


@pytest.fixture
def continued(finished, here, tmp_path):
    """(*flags) → the output of a copy of the finished run, run again, and the files it changed."""
    workdir = tmp_path / "continued"
    shutil.copytree(finished[0], workdir)

    def times():
        return {
            str(p.relative_to(workdir)): p.stat().st_mtime_ns
            for p in workdir.rglob("*")
            if p.is_file()
        }

    def command(*flags):
        before = times()
        output = here(SMOKE, f"--workdir={workdir}", *flags)
        after = times()
        changed = {name for name in after if after[name] != before.get(name)}
        assert before.keys() <= after.keys()
        return output, changed

    return command


@pytest.mark.parametrize(
    "flag",
    ["train.workers=2", "train.log_every=50", "train.checkpoint_every=7", "train.verify_every=1"],
)
def test_options_that_change_no_result_run_nothing_again(continued, flag):
    output, changed = continued(f"--config.{flag}")
    assert output.count("finished before") == 5
    assert changed == {"config.json"}


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("title=Another", "title was .*, is now Another"),
        ("evaluate.resamples=10", "evaluate.resamples was 20, is now 10"),
    ],
)
def test_a_report_of_other_options_is_written_again(continued, flag, reason):
    output, changed = continued(f"--config.{flag}")
    assert re.search(f"^evaluate: {reason}: it is run again$", output, re.MULTILINE)
    assert output.count("finished before") == 4
    assert {"config.json", "results.json", "report.html"} <= changed
    assert not [name for name in changed if name.endswith(".safetensors")]


def test_stages_after_one_that_is_run_again_are_run_again_too(continued):
    output, changed = continued("--config.anchors.size=14", "--config.csn.top_n=11")
    assert "anchors: anchors.size was" in output
    assert "ssr: the stage anchors is run again: it is run again" in output
    assert "csn: csn.top_n was 12, is now 11: it is run again" in output
    assert output.count("finished before") == 1
    assert {"anchors/anchors.safetensors", "ssr.safetensors", "csn.safetensors"} <= changed
    assert "model.safetensors" not in changed


def test_degraded_copies_among_anchors_and_training_faces(continued, finished, tmp_path):
    output, changed = continued("--config.anchors.degrade=blur", "--config.ssr.degrade=varied")
    assert "anchors: anchors.degrade was , is now blur: it is run again" in output
    assert {"anchors/anchors.safetensors", "ssr.safetensors"} < changed
    anchors, degraded = (
        AnchorSet.load(workdir / "anchors" / "anchors.safetensors")
        for workdir in (finished[0], tmp_path / "continued")
    )
    few = len(anchors)
    np.testing.assert_allclose(degraded.embeddings[:few], anchors.embeddings, atol=1e-5)
    assert 0 < degraded.degraded == len(degraded) - few < few
    assert set(degraded.labels[few:].tolist()) < set(anchors.labels.tolist())
    assert degraded.provenance["degraded"]["strengths"] == {"blur": "varied"}
    assert len(list((tmp_path / "continued" / "embeddings").glob("degraded-*"))) == 1


def test_a_workdir_from_before_degraded_copies_is_still_finished(continued, tmp_path):
    path = tmp_path / "continued" / "config.json"
    config = json.loads(path.read_text())
    for section in ("anchors", "ssr"):
        for name in ("degrade", "degrade_share", "degrade_copies"):
            del config[section][name]
    path.write_text(json.dumps(config))
    output, changed = continued()
    assert output.count("finished before") == 5
    assert changed == {"config.json"}


def test_a_training_in_place_of_another_ones_model_is_refused(finished, here, tmp_path):
    workdir = tmp_path / "imported"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "checkpoints")
    config = json.loads((workdir / "config.json").read_text())
    config["stages"] = ["import", *config["stages"][1:]]
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"stages was \['import'"):
        here(SMOKE, f"--workdir={workdir}")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"stages": 1}', "[" * 5000])
def test_a_damaged_config_of_a_workdir_is_one_line(content, tmp_path, here):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is damaged: .*take another --workdir"):
        here(SMOKE, f"--workdir={tmp_path}")


def test_a_workdir_of_another_config_is_refused(finished, here):
    workdir, _ = finished
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"begun by another config \(train.margin was 0.3, is now"):
        here(SMOKE, f"--workdir={workdir}", "--config.train.margin=0.4")
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_of_a_finished_run(finished, tmp_path, monkeypatch, name, content):
    workdir = tmp_path / "w"
    shutil.copytree(finished[0], workdir)
    (workdir / name).write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["main", SMOKE, f"--workdir={workdir}"])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        main.main(sys.argv[1:])
    assert (workdir / name).read_bytes() == content


@pytest.mark.parametrize("content", ['{"protocols": 5}', '{"protocols": {"a": {"b": 0}}}'])
def test_results_of_another_form(finished, tmp_path, monkeypatch, content):
    workdir = tmp_path / "w"
    shutil.copytree(finished[0], workdir)
    (workdir / "results.json").write_text(content)
    monkeypatch.setattr(sys, "argv", ["main", SMOKE, f"--workdir={workdir}"])
    with pytest.raises(UserError, match=r"results\.json was not written by ida_jax"):
        main.main(sys.argv[1:])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --config=FILE and --workdir=DIR"),
        ([SMOKE], "expected --config=FILE and --workdir=DIR"),
        (["--config=absent.py", "--workdir=W"], "absent.py"),
        ([SMOKE + "x", "--workdir=W"], "variant 'smokex' is unknown"),
        (
            [SMOKE, "--workdir=W", "--config.train.marginn=1"],
            "the config has no 'train.marginn': did you mean train.margin?",
        ),
        ([SMOKE, "--workdir=W", "--config.train.margin=high"], "margin"),
        ([SMOKE, "--workdri=W"], "workdri.*Did you mean: workdir"),
        ([SMOKE, "--workdir=W", "train"], "unknown flag 'train'"),
        ([SMOKE, "--workdir=W", "--config.model.network=vgg"], "network 'vgg' is unknown"),
        ([SMOKE, "--workdir=W", "--config.k=16"], "k is 16, but .* at most 15 anchors"),
        ([SMOKE, "--workdir=W", "--config.anchors.source=gan"], "anchors.source is 'gan'"),
        ([SMOKE, "--workdir=W", "--config.eval_data.name=ijbb"], "data set 'ijbb' is unknown"),
        ([SMOKE, "--workdir=W", "--config.ssr.target=f"], "ssr.target is 'f'"),
        ([SMOKE, "--workdir=W", "--config.train.head=softmax"], "train.head is 'softmax'"),
        ([SMOKE, "--workdir=W", "--config.train.log_every=0"], "train.log_every is 0"),
        ([SMOKE, "--workdir=W", "--config.train.steps=0"], "train.steps is 0"),
        ([SMOKE, "--workdir=W", "--config.train.margin=2.0"], "head 'arcface' is 2.0"),
        ([SMOKE, "--workdir=W", "--config.train.schedule=cosine"], "train.schedule is 'cosine'"),
        ([SMOKE, "--workdir=W", "--config.train.sample_rate=0.0"], "train.sample_rate is 0.0"),
        ([SMOKE, "--workdir=W", "--config.train.augment=all"], "augment 'all' is unknown"),
        (
            [SMOKE, "--workdir=W", "--config.train.keep=best", "--config.train.verify_every=0"],
            "set train.verify_every, or keep last",
        ),
        ([SMOKE, "--workdir=W", "--config.tau=-1.0"], "tau is -1.0"),
        ([SMOKE, "--workdir=W", "--config.model.image_size=64"], r"\[32, 32, 3\]: the model takes"),
        ([SMOKE, "--workdir=W", "--config.model.options.embedding_dim=0"], "embedding_dim is 0"),
        ([SMOKE, "--workdir=W", "--config.evaluate.fars=(2.0,)"], "evaluate.fars is"),
        ([SMOKE, "--workdir=W", "--config.evaluate.folds=11"], "10 identities, .* for 11 folds"),
        ([SMOKE, "--workdir=W", "--config.stages=('ssr',)"], "stages begin with 'ssr'"),
        ([SMOKE, "--workdir=W", "--config.anchors.source=fake_db"], "no generator is named"),
        (
            [
                SMOKE,
                "--workdir=W",
                "--config.anchors.source=fake_db",
                "--config.anchors.generator=absent.safetensors",
            ],
            "no file at absent.safetensors",
        ),
        ([GAN, "--workdir=W", "--config.gan.resolution=48"], "gan.resolution is '48': choose one"),
        ([GAN, "--workdir=W", "--config.gan.resolution=64"], "32 px cannot be reflected outwards"),
        ([GAN, "--workdir=W", "--config.gan.batch_size=12"], "gan.batch_size is 12, which does"),
        ([GAN, "--workdir=W", "--config.gan.augment_target=2.0"], "gan.augment_target is 2.0"),
        ([GAN, "--workdir=W", "--config.gan.r1_weight=-1.0"], "gan.r1_weight is -1.0"),
        ([GAN, "--workdir=W", "--config.anchors.truncation=0.0"], "anchors.truncation is 0.0"),
        (
            [GAN, "--workdir=W", "--config.anchors.degrade=blr"],
            "anchors.degrade is .blr., in which",
        ),
        (
            [SMOKE, "--workdir=W", "--config.ssr.degrade_share=0.0", "--config.ssr.degrade=mild"],
            "ssr.degrade_share is 0: expected",
        ),
        ([GAN, "--workdir=W", "--config.k=33"], "k is 33, but anchors.size is 32"),
        ([GAN, "--workdir=W", "--config.train_data.identities=9"], "the training set has 9 people"),
        ([GAN, "--workdir=W", "--config.anchors.align=True"], "who are 60: expected 512 or more"),
        ([GAN, "--workdir=W", "--config.anchors.generator=G"], "names another generator: leave"),
        (
            [GAN, "--workdir=W", "--config.stages=('train', 'anchors', 'gan', 'evaluate')"],
            "stages has gan after anchors",
        ),
        ([GAN, "--workdir=W", "--config.gan.batch_size=10"], "expected a multiple of 4"),
        ([GAN, "--workdir=W", "--config.gan.evaluate_faces=3"], "expected 4 or more"),
        ([SMOKE, "--workdir=W", "--config.stages=('tain',)"], "stage 'tain' is unknown"),
        (
            [f"--config={ROOT}/configs/ms1m_arcface.py", "--workdir=W", "--config.data_dir=D"],
            r"ms1m is not at .*D/ms1m: prepare it there with ida-jax prepare folder",
        ),
        (
            [f"--config={ROOT}/configs/lfw_pretrained.py", "--workdir=W", "--config.data_dir=D"],
            "no LFW crops at",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main", *flags])
    with pytest.raises(UserError, match=message) as raised:
        main.main(sys.argv[1:])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_exit_code_and_no_traceback(tmp_path):
    done = _run(
        f"--config={ROOT}/configs/ms1m_arcface.py", f"--workdir={tmp_path / 'w'}",
        f"--config.data_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: the data set ms1m is not at")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "w").exists()
