"""Every config builds its training, in full and as :smoke; the cheapest paper config runs."""

import json
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from environment import with_devices

from ida_jax import rescore
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts import face_model
from ida_jax.artefacts.face_model import FaceModel
from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.common.devices import training_mesh
from ida_jax.models.resnet import IResNet
from ida_jax.models.vit import VisionTransformer
from ida_jax.runs.config_check import check_config, check_embedding_config
from ida_jax.training.loop import read_metrics
from ida_jax.training.train_step import make_program

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = {path.stem: runpy.run_path(str(path)) for path in sorted(CONFIGS.glob("*.py"))}
# A config of another kind: it has a file of embeddings in place of images.
EMBEDDINGS = "ssr_from_embeddings"
MODULES = {name: module for name, module in ALL.items() if name != EMBEDDINGS}
SMOKE = [name for name, module in MODULES.items() if "train" in module["get_config"]().stages]

# Lowering takes seconds: what differs in its numbers alone, or in its network's depth, is not.
LOWERED = set(SMOKE) - {"ms1mv3_r100", "glint360k_r100", "ms1mv3_r50", "webface600k_mbf"}
# And a tenth of that for a network of one block a stage, which has all of the code.
SHALLOW = {
    **dict.fromkeys(("iresnet18", "iresnet50", "iresnet100"), partial(IResNet, (1, 1, 1, 1))),
    "vit_b": partial(VisionTransformer, depth=1, width=512),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_config_is_valid_and_names_its_own_command(name):
    config = MODULES[name]["get_config"]()
    check_config(config, config.stages)
    assert f"--config=configs/{name}.py" in MODULES[name]["__doc__"]
    if "train" in config.stages:
        program = make_program(config, num_classes=1000, mesh=training_mesh())
        assert program.batch[0].shape[0] == config.train.batch_size  # eight devices pad nothing
        assert program.state.head.classes.weight.shape[-1] == config.model.options.embedding_dim


def test_where_nothing_is_trained_there_is_no_smoke_variant():
    given = {"lfw_pfe", "lfw_pretrained", "stylegan_lfw", "stylegan_ms1m"}
    assert set(MODULES) - set(SMOKE) == given
    with pytest.raises(ValueError, match="'smoke' is unknown"):
        MODULES["lfw_pretrained"]["get_config"]("smoke")


@pytest.mark.parametrize("variant", ["", "smoke"])
def test_the_config_of_embeddings_is_valid_and_names_its_own_command(variant):
    check_embedding_config(ALL[EMBEDDINGS]["get_config"](variant))
    assert f"--config=configs/{EMBEDDINGS}.py" in ALL[EMBEDDINGS]["__doc__"]
    with pytest.raises(ValueError, match="'smoky' is unknown"):
        ALL[EMBEDDINGS]["get_config"]("smoky")


@pytest.mark.parametrize("name", SMOKE)
def test_smoke_is_the_same_training_on_little(name, monkeypatch):
    whole, smoke = (MODULES[name]["get_config"](variant) for variant in ("", "smoke"))
    check_config(smoke, smoke.stages)
    small = {
        "batch_size", "steps", "decay_steps", "warmup_steps", "checkpoint_every", "log_every",
        "verify_every", "epochs", "images", "warmup_epochs", "decay_epochs",
    }  # fmt: skip
    kept = [section.train.to_dict() for section in (whole, smoke)]
    for section in kept:
        for key in small:
            del section[key]
    assert kept[0] == kept[1]
    assert smoke.model.network == whole.model.network
    assert smoke.stages == whole.stages
    assert smoke.evaluate.methods == whole.evaluate.methods
    if name not in LOWERED:
        return
    # Tracing and lowering reach all of the step's code; compiling takes up to a minute.
    for network, shallow in SHALLOW.items():
        monkeypatch.setitem(face_model._NETWORKS, network, shallow)
    mesh = training_mesh(devices=jax.devices()[:1])
    program = make_program(smoke, num_classes=smoke.train_data.identities, mesh=mesh)
    product = "dot_general" if smoke.model.network.startswith("vit") else "convolution"
    lowered = program.step.lower(program.state, *program.batch).as_text()
    assert f"stablehlo.{product}" in lowered


def test_the_generator_runs_from_rendered_faces_to_a_fake_db_in_use(tmp_path, optimised):
    """In a process of its own, as a user would: train, gan, anchors, ssr, evaluate."""
    workdir, anchors = tmp_path / "run", tmp_path / "fake.safetensors"
    _run("ida_jax.main", f"--config={CONFIGS}/stylegan_ms1m.py:smoke", f"--workdir={workdir}")
    config = MODULES["stylegan_ms1m"]["get_config"]("smoke")
    results = json.loads((workdir / "results.json").read_text())
    assert results["anchors"]["source"] == "fake_db"
    assert results["anchors"]["size"] == config.anchors.size
    for methods in results["protocols"].values():
        assert set(methods) == set(config.evaluate.methods)
    records = [r for r in read_metrics(workdir) if r["stage"] == "gan"]
    distances = {r["step"]: r["frechet"] for r in records if "frechet" in r}
    assert list(distances) == [150, 300]
    generator = FaceGenerator.load(workdir / "generator.safetensors")
    assert generator.provenance["step"] == min(distances, key=distances.get)
    made = AnchorSet.load(workdir / "anchors" / "anchors.safetensors").provenance
    assert made["candidates"]["generator"] == generator.fingerprint
    assert made["privacy"] == "checked"
    assert (workdir / "anchors" / "anchors.report.html").is_file()
    # The command makes the same set, which rescore takes.
    count = f"--count={config.anchors.size}"
    _run(
        "ida_jax.anchors", "fake", f"--generator={workdir}", f"--model={workdir}", count, "--flip",
        f"--output={anchors}",
    )  # fmt: skip
    again = AnchorSet.load(anchors)
    np.testing.assert_array_equal(
        again.embeddings, AnchorSet.load(workdir / "anchors" / "anchors.safetensors").embeddings
    )
    faces, pairs = np.asarray(again.embeddings)[::-1] + 0.1, np.array([[0, 1], [2, 3]])
    np.save(tmp_path / "faces.npy", faces)
    np.save(tmp_path / "pairs.npy", pairs)
    rescore.main([
        f"--embeddings={tmp_path}/faces.npy", f"--pairs={tmp_path}/pairs.npy",
        f"--anchors={anchors}", f"--output={tmp_path}/scores.npy",
    ])  # fmt: skip
    assert np.isfinite(np.load(tmp_path / "scores.npy")).all()


def _run(module, *flags):
    # What one process has compiled the next one need not.
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    done = subprocess.run(
        [sys.executable, "-m", module, *flags], env={**with_devices(1), **cache},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_smallest_of_the_papers_runs_to_its_report(tmp_path, optimised):
    _run("ida_jax.main", f"--config={CONFIGS}/casia_r18_arcface.py:smoke", f"--workdir={tmp_path}")
    config = MODULES["casia_r18_arcface"]["get_config"]("smoke")
    results = json.loads((tmp_path / "results.json").read_text())
    likelihood = {"pfe", "pfe_mls_ida_r", "pfe_mls_ida_l"}
    fused = {"pfe_fusion", "pfe_ida_r", "pfe_ida_l"}
    for variant, methods in results["protocols"].items():
        expected = set(config.evaluate.methods) | likelihood
        assert set(methods) == (expected | fused if "_templates5_" in variant else expected)
    assert len(results["protocols"]) == 3
    model = FaceModel.load(tmp_path / "model.safetensors")
    assert (model.network, model.width) == ("iresnet18", 256)
    assert results["model"]["fingerprint"] == model.fingerprint
    records = [r for r in read_metrics(tmp_path) if r["stage"] == "train"]
    assert [r["step"] for r in records if "loss" in r] == [1, 2]
    assert [r["step"] for r in records if "verification_accuracy" in r] == [2]
    assert (tmp_path / "report.html").is_file()
