import sys
import warnings
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from ida_jax.artefacts.face_model import Preprocessing, build_network
from ida_jax.common.errors import UserError
from ida_jax.interop.state_dict import read_state
from ida_jax.interop.torch_networks import iresnet_from_state
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
    assert (found.network, found.preprocessing.image_size) == (name, 16)
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


@pytest.mark.parametrize("kind", ["lightning", "parameters", "compiled lightning"])
def test_what_trainers_save_around_a_network(kind, nano, tmp_path):
    path = tmp_path / "w.ckpt"
    tensors = dict(nano.state_dict())
    match kind:
        case "parameters":
            tensors = {n: torch.nn.Parameter(t, t.is_floating_point()) for n, t in tensors.items()}
            torch.save(tensors, path)
        case "lightning" | "compiled lightning":
            prefix = "model." if kind == "lightning" else "net._orig_mod."
            listed = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
            listed |= {"head.weight": torch.zeros(5, 9), "loss.scale": torch.zeros(())}
            torch.save({"epoch": 3, "state_dict": listed, "loops": {}}, path)
    assert difference(nano, import_model(path), random_images(32)) < 1e-5


def test_what_a_trainer_saved_and_cannot_be_read_is_named(nano, tmp_path):
    path = tmp_path / "w.pth"
    tensors = dict(nano.state_dict())

    def refused(message, saved):
        torch.save(saved, path)
        with pytest.raises(UserError, match=message) as caught:
            import_model(path)
        assert "\n" not in str(caught.value)

    twice = {f"{p}{name}": t for p in ("model.", "ema.") for name, t in tensors.items()}
    refused("holds several networks, under 'ema.', 'model.'", {"state_dict": twice})
    refused(
        "holds several networks, under '', 'ema.'",
        tensors | {"ema.features.running_var": torch.zeros(9)},
    )
    refused("no state dict", {"state_dict": 3, "epoch": 4})
    sparse = tensors["fc.weight"].to_sparse()
    refused("'fc.weight' is sparse or quantised", tensors | {"fc.weight": sparse})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PyTorch will drop them
        quantised = torch.quantize_per_tensor(tensors["fc.weight"], 0.1, 0, torch.qint8)
    refused("'fc.weight' is sparse or quantised|not a state", tensors | {"fc.weight": quantised})
    refused(r"'fc.weight' has shape \(9,\)", tensors | {"fc.weight": torch.zeros(9)})
    refused(r"'conv1.weight' has shape \(\)", tensors | {"conv1.weight": torch.zeros(())})


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("folded", [True, False])
def test_every_opset(nano, tmp_path, opset, folded):
    path = tmp_path / "w.onnx"
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    options = {"dynamo": False, "training": mode, "do_constant_folding": folded}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(nano, (torch.zeros(1, 3, 32, 32),), path, opset_version=opset, **options)
    assert difference(nano, import_model(path), random_images(32)) < 1e-5


@pytest.mark.parametrize("optimize", [True, False])
def test_dynamo_exports(nano, tmp_path, optimize):
    pytest.importorskip("onnxscript")
    path = tmp_path / "w.onnx"
    images = (torch.zeros(2, 3, 32, 32),)
    torch.onnx.export(nano, images, path, dynamo=True, optimize=optimize, verbose=False)
    assert difference(nano, import_model(path), random_images(32)) < 1e-5


def _unfolded(proto):
    """The graph as exporters write it that leave constants to the runtime.

    Slopes through Identity and Unsqueeze (shared weights without folding) or Reshape, a bias of
    zeros by Shape and Expand, and the fully connected layer as Transpose, MatMul and Add (dynamo).
    """
    graph, make = proto.graph, onnx.helper.make_node
    number = onnx.helper.make_tensor
    int64, float32 = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    nodes = []
    for i, node in enumerate(graph.node):
        if node.op_type == "PRelu":
            slope = node.input[1]
            flat = number("", int64, [1], [-1])
            shape = number("", int64, [3], [-1, 1, 1])
            nodes += [
                make("Constant", [], [f"flat{i}"], value=flat),
                make("Reshape", [slope, f"flat{i}"], [f"flatslope{i}"]),
                make("Identity", [f"flatslope{i}"], [f"same{i}"]),
            ]
            if i % 2:
                nodes += [
                    make("Constant", [], [f"axes{i}"], value_ints=[1, 2]),
                    make("Unsqueeze", [f"same{i}", f"axes{i}"], [f"slope{i}"]),
                ]
            else:
                nodes += [
                    make("Constant", [], [f"shape{i}"], value=shape),
                    make("Reshape", [f"same{i}", f"shape{i}"], [f"slope{i}"]),
                ]
            node.input[1] = f"slope{i}"
        if node.op_type == "Conv" and len(node.input) == 2:
            kernel = node.input[1]
            nodes += [
                make("Shape", [kernel], [f"out{i}"], start=0, end=1),
                make("Constant", [], [f"zero{i}"], value=number("", float32, [], [0.0])),
                make("CastLike", [f"zero{i}", node.input[0]], [f"like{i}"]),
                make("Expand", [f"like{i}", f"out{i}"], [f"bias{i}"]),
            ]
            node.input.append(f"bias{i}")
        if node.op_type == "Gemm":
            x, kernel, bias = node.input
            nodes += [
                make("Transpose", [kernel], [f"turned{i}"], perm=[1, 0]),
                make("MatMul", [x, f"turned{i}"], [f"product{i}"]),
                make("Add", [f"product{i}", bias], list(node.output)),
            ]
            continue
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(proto)


@pytest.mark.parametrize("folded", [True, False])
def test_constants_that_are_not_folded(nano, tmp_path, folded):
    path = tmp_path / "w.onnx"
    export_onnx(nano, 32, path, folded=folded)
    proto = onnx.load(path)
    _unfolded(proto)
    onnx.save(proto, path)
    assert difference(nano, import_model(path), random_images(32)) < 1e-5


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
    refused(r"weights lack 'fc\.weight': expected the whole state dict", without("fc.weight"))
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
        with pytest.raises(UserError, match=r"pip install 'ida_jax\[interop\]'"):
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

    def circle(graph):
        adds = [node for node in graph.node if node.op_type == "Add"]
        adds[1].output[0] = adds[0].output[0]  # a block's sum is its own input

    def few_inputs(graph):
        bn = next(node for node in graph.node if node.op_type == "BatchNormalization")
        del bn.input[3:]

    refused("runs in a circle at", circle)
    refused("has other inputs than ours", few_inputs)
    refused("expected PRelu after .* found LeakyRelu", other_activation)
    refused("continues after the embedding", longer)
    refused("expected Add after|does not add", unfinished_sum)
