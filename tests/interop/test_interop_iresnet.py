import sys
import warnings
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from ida_jax.artefacts.face_model import Preprocessing, build_network
from ida_jax.common.errors import UserError
from ida_jax.interop.state_dict import iresnet_from_state, read_state
from ida_jax.interop.weights import import_model

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import torch_iresnet  # noqa: E402


def torch_network(name, **options):
    """In inference, with weights and statistics that no layer's initial 0 or 1 hides."""
    network = getattr(torch_iresnet, name)(**options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            uniform = torch.rand(tensor.shape, generator=generator)
            if key.endswith("running_var"):
                tensor.copy_(0.5 + uniform)
            elif key.endswith(("running_mean", "bias")):
                tensor.copy_(uniform - 0.5)
            elif tensor.ndim == 1 and key != "features.weight":
                tensor.copy_(0.2 + 0.6 * uniform)
            elif tensor.ndim > 1:
                tensor.copy_((uniform - 0.5) * (12 / tensor[0].numel()) ** 0.5)
    return network


def random_images(size, batch=2):
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def embed(module, variables, images):
    return module.apply(variables, images, train=False)


def difference(network, model, images):
    """The largest one between PyTorch's embeddings and the imported model's."""
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    module = build_network(model.network, model.network_options)
    assert np.std(expected) > 0.1
    return np.max(np.abs(embed(module, model.variables, images) - expected))


def export_onnx(network, size, path, *, folded):
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    options = {"dynamo": False, "training": mode, "do_constant_folding": folded}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that InsightFace used is deprecated
        torch.onnx.export(network, (torch.zeros(1, 3, size, size),), path, **options)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert (kinds.count("BatchNormalization") > kinds.count("Conv")) != folded


@pytest.fixture(scope="module")
def nano():
    return torch_network("iresnet_nano", embedding_dim=9, image_size=32)


@pytest.fixture
def state(nano):
    return {name: tensor.numpy() for name, tensor in nano.state_dict().items()}


@pytest.mark.parametrize(("embedding_dim", "size"), [(256, 112), (512, 32)])
def test_iresnet18_gives_pytorchs_embeddings(embedding_dim, size, tmp_path):
    network = torch_network("iresnet18", embedding_dim=embedding_dim, image_size=size)
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    for folded in (True, False):
        export_onnx(network, size, tmp_path / f"folded_{folded}.onnx", folded=folded)
    images = random_images(size)
    for path in tmp_path.iterdir():
        model = import_model(path)
        assert model.network == "iresnet18"
        assert model.network_options["embedding_dim"] == model.width == embedding_dim
        assert model.preprocessing == Preprocessing(size, (0.5,) * 3, (0.5,) * 3)
        assert difference(network, model, images) < 2e-5


@pytest.mark.parametrize("name", ["iresnet34", "iresnet50", "iresnet100"])
def test_depth_is_inferred_and_every_weight_used(name):
    network = getattr(torch_iresnet, name)(embedding_dim=4, image_size=16)
    state = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    found = iresnet_from_state(state)
    assert (found.network, found.image_size) == (name, 16)
    given = sum(value.size for key, value in state.items() if "num_batches" not in key)
    # The last BatchNorm's fixed scale has no place in our network.
    assert sum(leaf.size for leaf in jax.tree.leaves(found.variables)) == given - 4


@pytest.mark.parametrize("kind", ["npz", "safetensors", "ddp", "checkpoint", "half"])
def test_every_file_of_a_state_dict(kind, nano, state, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / f"w.{kind if kind in ('npz', 'safetensors') else 'pth'}"
    match kind:
        case "npz":
            np.savez(path, **state)
        case "safetensors":
            save_file(state, path)
        case "ddp":
            tensors = nano.state_dict().items()
            torch.save({f"module._orig_mod.{name}": tensor for name, tensor in tensors}, path)
        case "checkpoint":
            torch.save({"epoch": 3, "state_dict_backbone": nano.state_dict()}, path)
        case "half":
            torch.save({name: t.bfloat16() for name, t in nano.state_dict().items()}, path)
    assert difference(nano, import_model(path), random_images(32)) < (
        0.1 if kind == "half" else 1e-5
    )


def test_a_scale_of_the_last_batchnorm_is_kept(nano, state, tmp_path):
    scale = np.linspace(-1, 2, 9).astype(np.float32)
    np.savez(tmp_path / "w.npz", **state | {"features.weight": scale})
    network = torch_network("iresnet_nano", embedding_dim=9, image_size=32)
    with torch.no_grad():
        network.features.weight.copy_(torch.from_numpy(scale))
    assert difference(network, import_model(tmp_path / "w.npz"), random_images(32)) < 1e-5


def test_wrong_state_dicts_are_named(state, tmp_path):
    def refused(message, arrays, **options):
        np.savez(tmp_path / "w.npz", **arrays)
        with pytest.raises(UserError, match=message):
            import_model(tmp_path / "w.npz", **options)

    def without(*names):
        return {name: value for name, value in state.items() if name not in names}

    refused("class centres of partial FC", {"weight": np.zeros((5, 9), np.float32)})
    refused(r"iresnet_nano weights lack 'layer2\.0\.bn3\.bias'", without("layer2.0.bn3.bias"))
    refused("'conv1.weight' or 'fc.weight'", without("fc.weight"))
    refused("'head.weight' is not among", state | {"head.weight": np.zeros(2)})
    refused(r"'bn1\.weight' has shape \(3,\); \(16,\) is exp", state | {"bn1.weight": np.zeros(3)})
    refused("not a square map of 128", state | {"fc.weight": np.zeros((9, 6 * 128))})
    refused(r"stages of \[1, 1, 1, 2\] blocks", state | {"layer4.1.bn1.weight": np.zeros(128)})
    refused("of 32 pixels, not 112", state, preprocessing=Preprocessing())


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no weights at"):
        read_state(tmp_path / "none.pth")
    (tmp_path / "w.bin").touch()
    with pytest.raises(UserError, match=r"suffix '\.bin'"):
        import_model(tmp_path / "w.bin")
    for name in ("w.pth", "w.safetensors", "w.onnx", "w.npz"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(UserError, match=r"is not a (state dict|whole)"):
            import_model(tmp_path / name)
    torch.save(torch.zeros(3, 4), tmp_path / "w.pth")
    with pytest.raises(UserError, match="partial FC"):
        import_model(tmp_path / "w.pth")
    torch.save({"lr": 0.1}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no state dict"):
        import_model(tmp_path / "w.pth")
    for name, package in (("w.pth", "torch"), ("w.onnx", "onnx")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=r"pip install ida_jax\[interop\]"):
            import_model(tmp_path / name)


def test_a_pickle_that_would_run_code_does_not(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Harmful()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="is not a state dict alone"):
        import_model(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_other_graphs_are_refused(nano, tmp_path):
    path = tmp_path / "w.onnx"
    export_onnx(nano, 32, path, folded=True)

    def refused(message, change):
        proto = onnx.load(path)
        change(proto.graph)
        onnx.save(proto, tmp_path / "changed.onnx")
        with pytest.raises(UserError, match=message):
            import_model(tmp_path / "changed.onnx")

    def other_activation(graph):
        next(node for node in graph.node if node.op_type == "PRelu").op_type = "LeakyRelu"

    def longer(graph):
        graph.node.append(onnx.helper.make_node("Relu", [graph.output[0].name], ["end"]))
        graph.output[0].name = "end"

    def unfinished_sum(graph):
        add = next(node for node in graph.node if node.op_type == "Add")
        add.input[0] = add.input[1]

    refused("expected PRelu after .* found LeakyRelu", other_activation)
    refused("continues after the embedding", longer)
    refused("expected Add after|does not add", unfinished_sum)
