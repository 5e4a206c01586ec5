"""mbf, ViT and IR-SE from PyTorch and ONNX, against networks built from their descriptions."""

import warnings
from functools import partial

import jax
import numpy as np
import pytest

from ida_jax.artefacts.face_model import build_network
from ida_jax.interop.exported import largest_difference
from ida_jax.interop.weights import import_model

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import torch_networks as peers  # noqa: E402

from ida_jax.interop.onnx_export import onnx_bytes, onnx_graph  # noqa: E402

# The network, its images' size, and what it is read as.
NETWORKS = {
    "mbf": (
        lambda: peers.MBF((1, 2, 1, 1), scale=2, embedding_dim=9, image_size=32),
        ("mbf", {"blocks": (1, 2, 1, 1)}, 32),
    ),
    "mbf without a grouped convolution": (
        lambda: peers.MBF((2, 1, 2, 1), scale=1, embedding_dim=9, image_size=16),
        ("mbf", {"blocks": (2, 1, 2, 1), "scale": 1}, 16),
    ),
    "vit": (
        lambda: peers.ViT(2, 24, embedding_dim=9, image_size=27),
        ("vit_t", {"depth": 2, "width": 24, "drop_path_rate": 0.0, "mask_ratio": 0.0}, 27),
    ),
    "ir_se": (
        lambda: peers.IRSE((2, 1), (16, 32), embedding_dim=9, image_size=16),
        ("ir_se50", {"stage_sizes": (2, 1), "widths": (16, 32), "dropout_rate": 0.0}, 16),
    ),
}


@partial(jax.jit, static_argnums=0)
def embed(module, variables, images):
    return module.apply(variables, images, train=False)


def unit(embeddings):
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def difference(network, model, images):
    """The largest one between PyTorch's embeddings and the model's, of unit length."""
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    # Embeddings that hardly depend on the image would show nothing.
    assert np.min(np.std(unit(expected), axis=0)) > 0.02
    module = build_network(model.network, model.network_options)
    actual = np.asarray(embed(module, model.variables, images))
    assert np.max(np.abs(actual - expected)) < 1e-5 * np.max(np.abs(expected))
    return np.max(np.abs(unit(actual) - unit(expected)))


def random_images(size, batch=4):
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype(np.float32)


def export(network, size, path, *, folded=True, opset=17):
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that InsightFace used is deprecated
        torch.onnx.export(
            network, (torch.zeros(1, 3, size, size),), path, dynamo=False, training=mode,
            do_constant_folding=folded, opset_version=opset,
        )  # fmt: skip


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    build, expected = NETWORKS[request.param]
    return peers.filled(build()), *expected


def test_weights_in_and_graphs_out(case, tmp_path):
    network, name, options, size = case
    images = random_images(size)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    model = import_model(tmp_path / "w.pth")
    assert (model.network, model.network_options) == (name, {**options, "embedding_dim": 9})
    assert model.preprocessing.image_size == size
    assert difference(network, model, images) < 1e-5
    graph = onnx_graph(onnx_bytes(model, output_kind="raw", input="float_nchw"))
    given = {"input": "float_nchw", "output_kind": "raw", "ssr": None, "batch": 4}
    assert largest_difference(graph, model, **given) < 1e-5

    # The same function from PyTorch's graphs, whether BatchNorms are folded or not.
    for folded, opset in ((True, 11), (True, 17), (False, 17)):
        path = tmp_path / f"folded_{folded}_{opset}.onnx"
        export(network, size, path, folded=folded, opset=opset)
        read = import_model(path)
        assert (read.network, read.network_options) == (model.network, model.network_options)
        assert difference(network, read, images) < 1e-5
