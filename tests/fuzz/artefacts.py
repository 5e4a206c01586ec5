"""Readers of artefacts and of weights from elsewhere, and their seeds."""

import functools
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .remake import ARTEFACT, ONNX, ZIP
from .seeds import Reader, npz, saved, unit

if TYPE_CHECKING:
    from ida_jax.artefacts.face_model import FaceModel

_SIZE, _WIDTH = 16, 8
_SIZES = {"resolution": 8, "latent_dim": 4, "style_dim": 4, "mapping_layers": 1,
          "channel_base": 32, "channel_max": 4}  # fmt: skip
_MOST = 1 << 12  # wider, a sound artefact takes more than the limits


def _anchor_set() -> bytes:
    from ida_jax.anchors.anchor_set import AnchorSet

    return saved(AnchorSet(unit(20), np.arange(20, dtype=np.int32)).save, "a.safetensors")


def _read_anchor_set(path: Path) -> None:
    from ida_jax.anchors.anchor_set import AnchorSet
    from ida_jax.anchors.search import support_sets

    support_sets(unit(3), AnchorSet.load(path), k=2, searcher="exact")


def _calibration() -> list[bytes]:
    from ida_jax.artefacts.calibration import fit_calibration
    from ida_jax.tables.score_origin import ScoreOrigin, Shared

    origin = ScoreOrigin(
        "ida_r", settings={"k": 10}, anchors="ab", artefacts={"ssr": "cd"},
        shared=Shared(9, 1, 2, 3, 0.5),
    )  # fmt: skip
    genuine, impostor = np.linspace(-0.5, 1, 40), np.linspace(-1, 0.5, 40)
    return [
        saved(fit_calibration(genuine, impostor, kind=kind, origin=origin).save, "c.safetensors")
        for kind in ("logistic", "isotonic")
    ]


def _read_calibration(path: Path) -> None:
    from ida_jax.artefacts.calibration import Calibration

    calibration = Calibration.load(path)
    calibration.llr(np.float32([0, 1]))
    calibration.check_scores(calibration.origin)


def _ssr() -> bytes:
    from ida_jax.artefacts.ssr_module import HeldOut, SSRModule

    rng = np.random.default_rng(0)
    params = {
        "hidden_fc": {"kernel": rng.normal(size=(4, 4)), "bias": rng.normal(size=4)},
        "output_fc": {"kernel": rng.normal(size=(4, 1)), "bias": rng.normal(size=1)},
    }
    params = {
        layer: {name: value.astype(np.float32) for name, value in of.items()}
        for layer, of in params.items()
    }
    judged = HeldOut(80, 64, 8, 0.5, 0.03, 900, 0.5, 0.4, 0.6, 0.1, 0.9, 0.5, 0.0, "")
    constants = "standardised", 0.05, 0.01, 0.001, 10, 1.0
    module = SSRModule(params, *constants, slope=0.9, intercept=-0.1, held_out=judged)
    return saved(module.save, "s.safetensors")


def _read_ssr(path: Path) -> None:
    from ida_jax.artefacts.ssr_module import SSRModule

    module = SSRModule.load(path)
    if module.held_out is not None:
        module.held_out.note()
    if module.width < _MOST:
        module.log_density(unit(3, module.width))


def _csn() -> bytes:
    from ida_jax.rescoring.csn_fit import Csn

    csn = Csn(np.array([0.1, 0.2]), 1.0, 0.0, 5, 4, 20, "", 0.5, 3, 10, 10)
    return saved(csn.save, "c.safetensors")


def _read_csn(path: Path) -> None:
    from ida_jax.rescoring.csn_fit import Csn

    csn = Csn.load(path)
    if csn.top_n < 1 << 20:
        csn.face_term(np.zeros((2, csn.top_n), np.float32))


def _fitted() -> bytes:
    from ida_jax.rescoring.dao_fit import DaoFit

    return saved(DaoFit(1.0, 0.5, 10.0, 2.0, 4, 20).save, "d.safetensors")


def _read_fitted(path: Path) -> None:
    from ida_jax.rescoring.dao_fit import DaoFit

    fit = DaoFit.load(path)
    if fit.neighbours < 1 << 20:
        fit.log_density(np.zeros((2, fit.neighbours), np.float32))


def _quality() -> bytes:
    from ida_jax.rescoring.quality_fit import QualityFit

    fit = QualityFit(30.0, 12.0, 0.2, -1.0, 0.3, 0.1, 2.0, 3.0, (2.2, 2.8), 9, 4, 11, "ab")
    return saved(fit.save, "q.safetensors")


def _read_quality(path: Path) -> None:
    from ida_jax.rescoring.quality_fit import QualityFit

    QualityFit.load(path).clipped(np.zeros(2, np.float32))


def _drawn(shapes: dict) -> dict:
    """Variables of these shapes, small and positive, as variances have to be."""
    import jax

    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), shapes)


@functools.cache
def _model() -> "FaceModel":
    import jax

    from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network

    options = {"embedding_dim": _WIDTH}
    network = build_network("iresnet_nano", options)
    image = np.zeros((1, _SIZE, _SIZE, 3), np.float32)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))
    return FaceModel("iresnet_nano", options, Preprocessing(_SIZE), _drawn(shapes))


def _image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (_SIZE, _SIZE, 3), np.uint8)


def _read_face_model(path: Path) -> None:
    from ida_jax.artefacts.face_model import FaceModel

    model = FaceModel.load(path)
    if model.preprocessing.image_size == _SIZE:
        model.embed([_image()])


def _uncertainty() -> bytes:
    import jax

    from ida_jax.artefacts.uncertainty_model import UncertaintyModel
    from ida_jax.models.uncertainty_network import UncertaintyNetwork

    module = UncertaintyNetwork(embedding_dim=_WIDTH, hidden=4)
    features = np.zeros((1, 1, 1, 128), np.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), features, train=False))
    variables = _drawn(shapes)
    variables["params"]["scale"] = np.float32(0)  # else variances follow features of any size
    made = UncertaintyModel(variables, _model().fingerprint)
    return saved(made.save, "u.safetensors")


def _read_uncertainty(path: Path) -> None:
    from ida_jax.artefacts.uncertainty_model import UncertaintyModel

    UncertaintyModel.load(path).embed(_model(), [_image()])


def _generator() -> bytes:
    import jax

    from ida_jax.artefacts.generator import FaceGenerator
    from ida_jax.models.stylegan import GeneratorNetwork, draw_noise

    network = GeneratorNetwork(**_SIZES)
    shapes = jax.eval_shape(
        lambda: network.init(
            jax.random.key(0), np.zeros((1, 4), np.float32), draw_noise(jax.random.key(0), 1, 8)
        )
    )
    made = FaceGenerator(_SIZES, _drawn(shapes), np.zeros(4, np.float32), _SIZE, {"faces": 3})
    return saved(made.save, "g.safetensors")


def _read_generator(path: Path) -> None:
    from ida_jax.artefacts.generator import FaceGenerator

    generator = FaceGenerator.load(path)
    if (generator.options, generator.image_size) == (_SIZES, _SIZE):  # others compile for seconds
        generator.faces(0, 1)


# Weights from elsewhere ---------------------------------------------------------------------------


def _weights(path: Path) -> None:
    from ida_jax.interop.weights import import_model

    import_model(path)


@functools.cache
def _onnx() -> bytes:
    """A whole iresnet up to its embedding, which import takes as PyTorch's exports."""
    import onnx

    from ida_jax.interop.onnx_export import onnx_bytes

    proto = onnx.load_from_string(onnx_bytes(_model(), input="float_nchw"))
    while proto.graph.node[-1].op_type != "BatchNormalization":  # the norm, and the division by it
        del proto.graph.node[-1]
    proto.graph.output[0].name = proto.graph.node[-1].output[0]
    return proto.SerializeToString()


def _small_onnx() -> bytes:
    from onnx import TensorProto, helper

    def tensor(name: str, shape: tuple[int, ...]):
        values = np.zeros(shape, np.float32)
        return helper.make_tensor(name, TensorProto.FLOAT, shape, values.ravel())

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
            helper.make_node("PRelu", ["a", "s"], ["b"], "prelu"),
            helper.make_node("Identity", ["b"], ["c"], "identity"),
            helper.make_node("Flatten", ["c"], ["y"], "flatten"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [tensor("w", (4, 3, 3, 3)), tensor("s", (4, 1, 1))],
    )
    return helper.make_model(graph).SerializeToString()


@functools.cache
def _state() -> dict[str, np.ndarray]:
    from ida_jax.interop.onnx_import import read_onnx_state

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.onnx"
        path.write_bytes(_onnx())
        return {name: np.array(value) for name, value in read_onnx_state(path).items()}


def _state_dict() -> list[bytes]:
    import torch

    few = {"conv1.weight": torch.zeros(4, 3, 3, 3),
           "fc.weight": torch.nn.Parameter(torch.zeros(4, 16))}  # fmt: skip
    whole = {name: torch.from_numpy(value) for name, value in _state().items()}
    out = []
    for state in (whole, few):
        for legacy in (False, True):
            file = io.BytesIO()
            torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=not legacy)
            out.append(file.getvalue())
    return out


def _state_safetensors() -> list[bytes]:
    from safetensors.numpy import save

    return [save({name: np.ascontiguousarray(value) for name, value in _state().items()})]


READERS = {
    "anchor_set": Reader("a.safetensors", lambda: [_anchor_set()], _read_anchor_set, ARTEFACT),
    "calibration": Reader("c.safetensors", _calibration, _read_calibration, ARTEFACT),
    "ssr": Reader("s.safetensors", lambda: [_ssr()], _read_ssr, ARTEFACT),
    "csn": Reader("c.safetensors", lambda: [_csn()], _read_csn, ARTEFACT),
    "fitted_dao": Reader("d.safetensors", lambda: [_fitted()], _read_fitted, ARTEFACT),
    "fitted_quality": Reader("q.safetensors", lambda: [_quality()], _read_quality, ARTEFACT),
    "face_model": Reader(
        "f.safetensors", lambda: [saved(_model().save, "f")], _read_face_model, ARTEFACT
    ),
    "uncertainty": Reader("u.safetensors", lambda: [_uncertainty()], _read_uncertainty, ARTEFACT),
    "generator": Reader("g.safetensors", lambda: [_generator()], _read_generator, ARTEFACT),
    "state_dict": Reader("w.pth", _state_dict, _weights, ZIP, refused=2),
    "state_npz": Reader("w.npz", lambda: list(npz(**_state())), _weights, ZIP),
    "state_safetensors": Reader("w.safetensors", _state_safetensors, _weights),
    "onnx": Reader("w.onnx", lambda: [_onnx(), _small_onnx()], _weights, ONNX, refused=1),
}
