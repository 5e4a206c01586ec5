import json
import re
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from drawn import drawn_variables
from jax import export as jax_export
from jax.sharding import NamedSharding, PartitionSpec

import ida_jax
from ida_jax import export
from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.artefacts.ssr_module import TARGETS, SSRModule
from ida_jax.common.errors import UserError
from ida_jax.interop.exported import largest_difference
from ida_jax.interop.onnx_export import onnx_bytes, onnx_graph
from ida_jax.interop.stablehlo_export import stablehlo_bytes, stablehlo_graph
from ida_jax.interop.weights import import_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("flatbuffers")

FORMATS = {
    "onnx": (onnx_bytes, onnx_graph),
    "stablehlo": (stablehlo_bytes, stablehlo_graph),
}


def random_model(network, size, width, preprocessing=None, **options):
    options = {"embedding_dim": width, **options}
    variables = drawn_variables(build_network(network, options), (1, size, size, 3))
    return FaceModel(network, options, preprocessing or Preprocessing(size), variables)


def random_ssr(model, target="log"):
    rng = np.random.default_rng(1)
    params = {
        name: {"kernel": rng.normal(size=shape), "bias": rng.normal(size=shape[1])}
        for name, shape in (("hidden_fc", (model.width, 7)), ("output_fc", (7, 1)))
    }
    params = jax.tree.map(np.float32, params)
    return SSRModule(params, target, 1.0, 0.1, 1e-3, 10, 1.5, model.fingerprint)


@pytest.fixture(scope="module")
def tiny(tiny_network):
    return random_model("tiny", 32, 9)


@pytest.fixture(scope="module")
def small_mobile():
    preprocessing = Preprocessing(17, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    return random_model("mobilefacenet", 17, 6, preprocessing)


@pytest.mark.parametrize(
    ("name", "input", "batches"),
    [
        ("onnx", "uint8", (1, 7, 64)),
        ("onnx", "float_nchw", (1, 7, 64)),
        ("stablehlo", "uint8", (1, 7)),
        ("stablehlo", "float_nchw", (2,)),
    ],
)
def test_graphs_give_the_models_embeddings(name, input, batches, small_mobile):
    to_bytes, to_graph = FORMATS[name]
    for model in (random_model("iresnet_nano", 32, 9), small_mobile):
        ssr = random_ssr(model)
        graph = to_graph(to_bytes(model, input=input, ssr=ssr))
        for batch in batches:
            assert largest_difference(graph, model, input=input, ssr=ssr, batch=batch) < 1e-5


@pytest.mark.parametrize("name", FORMATS)
def test_norms_are_those_of_the_raw_embeddings(name, tiny):
    to_bytes, to_graph = FORMATS[name]
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    graph = to_graph(to_bytes(tiny, norm=True))
    found = graph(images)
    assert set(found) == {"embedding", "norm"}
    np.testing.assert_allclose(
        found["norm"], np.linalg.norm(tiny.raw_embeddings(images), axis=1), rtol=1e-4
    )
    assert largest_difference(graph, tiny, input="uint8", ssr=None, norm=True) < 1e-5


@pytest.mark.parametrize("name", FORMATS)
def test_raw_embeddings_are_the_networks_own(name, tiny):
    to_bytes, to_graph = FORMATS[name]
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    ssr, kind = random_ssr(tiny), {"input": "float_nchw", "output_kind": "raw"}
    graph = to_graph(to_bytes(tiny, ssr=ssr, norm=True, **kind))
    found = graph(np.asarray(tiny.preprocessing(images)).transpose(0, 3, 1, 2))
    assert set(found) == {"embedding", "norm", "log_density"}
    raw = tiny.raw_embeddings(images)
    assert np.ptp(np.linalg.norm(raw, axis=1)) > 1e-3
    np.testing.assert_allclose(found["embedding"], raw, atol=1e-4 * np.abs(raw).max())
    np.testing.assert_allclose(found["log_density"], ssr.log_density(tiny.embed(images)), atol=1e-5)
    assert largest_difference(graph, tiny, ssr=ssr, norm=True, **kind) < 1e-5


def test_outputs_and_their_shapes(tiny):
    images = np.zeros((5, 32, 32, 3), np.uint8)
    images[1:] = 255
    for to_bytes, to_graph in FORMATS.values():
        out = to_graph(to_bytes(tiny))(images)
        assert set(out) == {"embedding"}
        assert (out["embedding"].shape, out["embedding"].dtype) == ((5, 9), np.float32)
        np.testing.assert_allclose(np.linalg.norm(out["embedding"], axis=1), 1, rtol=1e-5)
        assert np.max(np.abs(out["embedding"][0] - out["embedding"][1])) > 1e-2
        out = to_graph(to_bytes(tiny, ssr=random_ssr(tiny)))(images)
        assert (out["log_density"].shape, out["log_density"].dtype) == ((5,), np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("target", TARGETS)
def test_log_density_of_every_target(name, target, tiny):
    to_bytes, to_graph = FORMATS[name]
    images = np.random.default_rng(2).integers(0, 256, (6, 32, 32, 3), np.uint8)
    embeddings = tiny.embed(images)
    ssr = random_ssr(tiny, target)
    if target != "log":
        # A floor that some faces reach and others do not.
        ssr = replace(ssr, floor=float(np.exp(np.median(ssr.log_density(embeddings)))))
    assert np.ptp(ssr.log_density(embeddings)) > 1e-4
    for module in (ssr, replace(ssr, slope=0.7, intercept=-0.4), replace(ssr, slope=0.0)):
        found = to_graph(to_bytes(tiny, ssr=module))(images)["log_density"]
        np.testing.assert_allclose(found, module.log_density(embeddings), atol=1e-5)


@pytest.mark.parametrize("input", ["uint8", "float_nchw"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_pure_function(input, target, tiny, small_mobile):
    cases = [(tiny, 1), (tiny, 8)]
    if target == "log":  # the module's target, not the network's
        cases += [(small_mobile, 7)]
    for model, batch in cases:
        side = model.preprocessing.image_size
        images = np.random.default_rng(3).integers(0, 256, (batch, side, side, 3), np.uint8)
        embeddings = model.embed(images)
        ssr = random_ssr(model, target)
        floor = float(np.exp(np.median(ssr.log_density(embeddings))))
        ssr = ssr if target == "log" else replace(ssr, floor=floor)
        inputs = images
        if input == "float_nchw":
            inputs = np.asarray(model.preprocessing(images)).transpose(0, 3, 1, 2)
        variables, apply = ida_jax.deployable(model, ssr, input=input)
        network, without = ida_jax.deployable(model, input=input)
        assert set(network) == {"network"}
        # The network's weights are the same in both, so that one compilation does.
        out, alone = jax.jit(
            lambda variables, inputs, apply=apply, without=without: (
                apply(variables, inputs),
                without({"network": variables["network"]}, inputs),
            )
        )(variables, inputs)
        assert {key: (x.shape, x.dtype) for key, x in out.items()} == {
            "embedding": ((batch, model.width), np.float32),
            "log_density": ((batch,), np.float32),
        }
        np.testing.assert_allclose(out["embedding"], embeddings, atol=1e-5)
        np.testing.assert_allclose(out["log_density"], ssr.log_density(embeddings), atol=1e-5)
        assert set(alone) == {"embedding"}
        np.testing.assert_allclose(alone["embedding"], embeddings, atol=1e-5)


def test_the_pure_function_is_vmapped_sharded_and_differentiated(tiny):
    images = np.random.default_rng(4).integers(0, 256, (16, 32, 32, 3), np.uint8)
    ssr = random_ssr(tiny)
    variables, apply = ida_jax.deployable(tiny, ssr)
    expected = jax.jit(apply)(variables, images)
    mapped = jax.jit(jax.vmap(apply, in_axes=(None, 0)))
    for key, found in mapped(variables, images.reshape(2, 8, 32, 32, 3)).items():
        np.testing.assert_allclose(found.reshape(expected[key].shape), expected[key], atol=1e-5)
    mesh = jax.make_mesh((8,), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    for key, found in jax.jit(apply)(everywhere, jax.device_put(images, rows)).items():
        assert found.sharding.is_equivalent_to(rows, found.ndim)
        np.testing.assert_allclose(found, expected[key], atol=1e-5)

    # By the images: d log F / dx against a central difference in a random direction.
    variables, apply = ida_jax.deployable(tiny, ssr, input="float_nchw")
    x = np.asarray(tiny.preprocessing(images[:1])).transpose(0, 3, 1, 2)
    direction = np.random.default_rng(5).choice(np.float32([-1, 1]), x.shape)
    log_density = jax.jit(lambda x: apply(variables, x)["log_density"][0])
    slope = np.sum(jax.grad(log_density)(x) * direction)
    difference = (log_density(x + 1e-2 * direction) - log_density(x - 1e-2 * direction)) / 2e-2
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(slope, difference, rtol=0.05, atol=1e-4)


def test_the_pure_function_takes_its_weights_as_arguments(tiny):
    ssr = random_ssr(tiny)
    variables, apply = ida_jax.deployable(tiny, ssr)
    images = np.random.default_rng(4).integers(0, 256, (3, 32, 32, 3), np.uint8)
    zeros = jax.tree.map(np.zeros_like, variables["ssr"])
    found = apply(variables | {"ssr": zeros}, images)["log_density"]
    np.testing.assert_allclose(found, np.full(3, ssr.mean), atol=1e-6)
    with pytest.raises(UserError, match=r"fingerprint is .* SSR module's 0000"):
        ida_jax.deployable(tiny, replace(ssr, fingerprint="0" * 16))
    with pytest.raises(UserError, match="input 'float' is unknown"):
        ida_jax.deployable(tiny, input="float")


def test_a_bfloat16_pure_function(tiny):
    low = replace(tiny, network_options={**tiny.network_options, "dtype": "bfloat16"})
    images = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for float32, model in ((False, low), (True, tiny)):
        variables, apply = ida_jax.deployable(low, random_ssr(low), float32=float32)
        found = jax.jit(apply)(variables, images)["embedding"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, model.embed(images), atol=1e-5)


def test_iresnet18_as_onnx():
    model = random_model("iresnet18", 32, 256)
    graph = onnx_graph(onnx_bytes(model))
    assert largest_difference(graph, model, input="uint8", ssr=None) < 1e-5


@pytest.mark.parametrize("name", FORMATS)
def test_the_real_mobilefacenet(name, shared_data):
    to_bytes, to_graph = FORMATS[name]
    model = import_model(shared_data / "weights" / "mobilefacenet.npz")
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    difference = largest_difference(to_graph(to_bytes(model)), model, input="uint8", ssr=None)
    assert difference < 1e-5


@pytest.mark.parametrize("name", FORMATS)
def test_a_bfloat16_model_is_exported_in_float32(name, tiny):
    to_bytes, to_graph = FORMATS[name]
    low = replace(tiny, network_options={**tiny.network_options, "dtype": "bfloat16"})
    images = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), np.uint8)
    found = to_graph(to_bytes(low))(images)["embedding"]
    np.testing.assert_allclose(found, tiny.embed(images), atol=1e-5)
    assert np.max(np.abs(found - low.embed(images))) > 1e-4


def test_depthwise_convolutions_are_exported_as_such(small_mobile):
    proto = onnx.load_from_string(onnx_bytes(small_mobile))
    groups = [a.i for node in proto.graph.node for a in node.attribute if a.name == "group"]
    assert sum(group > 1 for group in groups) == 17  # 15 residuals, one before, the global one
    exported = jax_export.deserialize(bytearray(stablehlo_bytes(small_mobile)))
    groups = re.findall(r"feature_group_count = (\d+)", exported.mlir_module())
    # JAX writes a convolution once for each platform.
    assert sum(int(group) > 1 for group in groups) == 16 * len(exported.platforms)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


def test_onnx_metadata_says_what_the_input_is(small_mobile):
    proto = onnx.load_from_string(onnx_bytes(small_mobile, ssr=random_ssr(small_mobile)))
    told = {entry.key: entry.value for entry in proto.metadata_props}
    assert told["colour_order"] == "RGB"
    assert told["fingerprint"] == small_mobile.fingerprint
    assert (told["k"], told["tau"], told["image_size"]) == ("10", "1.5", "17")
    assert json.loads(told["mean"]) == [0.4, 0.5, 0.6]
    (images,) = proto.graph.input
    assert images.type.tensor_type.shape.dim[0].dim_param == "B"


@pytest.fixture
def workdir(tiny, tmp_path):
    tiny.save(tmp_path / "model.safetensors")
    random_ssr(tiny).save(tmp_path / "ssr.safetensors")
    return tmp_path


def test_the_command_writes_both_formats(workdir, tiny, capsys):
    for name, (_, to_graph) in FORMATS.items():
        output = workdir / f"out.{name}"
        ssr = workdir / "ssr.safetensors"
        export.main([f"--model={workdir}", f"--output={output}", f"--ssr={ssr}"])
        assert tiny.fingerprint in (printed := capsys.readouterr().out)
        assert "differs from JAX by at most" in printed
        graph = to_graph(output.read_bytes())
        difference = largest_difference(
            graph, tiny, input="uint8", ssr=SSRModule.load(ssr), batch=2
        )
        assert difference < 1e-5
    told = json.loads((workdir / "out.stablehlo.json").read_text())
    assert told["output_kind"] == "unit"
    raw = workdir / "raw.onnx"
    export.main([f"--model={workdir}", f"--output={raw}", "--output_kind=raw"])
    assert "of any length" in capsys.readouterr().out
    props = {p.key: p.value for p in onnx.load(raw).metadata_props}
    assert props["output_kind"] == "raw"
    assert (told["fingerprint"], told["input"]) == (tiny.fingerprint, "uint8 [B, 32, 32, 3]")


def test_the_command_describes_and_converts(workdir, tiny, capsys):
    export.main([f"--model={workdir / 'model.safetensors'}", "--info"])
    assert "RGB" in capsys.readouterr().out
    export.main([f"--model={workdir}", f"--output={workdir / 'copy.safetensors'}"])
    assert FaceModel.load(workdir / "copy.safetensors").fingerprint == tiny.fingerprint


def test_a_graph_that_differs_is_not_written(workdir, monkeypatch):
    from ida_jax.interop import exported

    for found in (0.1, float("nan")):
        monkeypatch.setattr(exported, "largest_difference", lambda *_, found=found, **__: found)
        with pytest.raises(RuntimeError, match="differs from JAX"):
            export.main([f"--model={workdir}", f"--output={workdir / 'out.onnx'}"])
    assert {path.name for path in workdir.iterdir()} == {"model.safetensors", "ssr.safetensors"}


def test_mistakes_are_one_line(workdir, tiny, monkeypatch):
    def refused(message, *flags):
        with pytest.raises(UserError, match=message):
            export.main([f"--model={workdir}", *flags])

    refused("--output=X.onnx", "--input=uint8")
    refused(r"ends in \.onnx", f"--output={workdir / 'x.tflite'}")
    refused("folder does not exist", f"--output={workdir / 'none' / 'x.onnx'}")
    refused("invalid choice: 'float'", f"--output={workdir / 'x.onnx'}", "--input=float")
    refused(
        "--output_kind=raw is for", f"--output={workdir / 'x.safetensors'}", "--output_kind=raw"
    )
    refused("--ssr is for graphs", f"--output={workdir / 'x.safetensors'}", "--ssr=S")
    other = replace(random_ssr(tiny), fingerprint="0" * 16)
    other.save(workdir / "other.safetensors")
    for name in FORMATS:
        flags = (f"--output={workdir / 'x'}.{name}", f"--ssr={workdir / 'other.safetensors'}")
        refused("fingerprint is .* SSR module's 0000", *flags)
    with pytest.raises(UserError, match="input 'float' is unknown"):
        onnx_bytes(tiny, input="float")
    with pytest.raises(UserError, match="output kind 'norm' is unknown"):
        onnx_bytes(tiny, output_kind="norm")
    for package, name in (("onnx", "onnx"), ("onnxruntime", "onnx"), ("flatbuffers", "stablehlo")):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            refused(r"pip install 'ida_jax\[interop\]'", f"--output={workdir / 'x'}.{name}")
    assert not list(workdir.glob("x*"))
