"""The class weights of arcface_torch's checkpoints as anchors."""

import numpy as np
import pytest
from drawn import drawn_variables

from ida_jax.anchors.__main__ import main
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.common.errors import UserError

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
