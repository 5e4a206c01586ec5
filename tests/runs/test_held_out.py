"""Verification sets that a training looks at, straight from .bin files."""

import pickle

import cv2
import numpy as np
import pytest

from ida_jax.common.errors import UserError
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.runs.config import as_smoke, run_section
from ida_jax.runs.run import Run
from ida_jax.runs.stages import _check, figures_of_sets

SAME = {"lfw": [1, 0, 1, 0, 1, 0, 1], "agedb_30": [0, 1, 1, 0, 1, 0]}


class _Colours:
    """In place of a face model: an image's mean colour."""

    def embed(self, images, *, flip):
        faces = np.array([image.mean((0, 1)) for image in images], np.float32)
        return faces / np.linalg.norm(faces, axis=1, keepdims=True)


def _write(folder, name, same, *, size=32):
    rng = np.random.default_rng(len(same))
    colours = rng.integers(0, 256, (2 * len(same), 3))
    images = [np.full((size, size, 3), colour, np.uint8) for colour in colours]
    encoded = [cv2.imencode(".png", image)[1].tobytes() for image in images]
    (folder / f"{name}.bin").write_bytes(pickle.dumps((encoded, list(map(bool, same)))))
    return colours[:, ::-1] / np.linalg.norm(colours, axis=1, keepdims=True)  # OpenCV has BGR


def _run(folder, files):
    config = run_section("test")
    config.train.verify_every = 1
    config = as_smoke(config)
    config.data_dir, config.verify_data, config.stages = str(folder), files, ("train",)
    config.model.network = "iresnet_nano"
    return Run(config, folder / "run")


def test_every_set_is_read_and_their_mean_decides(tmp_path):
    expected = {}
    for name, same in SAME.items():
        units = _write(tmp_path, name, same)
        cosines = np.sum(units[0::2] * units[1::2], axis=1)
        # Five contiguous folds; the first have a pair more.
        folds = np.concatenate([[n] * len(p) for n, p in enumerate(np.array_split(same, 5))])
        expected[f"{name}_accuracy"] = kfold_accuracy(
            cosines, np.array(same, bool), folds=folds
        ).mean
    run = _run(tmp_path, ("lfw.bin", "agedb_30.bin"))
    _check(run, ["train"])
    found = figures_of_sets(_Colours(), run.verifications, flip=False, rule="exact")
    assert found == pytest.approx({**expected, "accuracy": np.mean(list(expected.values()))})
    alone = _run(tmp_path, ("lfw.bin",)).verifications
    assert figures_of_sets(_Colours(), alone, flip=False, rule="exact") == pytest.approx(
        {"accuracy": expected["lfw_accuracy"]}
    )


def test_a_set_of_another_size_is_one_line_before_the_training(tmp_path):
    _write(tmp_path, "lfw", SAME["lfw"])
    _write(tmp_path, "cfp_fp", SAME["lfw"], size=31)
    with pytest.raises(
        UserError, match=r"verify_data \(cfp_fp\) is uint8 \[31, 31, 3\]: the model"
    ):
        _check(_run(tmp_path, ("lfw.bin", "cfp_fp.bin")), ["train"])
