"""The commands that write, each with small inputs and the flags of one run."""

from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
import reference
from face_sources import write_recordio

from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network
from ida_jax.rescoring.rescorer import Rescorer

_SIZE = 32


class Case(NamedTuple):
    """A command that writes.

    Attributes:
      module: run as `python -m`.
      flags: with paths from the folder that holds the inputs, and the folder out/.
      passing: patterns of files below out/ that differ from run to run, or as the run was killed.
      earlier: flags of a run before, whose outputs are in out/ already.
      together: outputs below out/ of which no kill leaves an old one beside a new one.
      final: what is in out/ once the command is done, and has it write nothing when run again.
      quick: the files of tests that try it without --every-kill; the others take long.
    """

    module: str
    flags: tuple[str, ...]
    passing: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    final: str | None = None
    quick: tuple[str, ...] = ("test_kills", "test_two_at_once", "test_full_disk")


_EMBED = ("--model=model.safetensors", "--output=out/E.npy", "--batch_size=4")
_TRAINING = ("run/*checkpoints/*", "run/tensorboard/*", "run/metrics.jsonl")
_ENROL = ("--gallery=out/G", "--embeddings=faces.npy", "--anchors=anchors.npy")
_RESCORE = ("--embeddings=faces.npy", "--pairs=pairs.npy", "--anchors=anchors.npy")
_EXPORT = ("--model=model.safetensors", "--output=out/model.stablehlo")
CASES = {
    "rescore": Case(
        "ida_jax.rescore",
        (*_RESCORE, "--output=out/scores.npy", "--chunk=40"),
    ),
    "rescore_text": Case(
        "ida_jax.rescore",
        ("--embeddings=faces.npy", "--pairs=pairs.csv", "--names=names.txt",
         "--anchors=anchors.npy", "--output=out/scores.parquet"),
    ),
    "rescore_folder_over_another": Case(
        "ida_jax.rescore",
        (*_RESCORE, "--output=out/S"),
        earlier=(*_RESCORE, "--output=out/S", "--k=5"),
        quick=(),
    ),
    "enrol_in_place_of_others": Case(
        "ida_jax.enrol",
        (*_ENROL, "--templates=people.txt", "--replace", "--compact"),
        earlier=(*_ENROL, "--names=enrolled.txt", "--k=5"),
    ),
    "enrol_delete": Case(
        "ida_jax.enrol",
        ("--gallery=out/G", "--delete=some.txt", "--compact"),
        earlier=(*_ENROL, "--names=enrolled.txt"),
        quick=("test_kills",),
    ),
    "identify": Case(
        "ida_jax.identify",
        ("--gallery=gallery", "--probes=faces.npy", "--names=names.txt", "--anchors=anchors.npy",
         "--labels=people.txt", "--output=out/O.parquet", "--json=out/figures.json"),
    ),
    "embed_over_others": Case(
        "ida_jax.embed",
        (*_EMBED, "--images=crops"),
        earlier=(*_EMBED, "--images=fakes"),
        together=("E.npy", "E.names.txt", "E.fingerprint.json"),
    ),
    "anchors_build": Case(
        "ida_jax.anchors",
        ("build", "--embeddings=anchors.npy", "--output=out/anchors.safetensors"),
    ),
    "anchors_fake": Case(
        "ida_jax.anchors",
        ("fake", "--model=model.safetensors", "--images=fakes", "--count=5", "--k=2",
         "--training=crops", "--duplicate_cosine=1", "--privacy_cosine=1",
         "--output=out/A.safetensors"),
    ),
    "prepare": Case(
        "ida_jax.prepare",
        ("folder", "--from=crops", "--name=faces", "--data_dir=out"),
        final="faces",
    ),
    "prepare_without_corrupt": Case(
        "ida_jax.prepare",
        ("folder", "--from=torn", "--name=faces", "--data_dir=out", "--skip_corrupt"),
        final="faces",
    ),
    "prepare_lfw": Case(
        "ida_jax.prepare",
        ("lfw", "--from=lfw", "--pairs=lfw.txt", "--split=split.csv", "--data_dir=out"),
        together=("lfw/lfw_112.tar", "lfw/pairs.txt", "lfw/split.csv"),
        final="lfw",
    ),
    "prepare_bin": Case(
        "ida_jax.prepare",
        ("bin", "--images=crops", "--pairs=verify.csv", "--output=out/faces.bin"),
    ),
    "export_onnx": Case(
        "ida_jax.export", ("--model=model.safetensors", "--output=out/model.onnx")
    ),
    "export_stablehlo_over_another": Case(
        "ida_jax.export",
        _EXPORT,
        earlier=(*_EXPORT, "--input=float_nchw"),
        together=("model.stablehlo", "model.stablehlo.json"),
    ),
    "evaluate": Case(
        "ida_jax.evaluate",
        ("--scores=scores.npy", "--labels=same.npy", "--json=out/figures.json", "--resamples=20",
         "--fit=logistic", "--calibration=out/calibration.safetensors"),
    ),
    "evaluate_protocol": Case(
        "ida_jax.evaluate",
        ("--protocol=all_pairs", "--embeddings=faces.npy", "--names=names.txt",
         "--anchors=anchors.npy", "--methods=cosine,ida_r", "--fars=0.1", "--resamples=20",
         "--output=out/report"),
        final="report",
    ),
    "fit_csn": Case(
        "ida_jax.fit",
        ("csn", "--embeddings=faces.npy", "--labels=people.txt", "--anchors=anchors.npy",
         "--output=out/csn.safetensors", "--top_n=20"),
        quick=(),
    ),
    "fit_dao": Case(
        "ida_jax.fit",
        ("dao", "--embeddings=faces.npy", "--labels=people.txt", "--anchors=anchors.npy",
         "--output=out/dao.safetensors", "--far=0.05"),
    ),
    "train": Case(
        "ida_jax.main",
        ("--config=config.py", "--workdir=out/run"),
        passing=_TRAINING,
        final="run",
        quick=("test_kills",),
    ),
    "train_modules": Case(
        "ida_jax.main",
        ("--config=config.py:modules", "--workdir=out/run"),
        passing=_TRAINING,
        final="run",
        quick=(),
    ),
    "train_gan": Case(
        "ida_jax.main",
        ("--config=config.py:gan", "--workdir=out/run"),
        passing=(*_TRAINING, "run/samples/*", "run/generators/*"),
        final="run",
        quick=(),
    ),
    "ssr_from_embeddings": Case(
        "ida_jax.main",
        ("--config=from_embeddings.py", "--workdir=out/run"),
        passing=_TRAINING,
        final="run",
        quick=(),
    ),
}  # fmt: skip

# One block in place of a whole network.
_CONFIG = """
from functools import partial

from ml_collections import ConfigDict

from ida_jax.artefacts import face_model
from ida_jax.models.resnet import IResNet
from ida_jax.runs.config import run_section

face_model._NETWORKS["tiny"] = partial(IResNet, (1,), (8,))


def get_config(variant=""):
    c = run_section("test")
    c.stages = {
        "": ("train", "anchors", "evaluate"),
        "modules": ("train", "anchors", "ssr", "csn", "pfe", "evaluate"),
        "gan": ("train", "gan", "anchors", "evaluate"),
    }[variant]
    c.train_data, c.data_dir = ConfigDict({"name": "recordio", "dataset": "recordio"}), "."
    c.eval_data = c.train_data
    c.model.network, c.model.image_size = "tiny", 32
    c.model.options = ConfigDict({"embedding_dim": 16, "dropout_rate": 0.2})
    c.train.update(
        {"scale": 16.0, "margin": 0.2, "batch_size": 8, "steps": 6, "learning_rate": 0.005,
         "decay_steps": (4,), "checkpoint_every": 2, "log_every": 1}
    )
    c.k, c.evaluate.methods, c.evaluate.folds = 5, ("cosine", "ida_r"), 2
    c.evaluate.resamples, c.evaluate.sweeps, c.flip = 10, False, False
    if variant == "modules":
        c.evaluate.methods = ("cosine", "ida_r", "ida_l", "csn")
        c.ssr.update({"steps": 6, "decay_steps": (4,), "batch_size": 8, "hidden": 8})
        c.csn.top_n = 8
        c.pfe.update({"hidden": 16, "identities": 8, "images": 2, "steps": 6, "decay_steps": (4,)})
        c.pfe.update({"checkpoint_every": 2, "log_every": 1})
    if variant == "gan":
        c.gan.update({"resolution": 32, "latent_dim": 8, "style_dim": 8, "channel_base": 64})
        c.gan.update({"channel_max": 8, "dtype": "float32", "batch_size": 8, "steps": 6})
        c.gan.update({"log_every": 1, "evaluate_every": 3, "evaluate_faces": 8})
        c.gan.update({"checkpoint_every": 2, "path_every": 2, "r1_every": 3})
        c.anchors.source, c.anchors.size = "fake_db", 8
    return c
"""

_FROM_EMBEDDINGS = """
from ml_collections import ConfigDict

from ida_jax.runs.config import ssr_section


def get_config():
    c = ConfigDict()
    c.title, c.seed, c.stages = "test", 0, ("targets", "ssr", "evaluate")
    c.embeddings, c.anchors, c.labels = "faces.npy", "anchors.npy", "people.txt"
    c.disjoint, c.held_out, c.k, c.tau, c.searcher = True, 0.3, 5, 1.0, "auto"
    c.ssr = ssr_section()
    c.ssr.update({"steps": 6, "decay_steps": (4,), "batch_size": 8, "hidden": 8})
    c.evaluate = ConfigDict({"most_faces": 100, "fars": (0.1,), "resamples": 10})
    return c
"""


def make_inputs(folder: Path) -> None:
    """The files that CASES name."""
    rng = np.random.default_rng(0)
    people = np.arange(90) // 3
    centres = reference.unit((30, 16), 1, clusters=5)
    faces = centres[people] + 0.15 * rng.normal(size=(90, 16)).astype(np.float32)
    np.save(folder / "faces.npy", faces.astype(np.float32))
    np.save(folder / "anchors.npy", reference.unit((60, 16), 0, clusters=5))
    names = [f"p{person}/{row}.png" for row, person in enumerate(people)]
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in names))
    pairs = rng.integers(90, size=(101, 2))
    np.save(folder / "pairs.npy", pairs)
    listed = "".join(f"{names[first]},{names[second]}\n" for first, second in pairs)
    (folder / "pairs.csv").write_text(listed)
    (folder / "people.txt").write_text("".join(f"person {p}\n" for p in people))
    enrolled = [f"person {p}" if row % 3 == 0 else names[row] for row, p in enumerate(people)]
    (folder / "enrolled.txt").write_text("".join(f"{name}\n" for name in enrolled))
    (folder / "some.txt").write_text("".join(f"{name}\n" for name in enrolled[5:25]))
    scorer = Rescorer(np.load(folder / "anchors.npy"))
    scorer.gallery(faces[:60:3], names=enrolled[:60:3]).save(folder / "gallery")
    same = rng.random(400) < 0.5
    np.save(folder / "same.npy", same.astype(np.int64))
    np.save(folder / "scores.npy", (rng.normal(size=400) + 2 * same).astype(np.float32))
    _model(rng).save(folder / "model.safetensors")
    for kind, person in (("crops", "p{}"), ("torn", "p{}"), ("fakes", "")):
        for i in range(11):
            path = folder / kind / person.format(i % 3) / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (_SIZE, _SIZE, 3), np.uint8))
    for i, person in enumerate(("Al", "Al", "Cy", "Cy")):
        path = folder / "lfw" / f"{person}_{i % 2 + 1:04}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (112, 112, 3), np.uint8))
    (folder / "lfw.txt").write_text("1\t1\nAl\t1\t2\nAl\t1\tCy\t1\n")
    (folder / "split.csv").write_text("identity,role,images\nAl,anchor,2\nCy,eval,2\n")
    (folder / "verify.csv").write_text("p0/00.png,p0/03.png,1\np0/00.png,p1/01.png,0\n")
    torn = folder / "torn" / "p1" / "04.png"
    torn.write_bytes(torn.read_bytes()[:100])
    # Rendered faces would take each run of a training seconds of tracing.
    drawn = rng.integers(0, 256, (33, _SIZE, _SIZE, 3), np.uint8)
    images = [cv2.imencode(".jpg", image)[1].tobytes() for image in drawn]
    write_recordio(folder / "recordio", images, [row // 3 for row in range(33)])
    (folder / "config.py").write_text(_CONFIG)
    (folder / "from_embeddings.py").write_text(_FROM_EMBEDDINGS)
    (folder / "out").mkdir()


def _model(rng: np.random.Generator) -> FaceModel:
    """Drawn weights: a network's own would take seconds to compile."""

    def drawn(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else np.inf
        return ((scale == np.inf) + rng.normal(size=leaf.shape) / scale).astype(np.float32)

    options = {"embedding_dim": 8}
    init = partial(build_network("iresnet_nano", options).init, train=False)
    image = jax.ShapeDtypeStruct((1, _SIZE, _SIZE, 3), np.float32)
    variables = jax.tree.map(drawn, dict(jax.eval_shape(init, jax.random.key(0), image)))
    return FaceModel("iresnet_nano", options, Preprocessing(_SIZE), variables)


def contents(out: Path, case: Case) -> dict[str, bytes]:
    """Each file below out/, hidden or not, and its bytes; less what is passing."""
    names = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {
        name: names[name].read_bytes()
        for name in sorted(names)
        if not any(fnmatch(name, pattern) for pattern in case.passing)
    }


def unfinished(out: Path) -> list[Path]:
    """What a command should have removed: hidden and temporary files and folders below out/."""
    return [path for path in out.rglob("*") if path.name.startswith(".") or "tmp" in path.name]
