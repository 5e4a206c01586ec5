"""Every artefact is what was saved, or is refused in one line that names its file."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.calibration import Calibration
from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.artefacts.ssr_module import HeldOut, SSRModule
from ida_jax.artefacts.uncertainty_model import UncertaintyModel
from ida_jax.common.errors import UserError
from ida_jax.common.files import save_tensors
from ida_jax.common.fingerprints import content_fingerprint
from ida_jax.metrics.likelihood_ratios import AffineMap, IsotonicMap
from ida_jax.models.stylegan import GeneratorNetwork, draw_noise
from ida_jax.models.uncertainty_network import UncertaintyNetwork
from ida_jax.rescoring.csn_fit import Csn
from ida_jax.rescoring.dao_fit import DaoFit
from ida_jax.rescoring.quality_fit import QualityFit
from ida_jax.tables.score_origin import ScoreOrigin, Shared

_RNG = np.random.default_rng(0)


def _drawn(*shape):
    return _RNG.standard_normal(shape).astype(np.float32)


def _layer(rows, columns):
    return {"kernel": _drawn(rows, columns), "bias": _drawn(columns)}


def _variables(network, *inputs, **options):
    """Drawn arrays of a network's shapes; its own would take seconds to compile."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs, **options))
    return jax.tree.map(lambda leaf: _drawn(*leaf.shape), shapes)


_NANO, _SIZES = {"embedding_dim": 3}, {"resolution": 8, "latent_dim": 4, "style_dim": 6,
    "mapping_layers": 1, "channel_base": 32, "channel_max": 4}  # fmt: skip
_BACKBONE = _variables(build_network("iresnet_nano", _NANO), jnp.zeros((1, 16, 16, 3)), train=False)
_GENERATOR = _variables(
    GeneratorNetwork(**_SIZES), jnp.zeros((1, 4)), draw_noise(jax.random.key(0), 1, 8)
)
_UNCERTAINTY = _variables(
    UncertaintyNetwork(embedding_dim=3, hidden=5), jnp.zeros((1, 3, 3, 1)), train=False
)
_ARTEFACTS = {
    "anchors": AnchorSet.from_embeddings(
        _drawn(11, 4), labels=np.arange(11), names=[f"né {i}" for i in range(11)],
        fingerprint="0123456789abcdef", provenance={"seed": 1},
    ),
    "ssr": SSRModule(
        {"hidden_fc": _layer(4, 7), "output_fc": _layer(7, 1)}, "log", 1.0, 0.5, 1e-3, 10, 2.0,
        anchors_sketch="0123456789abcdef",
    ),
    "judged": SSRModule(
        {"hidden_fc": _layer(4, 7), "output_fc": _layer(7, 1)}, "log", 1.0, 0.5, 1e-3, 10, 2.0,
        slope=0.9, intercept=-0.1, held_out=HeldOut(
            30, 7, 10, 0.3, 2e-3, 500, 0.5, 0.4, 0.6, 0.3, 0.9, 0.1, 0.0, ""
        ),
    ),
    "csn": Csn(np.arange(1.0, 5), 2.0, -1.0, 9, 4, 11, "", 1e-3, 5, 6, 7),
    "dao": DaoFit(1.5, 0.75, 9.5, 1.0, 4, 11, "0123456789abcdef", 1e-4, 5, 6, 7),
    "quality": QualityFit(
        30.0, 12.0, 0.2, -1.0, 0.3, 0.1, 2.0, 3.0, (2.2, 2.5, 2.8), 9, 4, 11, "0123456789abcdef"
    ),
    "logistic": Calibration("logistic", AffineMap(2.0, -1.0), "ida_r", "log", 5, 6),
    "isotonic": Calibration(
        "isotonic", IsotonicMap(np.arange(4.0), np.arange(4.0) / 3),
        origin=ScoreOrigin("ida_r", settings={"k": 3}, shared=Shared(9, 1, 2, 3, 0.5)),
    ),
    "model": FaceModel("iresnet_nano", _NANO, Preprocessing(16), _BACKBONE),
    "generator": FaceGenerator(_SIZES, _GENERATOR, _drawn(6), 16, {"faces": 3}),
    "uncertainty": UncertaintyModel(_UNCERTAINTY, "0123456789abcdef"),
}  # fmt: skip


@pytest.fixture(params=_ARTEFACTS)
def saved(request, tmp_path):
    """An artefact's class and file."""
    artefact, path = _ARTEFACTS[request.param], tmp_path / f"{request.param}.safetensors"
    artefact.save(path)
    return type(artefact), path


def _refused(kind, path):
    with pytest.raises(UserError) as caught:
        kind.load(path)
    said = str(caught.value)
    assert path.name in said
    assert "\n" not in said
    return said


def test_saved_twice_it_is_the_same_bytes_and_loads(saved, tmp_path):
    kind, path = saved
    kind.load(path).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_its_content_has_one_fingerprint_saved_or_not(saved):
    """Scores say by it which artefacts made them."""
    kind, path = saved
    fingerprint = content_fingerprint(kind.load(path))
    assert fingerprint == content_fingerprint(_ARTEFACTS[path.stem])


def test_any_flipped_bit_is_refused(saved):
    kind, path = saved
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for place in rng.choice(len(whole), min(150, len(whole)), replace=False).tolist():
        content = bytearray(whole)
        content[place] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        _refused(kind, path)


def test_anything_cut_off_or_filled_with_zeros_is_refused(saved):
    kind, path = saved
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for end in (0, 1, 8, 100, start, start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        _refused(kind, path)
        path.write_bytes(whole[:end] + bytes(len(whole) - end))
        _refused(kind, path)


def _older(path, change):
    """Writes the file again as older versions did, without a checksum, and changed."""
    with safe_open(path, framework="np") as opened:
        header = opened.metadata()
    del header["checksum"]
    arrays = {name: np.array(value) for name, value in load_file(path).items()}
    change(arrays, header)
    save_file(arrays, path, metadata=header)


def test_files_without_a_checksum_are_taken(saved):
    kind, path = saved
    _older(path, lambda arrays, header: None)
    kind.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_without_a_checksum_bad_numbers_are_named_by_row(saved, value):
    kind, path = saved

    def spoil(arrays, header):
        name = next(name for name, array in arrays.items() if array.dtype.kind == "f")
        arrays[name].reshape(-1)[-1] = value

    _older(path, spoil)
    assert "row " in _refused(kind, path)


@pytest.mark.parametrize("value", [0.0, 1e30, 0.5, "row of zeros"])
def test_anchors_that_are_not_unit_rows_are_named(tmp_path, value):
    path = tmp_path / "A.safetensors"
    _ARTEFACTS["anchors"].save(path)

    def spoil(arrays, header):
        arrays["embeddings"][7] = 0
        arrays["embeddings"][7, 0] = 0 if isinstance(value, str) else value

    _older(path, spoil)
    assert "row 7 of its embeddings" in _refused(AnchorSet, path)


@pytest.mark.parametrize("text", ['"ten"', "null", "[1]", "true", "NaN", "-1", "1e39", "{", ""])
@pytest.mark.parametrize("name", ["k", "tau"])
@pytest.mark.parametrize("artefact", ["anchors", "ssr"])
def test_header_values_of_another_kind_are_refused(tmp_path, artefact, name, text):
    path = tmp_path / "A.safetensors"
    _ARTEFACTS[artefact].save(path)
    _older(path, lambda arrays, header: header.__setitem__(name, text))
    _refused(type(_ARTEFACTS[artefact]), path)


def _header(**values):
    return lambda arrays, header: header.update({k: json.dumps(v) for k, v in values.items()})


def _array(name, change):
    return lambda arrays, header: arrays.__setitem__(name, np.array(change(arrays[name])))


_FC, _STYLE, _HIDDEN = "params/fc/kernel", "mean_style", "params/hidden_fc/kernel"


@pytest.mark.parametrize(
    ("artefact", "spoil", "said"),
    [
        ("model", lambda arrays, header: arrays.pop(_FC), f"{_FC} is missing"),
        ("model", lambda arrays, header: arrays.update(a=_drawn(2)), "a is unknown"),
        ("model", _array(_FC, lambda a: a[:-1]), r"\[127, 3\], expected float32 \[128, 3\]"),
        ("model", _array(_FC, lambda a: a.astype(np.int64)), "int64"),
        ("model", _array(_FC, np.float64), "float64"),
        ("model", _header(image_size=-1), "image_size is -1"),
        ("model", _header(image_size=10**12), "image_size is 1000000000000"),
        ("model", _header(image_size="16"), "image_size is '16'"),
        ("model", _header(mean=[0.5, 0.5]), "3 finite numbers"),
        ("model", _header(mean=[0.5, 0.5, 10**400]), "3 finite numbers"),
        ("model", _header(std=[0.5, 0.5, 0]), "positive numbers"),
        ("model", _header(network="r50"), "network 'r50' is unknown"),
        ("model", _header(network_options=[]), "AttributeError|TypeError"),
        ("model", _header(network_options={"embedding_dim": 2**70}), "expected float32"),
        ("model", _header(network_options={**_NANO, "stage_sizes": [10**9] * 4}), "stage_sizes"),
        ("generator", _header(options={**_SIZES, "resolution": 12}), "resolution 12"),
        ("generator", _header(options={**_SIZES, "resolution": 2**40}), "resolution is 1099"),
        ("generator", _header(options={**_SIZES, "mapping_layers": 10**6}), "1000000 mapping"),
        ("generator", _header(options={**_SIZES, "latent_dim": "4"}), "latent_dim is '4'"),
        ("generator", _header(options={**_SIZES, "filter_first": 1}), "filter_first is not"),
        ("generator", _header(options=3), "AttributeError"),
        ("generator", _header(image_size=10**6), "crops of 1000000"),
        ("generator", _array(_STYLE, lambda a: a[:3]), r"mean_style is float32 \[3\]"),
        ("generator", _array(_STYLE, np.int64), "mean_style is int64"),
        ("uncertainty", _array("params/scale", lambda a: a[None]), "params/scale is float32"),
        ("uncertainty", _array(_HIDDEN, lambda a: a[:, :-1]), "params/hidden_"),
        ("uncertainty", _header(fingerprint=3), "fingerprint is 3, expected plain text"),
        ("ssr", _array("output_fc/kernel", lambda a: a[:-1]), "params/output_fc/kernel"),
        ("ssr", _array("hidden_fc/kernel", lambda a: a[0, 0]), "IndexError"),
        ("ssr", _header(std=10**400), "std is 1000"),
        ("ssr", _header(fingerprint="a\x1b[31m"), r"fingerprint is a\\x1b\[31m, expected plain"),
        ("dao", _header(anchors=-1), "is not above 0"),
        ("csn", _header(anchors=0), "is not above 0"),
        ("anchors", _header(provenance=[1]), "provenance"),
        ("ssr", _header(k=10**30), "k is 1000"),
        ("dao", _header(width=-(10**400)), "width is -1000"),
        ("csn", _array("coefficient_weights", lambda a: np.zeros(20)), "degree 19 of top_n = 9"),
        ("csn", _array("coefficient_weights", lambda a: a[:0]), "degree -1"),
        ("csn", _array("coefficient_weights", np.int64), "int64"),
        ("anchors", _array("embeddings", np.float64), "float64"),
        ("anchors", _array("embeddings", lambda a: a.astype(bool)), "bool"),
        ("anchors", _array("labels", np.float32), "labels are float32"),
        ("anchors", _array("labels", lambda a: a[:, None]), "11 labels for 11 anchors"),
    ],
)  # fmt: skip
def test_whole_files_of_something_else_are_refused(tmp_path, artefact, spoil, said):
    """What is refused is not the checksum, which is that of the arrays and the header."""
    path = tmp_path / "A.safetensors"
    _ARTEFACTS[artefact].save(path)
    _older(path, spoil)
    arrays = {name: np.array(value) for name, value in load_file(path).items()}
    with safe_open(path, framework="np") as opened:
        header = opened.metadata()
    kind = header.pop("kind")
    metadata = {name: json.loads(value) for name, value in header.items()}
    save_tensors(path, arrays, kind=kind, metadata=metadata)
    assert re.search(said, _refused(type(_ARTEFACTS[artefact]), path))


def test_a_module_of_other_feature_maps_is_refused():
    model = _ARTEFACTS["model"]
    module = UncertaintyModel(_UNCERTAINTY, model.fingerprint)
    with pytest.raises(UserError, match="feature maps of another size"):
        module.embed(model, [np.zeros((16, 16, 3), np.uint8)])


def test_fields_that_do_not_belong_together_are_refused(tmp_path):
    path = tmp_path / "A.safetensors"
    for spoil in (
        lambda arrays, header: arrays.__setitem__("labels", arrays["labels"][1:]),
        lambda arrays, header: arrays.__setitem__("names", arrays["names"][:9]),
        lambda arrays, header: arrays.__setitem__("embeddings", arrays["embeddings"].ravel()),
        lambda arrays, header: arrays.pop("embeddings"),
        lambda arrays, header: header.pop("tau"),
        lambda arrays, header: header.__setitem__("source", json.dumps(3)),
    ):
        _ARTEFACTS["anchors"].save(path)
        _older(path, spoil)
        _refused(AnchorSet, path)
