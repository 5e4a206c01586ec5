"""The device programs of a config, described without data or devices, so that they can be planned.

Each is what the commands jit, at the largest of their block sizes.

B batch, D embedding, N faces, A anchors.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ida_jax.anchors.exact_search import DEVICE_QUERIES, compared, search_mesh
from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network, embed_batch
from ida_jax.common.devices import batch_sharding, replicated, training_mesh
from ida_jax.common.errors import UserError
from ida_jax.ops.products import PRECISIONS
from ida_jax.rescoring.gallery import (
    DEVICE_GALLERY_BLOCK,
    DEVICE_PROBE_BLOCKS,
    BestFaces,
    best_with_slab,
    slab_share,
)
from ida_jax.rescoring.likelihood import DEVICE_TILE, likelihood_of_pairs, nearest_likelihoods
from ida_jax.rescoring.pairs import DEVICE_GATHER_BLOCKS, gathered_scores
from ida_jax.rescoring.terms import RULES, FaceTerms
from ida_jax.runs.config_check import check_config, check_training
from ida_jax.training.gan_step import check_gan_batch, make_gan_program
from ida_jax.training.length import depends_on_images, in_steps
from ida_jax.training.pfe import check_pfe_batch, make_pfe_program
from ida_jax.training.ssr import STEPS_A_CALL, make_ssr_program, rows_of, searched_rows
from ida_jax.training.train_step import make_program

_TOP = 10  # candidates of a probe


class Sizes(NamedTuple):
    """What a config does not say.

    Attributes:
      classes: of the margin head.
      faces: those that pairs are of, of the gallery, or that the SSR module is trained on.
      batch_size: images embedded at once, on all devices.
    """

    classes: Callable[[], int]
    faces: int
    batch_size: int


class Part(NamedTuple):
    """One function of a program.

    Attributes:
      function: jitted.
      arguments: their shapes and shardings; static ones by value.
      every: steps from one run to the next; a share where a step runs it several times.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    every: float = 1.0


class DeviceProgram(NamedTuple):
    """What a step runs on the devices.

    Attributes:
      described: for the reader.
      rows: what a step does, of `unit`.
      steps: of a whole training; None where there is none.
      mesh: the devices that run it.
      facts: for the record.
    """

    described: str
    parts: Sequence[Part]
    rows: int
    unit: str
    steps: int | None
    mesh: Mesh
    facts: dict[str, Any]


def device_program(
    name: str, config: ConfigDict, devices: Sequence[jax.Device], sizes: Sizes
) -> DeviceProgram:
    """A config's program of a name in `PROGRAMS`, for these devices."""
    for entry in _NEEDS[name]:
        if entry not in config:
            raise UserError(f"the config has no '{entry}', which --program={name} is made from")
    if name == "train":
        check_training(config)
    elif name in ("gan", "pfe", "ssr"):
        check_config(config, (name,))
    return PROGRAMS[name](config, list(devices), sizes)


def _train(config: ConfigDict, devices: list[jax.Device], sizes: Sizes) -> DeviceProgram:
    classes, mesh = sizes.classes(), training_mesh(config.train.class_shards, devices=devices)
    program = make_program(config, num_classes=classes, mesh=mesh)
    given, rows = config.train.batch_size, program.batch[0].shape[0]
    # In epochs it depends on a training set that need not be here.
    steps = None if depends_on_images(config.train) else in_steps(config.train, 0).steps
    padded = "" if rows == given else f", padded to {rows:,}"
    return DeviceProgram(
        f"{config.model.network}, {classes:,} classes, batch {given:,}{padded}: "
        f"{rows // mesh.size:,} images a device",
        [Part("step", program.step, (program.state, *program.batch))],
        given, "images", steps, mesh,
        {"network": config.model.network, "classes": classes, "batch_size": given,
         "rows_per_device": rows // mesh.size},
    )  # fmt: skip


def _embed(config: ConfigDict, devices: list[jax.Device], sizes: Sizes) -> DeviceProgram:
    mesh = training_mesh(1, devices=devices)
    rows = -(-sizes.batch_size // mesh.size) * mesh.size
    model = _model(config)
    module = build_network(model.network, model.network_options)
    part = Part(
        "embed",
        embed_batch,
        (module, model.preprocessing, bool(config.flip), _on(mesh, model.variables),
         _images(rows, config, mesh)),
    )  # fmt: skip
    both = ", each with its mirror image" if config.flip else ""
    return DeviceProgram(
        f"{model.network}, {rows:,} images at once{both}: {rows // mesh.size:,} a device",
        [part], rows, "images", None, mesh,
        {"network": model.network, "batch_size": rows, "flip": bool(config.flip)},
    )  # fmt: skip


def _search(config: ConfigDict, devices: list[jax.Device], sizes: Sizes) -> DeviceProgram:
    mesh, width, count = search_mesh(devices), _width(config), config.anchors.size
    rows = DEVICE_QUERIES[-1] * mesh.size
    split = NamedSharding(mesh, PartitionSpec("data"))
    queries = jax.ShapeDtypeStruct((rows, width), np.float32, sharding=split)
    anchors = _whole(mesh, (count, width))
    part = Part(
        "search",
        compared(mesh, k=min(config.k, count), with_labels=False, precision=_precision(config)),
        ((queries,), (anchors,)),
    )
    return DeviceProgram(
        f"{rows:,} faces among {count:,} anchors, {width}-d, k = {config.k}, "
        f"cosines in {_precision(config)}",
        [part], rows, "faces", None, mesh,
        {"faces_at_once": rows, "anchors": count, "width": width, "k": config.k,
         "precision": _precision(config)},
    )  # fmt: skip


def _pairs(config: ConfigDict, devices: list[jax.Device], sizes: Sizes) -> DeviceProgram:
    mesh, width = training_mesh(1, devices=devices[:1]), _width(config)
    rows = DEVICE_GATHER_BLOCKS[-1]
    part = Part(
        "pairs",
        gathered_scores,
        (_whole(mesh, (sizes.faces, width)), {"ida_r": _dao(mesh, sizes.faces)},
         _whole(mesh, (rows, 2), np.int32)),
    )  # fmt: skip
    return DeviceProgram(
        f"{rows:,} pairs of {sizes.faces:,} faces, {width}-d, IDA-R, on one device",
        [part], rows, "pairs", None, mesh, {"faces": sizes.faces, "width": width},
    )  # fmt: skip


def _likelihood(config: ConfigDict, devices: list[jax.Device], sizes: Sizes) -> DeviceProgram:
    mesh, width = training_mesh(1, devices=devices[:1]), _width(config)
    rows, columns = DEVICE_TILE
    count, pairs = config.anchors.size, DEVICE_GATHER_BLOCKS[-1]
    face, anchor = _whole(mesh, (rows, width)), _whole(mesh, (count, width))
    everyone = _whole(mesh, (sizes.faces, width))
    parts = [
        Part(
            "search",
            nearest_likelihoods,
            (min(config.k, count), max(config.k, min(columns, count)),
             (anchor, anchor, _whole(mesh, (count,), np.int32)),
             face, face, _whole(mesh, (rows,), np.int32)),
        ),
        Part(
            "pairs",
            likelihood_of_pairs,
            (everyone, everyone, _whole(mesh, ()), _whole(mesh, (pairs, 2), np.int32)),
            pairs / rows,
        ),
    ]  # fmt: skip
    return DeviceProgram(
        f"{rows:,} faces by their likelihood among {count:,} anchors, and as many pairs of "
        f"{sizes.faces:,} faces, {width}-d, on one device",
        parts, rows, "faces", None, mesh,
        {"faces_at_once": rows, "pairs_at_once": pairs, "anchors": count, "width": width},
    )  # fmt: skip


def _identify(config: ConfigDict, devices: list[jax.Device], sizes: Sizes) -> DeviceProgram:
    mesh, width, rows = training_mesh(1, devices=devices), _width(config), DEVICE_PROBE_BLOCKS[-1]
    top, share = min(_TOP, sizes.faces), slab_share(sizes.faces, mesh.size)
    size, rule = share * mesh.size, RULES["dao"]
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def shared(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    best = BestFaces(*(shared((mesh.size, rows, top), t) for t in (np.float32, np.int32, np.int32)))
    slab = (shared((size, width)), shared((size, rule.values)), shared((size,), np.bool_))
    part = Part(
        "identify",
        best_with_slab,
        (mesh, max(top, DEVICE_GALLERY_BLOCK), _precision(config), best,
         _whole(mesh, (), np.int32), slab, _whole(mesh, (rows, width)), _dao(mesh, rows)),
        1 / -(-sizes.faces // size),
    )  # fmt: skip
    return DeviceProgram(
        f"{rows:,} probes in a gallery of {sizes.faces:,}, {width}-d, IDA-R, cosines in "
        f"{_precision(config)}",
        [part], rows, "probes", None, mesh,
        {"faces": sizes.faces, "width": width, "precision": _precision(config)},
    )  # fmt: skip


def _gan(config: ConfigDict, devices: list[jax.Device], sizes: Sizes) -> DeviceProgram:
    c, mesh = config.gan, training_mesh(1, devices=devices)
    check_gan_batch(c.batch_size, mesh.size)
    program = make_gan_program(c, seed=config.seed, mesh=mesh)
    images = _images(c.batch_size, config, mesh)
    parts = [
        Part("generator", program.generator, (program.state,)),
        Part("discriminator", program.discriminator, (program.state, images)),
        Part("r1", program.r1, (program.state, images), c.r1_every),
    ]
    if c.path_weight:
        parts.append(Part("path_length", program.path_length, (program.state,), c.path_every))
    return DeviceProgram(
        f"StyleGAN2 of {c.resolution} px, batch {c.batch_size:,}, a step with its share of the "
        "regularisations",
        parts, c.batch_size, "images", c.steps, mesh,
        {"resolution": c.resolution, "batch_size": c.batch_size},
    )  # fmt: skip


def _pfe(config: ConfigDict, devices: list[jax.Device], sizes: Sizes) -> DeviceProgram:
    c, mesh, model = config.pfe, training_mesh(1, devices=devices), _model(config)
    check_pfe_batch(c, mesh.size)
    rows = c.identities * c.images
    program = make_pfe_program(model, c, seed=config.seed, mesh=mesh)
    backbone, images = _on(mesh, model.variables), _images(rows, config, mesh)
    numbers = jax.ShapeDtypeStruct((rows,), np.int32, sharding=batch_sharding(mesh))
    frozen = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)),
        jax.eval_shape(program.freeze, backbone, images),
    )
    state = _on(mesh, jax.eval_shape(program.init))
    return DeviceProgram(
        f"the uncertainty module behind {model.network}, batch {rows:,}",
        [
            Part("backbone", program.freeze, (backbone, images)),
            Part("step", program.step, (state, *frozen, numbers, numbers)),
        ],
        rows, "images", c.steps, mesh, {"network": model.network, "batch_size": rows},
    )  # fmt: skip


def _ssr(config: ConfigDict, devices: list[jax.Device], sizes: Sizes) -> DeviceProgram:
    c, mesh, width = config.ssr, training_mesh(1, devices=devices[:1]), _width(config)
    n, count = sizes.faces, config.anchors.size
    faces, labels = _whole(mesh, (n, width)), _whole(mesh, (n,), np.int32)
    on_the_fly = c.targets == "on_the_fly"
    if on_the_fly:
        draw = searched_rows(c, k=config.k, tau=config.tau, mean=0.0, std=1.0)
        data = (faces, labels, _whole(mesh, (count, width)), _whole(mesh, (count,), np.int32))
    else:
        draw, data = rows_of(c.batch_size, n), (faces, _whole(mesh, (n,)))
    centre = np.zeros(width, np.float32) if c.input == "centred" else None
    program = make_ssr_program(
        draw, c, width=width, centre=centre, scale=np.float32(1), seed=config.seed
    )
    state = _on(mesh, jax.eval_shape(program.init))
    targets = f"searched among {count:,} anchors in each step" if on_the_fly else "searched before"
    return DeviceProgram(
        f"the SSR module, {n:,} faces, {width}-d, batch {c.batch_size:,}, targets {targets}, on "
        "one device",
        # One call is many steps.
        [Part("steps", program.run, (state, data, STEPS_A_CALL), STEPS_A_CALL)],
        c.batch_size, "faces", c.steps, mesh,
        {"faces": n, "width": width, "batch_size": c.batch_size, "targets": c.targets},
    )  # fmt: skip


PROGRAMS = {
    "train": _train, "embed": _embed, "search": _search, "pairs": _pairs, "identify": _identify,
    "likelihood": _likelihood,
    "gan": _gan, "pfe": _pfe, "ssr": _ssr,
}  # fmt: skip
# The config's entries that each is made from.
_NEEDS = {
    "train": ("train", "model"), "embed": ("model", "flip"),
    "search": ("model", "anchors", "k", "searcher"),
    "pairs": ("model",), "identify": ("model", "searcher"),
    "likelihood": ("model", "anchors", "k"), "gan": ("gan", "model"), "pfe": ("pfe", "model"),
    "ssr": ("ssr", "model", "anchors", "k", "tau"),
}  # fmt: skip


def _precision(config: ConfigDict) -> str:
    return config.searcher if config.searcher in PRECISIONS else PRECISIONS[0]


def _width(config: ConfigDict) -> int:
    return build_network(config.model.network, config.model.options.to_dict()).embedding_dim


def _model(config: ConfigDict) -> FaceModel:
    """The config's face model with shapes in place of weights."""
    c = config.model
    options = c.options.to_dict()
    image = jax.ShapeDtypeStruct((1, c.image_size, c.image_size, 3), np.float32)
    module = build_network(c.network, options)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    preprocessing = Preprocessing(c.image_size, tuple(c.mean), tuple(c.std))
    return FaceModel(c.network, options, preprocessing, variables)


def _images(rows: int, config: ConfigDict, mesh: Mesh) -> jax.ShapeDtypeStruct:
    side = config.model.image_size
    return jax.ShapeDtypeStruct((rows, side, side, 3), np.uint8, sharding=batch_sharding(mesh))


def _whole(mesh: Mesh, shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def _on(mesh: Mesh, shapes: Any) -> Any:
    """The shapes, a copy on every device of the mesh."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes
    )


def _dao(mesh: Mesh, faces: int) -> FaceTerms:
    rule = RULES["dao"]
    return FaceTerms("dao", _whole(mesh, (faces, rule.values)), _whole(mesh, (rule.constants,)))
