"""The commands that write, each with small inputs and the flags of one run."""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
import reference

from ida_jax.artefacts.face_model import FaceModel, Preprocessing, build_network

_SIZE = 32


class Case(NamedTuple):
    """A command that writes.

    Attributes:
      module: run as `python -m`.
      flags: with paths from the folder that holds the inputs, and the folder out/.
      volatile: entries of JSON files that differ from run to run.
    """

    module: str
    flags: tuple[str, ...]
    volatile: tuple[str, ...] = ()


CASES = {
    "rescore": Case(
        "ida_jax.rescore",
        ("--embeddings=faces.npy", "--pairs=pairs.csv", "--anchors=anchors.npy",
         "--output=out/scores.npy", "--chunk=20"),
    ),
    "rescore_parquet": Case(
        "ida_jax.rescore",
        ("--embeddings=faces.npy", "--pairs=pairs.npy", "--anchors=anchors.npy",
         "--output=out/scores.parquet"),
    ),
    "embed": Case(
        "ida_jax.embed",
        ("--model=model.safetensors", "--images=crops", "--output=out/E.npy", "--batch_size=4"),
    ),
    "anchors_build": Case(
        "ida_jax.anchors",
        ("build", "--embeddings=anchors.npy", "--output=out/anchors.safetensors"),
    ),
    "prepare": Case(
        "ida_jax.prepare",
        ("folder", "--source=crops", "--name=faces", "--data_dir=out"),
    ),
    "export": Case(
        "ida_jax.export",
        ("--model=model.safetensors", "--format=onnx", "--output=out/model.onnx"),
    ),
    "evaluate": Case(
        "ida_jax.evaluate",
        ("--scores=scores.npy", "--labels=same.npy", "--json=out/figures.json",
         "--fit=logistic", "--calibration=out/calibration.safetensors"),
        ("seconds", "date", "time"),
    ),
    "fit_csn": Case(
        "ida_jax.fit",
        ("csn", "--embeddings=faces.npy", "--labels=people.txt", "--anchors=anchors.npy",
         "--output=out/csn.safetensors", "--top_n=20"),
    ),
    "fit_dao": Case(
        "ida_jax.fit",
        ("dao", "--embeddings=faces.npy", "--labels=people.txt", "--anchors=anchors.npy",
         "--output=out/dao.safetensors", "--far=0.05"),
    ),
}  # fmt: skip


def make_inputs(folder: Path) -> None:
    """The files that CASES name."""
    rng = np.random.default_rng(0)
    people = np.arange(90) // 3
    centres = reference.unit((30, 16), 1, clusters=5)
    faces = centres[people] + 0.15 * rng.normal(size=(90, 16)).astype(np.float32)
    np.save(folder / "faces.npy", faces.astype(np.float32))
    np.save(folder / "anchors.npy", reference.unit((60, 16), 0, clusters=5))
    pairs = rng.integers(90, size=(101, 2))
    np.save(folder / "pairs.npy", pairs)
    np.savetxt(folder / "pairs.csv", pairs, fmt="%d", delimiter=",")
    (folder / "people.txt").write_text("".join(f"person {p}\n" for p in people))
    same = rng.random(400) < 0.5
    np.save(folder / "same.npy", same.astype(np.int64))
    np.save(folder / "scores.npy", (rng.normal(size=400) + 2 * same).astype(np.float32))
    network = build_network("iresnet_nano", {"embedding_dim": 8})
    image = np.zeros((1, _SIZE, _SIZE, 3), np.float32)
    variables = jax.jit(lambda key: network.init(key, image, train=False))(jax.random.key(0))
    model = FaceModel("iresnet_nano", {"embedding_dim": 8}, Preprocessing(_SIZE), dict(variables))
    model.save(folder / "model.safetensors")
    for i in range(11):
        path = folder / "crops" / f"p{i % 3}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (_SIZE, _SIZE, 3), np.uint8))
    (folder / "out").mkdir()


def contents(folder: Path, volatile: tuple[str, ...]) -> dict[str, object]:
    """Each file below the folder, hidden or not: its bytes, or of JSON what is not volatile."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in volatile}
        return [plain(v) for v in value] if isinstance(value, list) else value

    out = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if volatile and path.suffix == ".json":
                content = plain(json.loads(content))
            out[str(path.relative_to(folder))] = content
    return out
