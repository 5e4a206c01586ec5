"""IDA-L with settings chosen on held-out people, beside fixed ones, for several models on LFW.

    PYTHONPATH=.:experiments python experiments/ssr_auto.py --data_dir=DATA --cache=CACHE \
        --output=experiments/results/ssr_auto.json

Models: the given MobileFaceNet; the same with every weight w replaced by w · (1 + 0.3 ε), ε normal;
its embeddings of images shrunk to 24 pixels and enlarged again; its embeddings projected at random
to 32 dimensions; with noise of length 0.7; and people who are directions drawn at random, whose
density means nothing.

"chosen": the SSR module of `ssr.choose=held_out`; "fixed": the settings of
configs/lfw_pretrained.py, whose 30,000 steps are shortened to a tenth. Anchors
are the first image of each person of one half, the module is trained on that half's faces, and all
figures are of the other half's (at most 10 images per person): nothing is chosen or fitted there.
The halves are then exchanged. Bias is of log F, in standard deviations of the searched one. R² is
of log F. Intervals are over people and paired with the cosine.

Embeddings, and every case that is done, are kept in CACHE.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from lfw_faces import lfw_embeddings, lfw_faces
from paper_runs import load_config
from pfe_quality import small

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import real_db_rows
from ida_jax.artefacts.face_model import FaceModel
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.files import json_text, written_whole
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.data.lfw_crops import load_lfw
from ida_jax.interop.weights import import_model
from ida_jax.protocols.verification import evaluate_all_pairs
from ida_jax.rescoring.density import searched_log_density
from ida_jax.rescoring.terms import cosine_terms, dao_terms
from ida_jax.runs.config import ssr_section
from ida_jax.training.ssr import train_ssr, with_copies
from ida_jax.training.ssr_choice import train_chosen_ssr

FARS = (1e-3, 1e-4, 1e-5)
K, TAU, IMAGES, RESAMPLES = 10, 1.0, 10, 400
FIXED_STEPS = 3_000


def _given(data_dir: Path, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return lfw_embeddings(data_dir / "lfw").astype(np.float32)


def _perturbed(data_dir: Path, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    def change(weight: np.ndarray) -> np.ndarray:
        weight = np.asarray(weight)
        if weight.ndim < 2:  # biases and BatchNorm stay
            return weight
        return (weight * (1 + 0.3 * rng.standard_normal(weight.shape))).astype(weight.dtype)

    model = _model(data_dir)
    variables = {**model.variables, "params": jax.tree.map(change, model.variables["params"])}
    images = load_lfw(data_dir / "lfw").images
    return replace(model, variables=variables).raw_embeddings(images, progress="perturbed")


def _shrunk(data_dir: Path, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    images = load_lfw(data_dir / "lfw").images
    shrunk = np.stack([small(images[row], 24) for row in range(len(images))])
    return _model(data_dir).raw_embeddings(shrunk, progress="24 pixels")


def _projected(data_dir: Path, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows = _given(data_dir, labels, rng)
    return rows @ rng.standard_normal((rows.shape[1], 32)).astype(np.float32)


def _noisy(data_dir: Path, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows = unit_embeddings(_given(data_dir, labels, rng))
    return rows + (0.7 / rows.shape[1] ** 0.5 * rng.standard_normal(rows.shape)).astype(np.float32)


def _random(data_dir: Path, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    people = rng.standard_normal((labels.max() + 1, 128))
    return (people[labels] + 0.6 * rng.standard_normal((len(labels), 128))).astype(np.float32)


MODELS: dict[str, Callable[[Path, np.ndarray, np.random.Generator], np.ndarray]] = {
    "given": _given,
    "24 pixels": _shrunk,
    "random directions": _random,
    "32 dimensions": _projected,
    "weights perturbed": _perturbed,
    "noisy": _noisy,
}


def _model(data_dir: Path) -> FaceModel:
    return import_model(data_dir / "weights" / "mobilefacenet.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    halves = ("eval", "anchor")
    parser.add_argument("--halves", nargs="*", default=halves, choices=halves, help="of figures")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    lfw = lfw_faces(options.data_dir / "lfw")
    labels = lfw.labels
    models: dict[str, Any] = {}
    for model in options.models:
        models[model] = {}
        rows = unit_embeddings(_embeddings(model, options.data_dir, labels, options.cache))
        for half in options.halves:
            tested, trained = lfw.rows(half, images=IMAGES), lfw.half != half
            path = options.cache / f"{model}, {half}.json"
            if not path.is_file():
                case = _case(
                    rows[trained], labels[trained], rows[tested], labels[tested],
                    kept=options.cache / f"{model}, {half}",
                )  # fmt: skip
                path.write_text(json_text(case | {"commit": provenance()["commit"]}))
            models[model][f"figures on the {half} half"] = json.loads(path.read_text())
    text = json_text({"models": models, "provenance": provenance()})
    for path, name in ((options.cache, "CACHE"), (options.output, "OUTPUT")):
        text = text.replace(str(path), name)
    text = text.replace(str(options.data_dir), "DATA")
    with written_whole(options.output) as temporary:
        temporary.write_text(text)


def _embeddings(model: str, data_dir: Path, labels: np.ndarray, cache: Path) -> np.ndarray:
    path = cache / f"{model}.npy"
    if not path.is_file():
        np.save(path, MODELS[model](data_dir, labels, np.random.default_rng(0)))
    return np.load(path)


def _case(
    faces: np.ndarray, own: np.ndarray, tested: np.ndarray, people: np.ndarray, *, kept: Path
) -> dict:
    rows = real_db_rows(own, size=50_000, seed=0)
    anchors = AnchorSet.from_embeddings(faces[rows], labels=own[rows], k=K, tau=TAU)
    searched = searched_log_density(tested, anchors)
    modules = {}
    for name, train in (("chosen", _chosen), ("fixed", _fixed)):
        path = kept.with_name(f"{kept.name}, {name}.safetensors")
        if not path.is_file():
            start = time.process_time()
            train(faces, own, anchors).save(path)
            path.with_suffix(".seconds").write_text(f"{time.process_time() - start:.1f}")
        modules[name] = SSRModule.load(path)
    chosen = modules["chosen"]
    log_f = {name: module.log_density(tested) for name, module in modules.items()}
    terms = {"cosine": cosine_terms(len(tested)), "ida_r": dao_terms(searched, tau=TAU)}
    terms |= {f"ida_l, {name}": dao_terms(values, tau=TAU) for name, values in log_f.items()}
    log_f["chosen, uncalibrated"] = replace(chosen, slope=1.0, intercept=0.0).log_density(tested)
    evaluation = evaluate_all_pairs(
        tested, people, terms, fars=FARS, resamples=RESAMPLES, seed=0
    ).evaluated
    shown = ("tar@far", "tar_gain@far", "tar_gain_interval@far")
    return {
        "training faces": len(faces),
        "anchors": len(anchors),
        "faces": len(tested),
        "processor seconds to choose and train": float(
            kept.with_name(f"{kept.name}, chosen.seconds").read_text()
        ),
        "chosen": chosen.judgement(),
        "log F on the tested half": {
            name: _quality(values, searched) for name, values in log_f.items()
        },
        "methods": {
            name: {key: of[key] for key in shown if key in of}
            for name, of in evaluation.figures.items()
        },
    }


def _chosen(faces: np.ndarray, own: np.ndarray, anchors: AnchorSet) -> SSRModule:
    with tempfile.TemporaryDirectory() as folder:
        return train_chosen_ssr(
            faces, own, own, anchors, ssr_section(), k=K, tau=TAU, workdir=folder, seed=0
        )


def _fixed(faces: np.ndarray, own: np.ndarray, anchors: AnchorSet) -> SSRModule:
    config = load_config("lfw_pretrained").ssr
    shorter = FIXED_STEPS / config.steps
    config.decay_steps = tuple(int(step * shorter) for step in config.decay_steps)
    config.steps = FIXED_STEPS
    copies = {key: config[key] for key in ("copies", "mix", "noise")}
    made = with_copies(faces, own, seed=0, **copies)
    targets = searched_log_density(made.embeddings, anchors, labels=made.labels)
    with tempfile.TemporaryDirectory() as folder:
        return train_ssr(made.embeddings, targets, config, k=K, tau=TAU, workdir=folder, seed=0)


def _quality(regressed: np.ndarray, searched: np.ndarray) -> dict[str, float]:
    x, y = regressed.astype(np.float64), searched.astype(np.float64)
    r2 = 1 - np.mean((x - y) ** 2) / y.var()
    constant = np.ptp(x) < 1e-6 * np.ptp(y)
    return {
        "r2": float(r2),
        "squared correlation": 0.0 if constant else float(np.corrcoef(x, y)[0, 1] ** 2),
        "bias": float(np.mean(x - y) / y.std()),
    }


if __name__ == "__main__":
    main()
