"""The class weights of arcface_torch's checkpoints as anchors."""

import shutil

import numpy as np
import pytest
from drawn import drawn_variables

from ida_jax import main as train
from ida_jax.anchors.__main__ import main
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.common.errors import UserError, exit_code

torch = pytest.importorskip("torch")

WIDTH = 6
WEIGHTS = np.random.default_rng(0).normal(size=(11, WIDTH)).astype(np.float32)


def _written(folder, *, kind="softmax_fc_gpu_{}.pt", ranks=2):
    """Each rank's classes, as arcface_torch cuts them: the first C mod R ranks have one more."""
    folder.mkdir(exist_ok=True)
    for rank, shard in enumerate(np.array_split(WEIGHTS, ranks)):
        own = {"weight": torch.from_numpy(shard)}
        if kind.startswith("checkpoint"):
            own = {
                "epoch": 3,
                "state_dict_backbone": {"fc.weight": torch.zeros(2, 2)},
                "state_dict_softmax_fc": own,
                "state_lr_scheduler": {"last_epoch": 7},
            }
        elif kind.startswith("rank"):
            own = own["weight"]
        torch.save(own, folder / kind.format(rank))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = build_network("iresnet_nano", {"embedding_dim": WIDTH})
    variables = drawn_variables(network, (1, 32, 32, 3))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    FaceModel("iresnet_nano", {"embedding_dim": WIDTH}, Preprocessing(32), variables).save(path)
    return path


def _build(folder, *flags):
    main(["build", f"--output={folder / 'A.safetensors'}", "--k=1", *flags])
    return AnchorSet.load(folder / "A.safetensors")


@pytest.mark.parametrize(
    "kind", ["softmax_fc_gpu_{}.pt", "checkpoint_gpu_{}.pt", "rank_{}_softmax_weight.pt"]
)
def test_all_ranks_classes_become_anchors(tmp_path, model, kind):
    folder = _written(tmp_path / "run", kind=kind, ranks=11 if "gpu" in kind else 3)
    unit = WEIGHTS / np.linalg.norm(WEIGHTS.astype(np.float64), axis=1, keepdims=True)
    anchors = _build(tmp_path, f"--class_weights={folder}", f"--model={model}")
    np.testing.assert_allclose(anchors.embeddings, unit, atol=1e-6)
    np.testing.assert_array_equal(anchors.labels, np.arange(11))
    assert (anchors.source, anchors.fingerprint) == (
        "class_weights", FaceModel.load(model).fingerprint
    )  # fmt: skip
    first = ",".join(str(folder / kind.format(rank)) for rank in (0, 1))
    unknown = _build(tmp_path, f"--class_weights={first}")
    np.testing.assert_allclose(unknown.embeddings, unit[: len(unknown)], atol=1e-6)
    assert 2 <= len(unknown) < 11
    assert unknown.fingerprint == ""


class _Code:
    def __reduce__(self):
        return print, ("ran",)


def test_mistakes_are_one_line(tmp_path, model, capsys):
    folder = _written(tmp_path / "run")

    def refused(message, value, *flags):
        with pytest.raises(UserError, match=message):
            _build(tmp_path, f"--class_weights={value}", *flags)

    (tmp_path / "empty").mkdir()
    refused("has none of arcface_torch's files", tmp_path / "empty")
    refused("class weights", tmp_path / "absent.pt")
    torch.save({"weight": torch.ones(4, WIDTH + 1)}, tmp_path / "wide.pt")
    refused(rf"are {WIDTH + 1} wide, the embeddings of .* {WIDTH}", tmp_path / "wide.pt",
            f"--model={model}")  # fmt: skip
    refused("wide.pt has class weights 7 wide", f"{folder}/softmax_fc_gpu_0.pt,{tmp_path}/wide.pt")
    torch.save({"fc.weight": torch.ones(4, 2)}, tmp_path / "backbone.pt")
    refused("holds fc.weight", tmp_path / "backbone.pt")
    torch.save({"weight": _Code()}, tmp_path / "code.pt")
    refused("is not a state dict alone", tmp_path / "code.pt")
    assert "ran" not in capsys.readouterr().out
    (tmp_path / "weights.npy").write_bytes(b"")
    refused(r"expected class weights in \.pt", tmp_path / "weights.npy")
    _written(tmp_path / "run", kind="checkpoint_gpu_{}.pt")
    refused(r"has checkpoint_gpu_\*\.pt, softmax_fc_gpu_\*\.pt of", folder)
    _written(tmp_path / "gap", ranks=3)
    (tmp_path / "gap" / "softmax_fc_gpu_1.pt").unlink()
    refused(r"2 shards .* but not softmax_fc_gpu_1\.pt", tmp_path / "gap")
    refused("has no class weights: it was not trained", "", f"--model={model}")
    assert not (tmp_path / "A.safetensors").exists()


def _run(tmp_path, capsys, *flags, stages="('import','anchors')", k=3):
    """Exit code, and what is said, of a run on imported weights with class weights as anchors."""
    arguments = [
        "--config=quickstart:smoke", f"--workdir={tmp_path}/w", f"--config.data_dir={tmp_path}",
        f"--config.stages={stages}", "--config.model.weights=model.safetensors",
        f"--config.model.options.embedding_dim={WIDTH}", "--config.anchors.source=class_weights",
        "--config.anchors.size=9", f"--config.k={k}", *flags,
    ]  # fmt: skip
    code = exit_code(lambda: train.main(arguments))
    said = capsys.readouterr()
    return code, (said.err if code else said.out).strip()


def test_a_run_takes_them_from_its_config(tmp_path, model, capsys):
    (tmp_path / "model.safetensors").write_bytes(model.read_bytes())
    _written(tmp_path / "run", ranks=3)
    given = "--config.model.class_weights=run"
    code, said = _run(tmp_path, capsys, given)
    assert code == 0, said
    assert "the 11 class weights are not of train_data's 16 people" in said
    anchors = AnchorSet.load(tmp_path / "w" / "anchors" / "anchors.safetensors")
    trained = FaceModel.load(tmp_path / "w" / "model.safetensors")
    np.testing.assert_array_equal(trained.class_weights, WEIGHTS)
    assert (anchors.source, len(anchors), anchors.labels) == ("class_weights", 9, None)
    assert anchors.fingerprint == FaceModel.load(model).fingerprint

    torch.save({"weight": torch.ones(4, WIDTH + 1)}, tmp_path / "wide.pt")
    shutil.rmtree(tmp_path / "w")
    for flags, message in (
        (["--config.model.class_weights=wide.pt"], "wide.pt are 7 wide, the embeddings of the"),
        (["--config.model.class_weights=absent.pt"], "no class weights at"),
        ([], "name those of their training as model.class_weights"),
    ):
        code, said = _run(tmp_path, capsys, *flags)
        assert code == 2
        assert message in said
        assert len(said.splitlines()) == 1
        assert not (tmp_path / "w").exists()

    code, said = _run(tmp_path, capsys, given, k=10)
    assert (code, "k is 10, but a support set can have at most 9 anchors" in said) == (2, True)
    code, said = _run(tmp_path, capsys, given, stages="('import','train')")
    assert (code, "goes with the stage import and without train" in said) == (2, True)


def test_classes_of_the_training_set_keep_their_labels(tmp_path, model, capsys):
    (tmp_path / "model.safetensors").write_bytes(model.read_bytes())
    weights = np.random.default_rng(1).normal(size=(16, WIDTH)).astype(np.float32)
    torch.save({"weight": torch.from_numpy(weights)}, tmp_path / "softmax_fc_gpu_0.pt")
    code, said = _run(tmp_path, capsys, "--config.model.class_weights=softmax_fc_gpu_0.pt")
    assert code == 0, said
    anchors = AnchorSet.load(tmp_path / "w" / "anchors" / "anchors.safetensors")
    unit = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    np.testing.assert_allclose(anchors.embeddings, unit[anchors.labels], atol=1e-6)
