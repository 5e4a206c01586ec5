"""Does fine-tuning the given MobileFaceNet on faces like the tested ones help?

Command: PYTHONPATH=. python experiments/finetune_lfw.py --data_dir=DATA \
    --workdir=runs/finetune_lfw --output=experiments/results/finetune_lfw.json

1. LFW's anchor half is split by person: with ArcFace, each of --batch_norms and each of --rates the
   network is trained on --fit of them, and measured after each of --epochs on all pairs of the
   others. Each BatchNorm has its best rate and length; each of --heads is trained with the best
   BatchNorm's, ArcFace with the others', too. Nothing of the eval half was looked at.
2. What moving statistics alone do: on the same pairs, the given weights with the statistics of the
   training whose BatchNorm is global, and its weights with the given statistics.
3. Anchors and SSR module of the whole anchor half, as in configs/lfw_pretrained.py.
4. All pairs of the eval half by cosine, IDA-R and IDA-L (Table 1's figures), and those of LFW's own
   6,000 pairs whose two images are among them (Table 2's); the given weights' beside them, on the
   same resamples of its people.

Everything is made once, in WORKDIR: a stopped script goes on. A step of 64 images takes 6 CPU
seconds. N faces, D embedding.
"""

import argparse
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from lfw_faces import lfw_embeddings, lfw_faces
from ml_collections import ConfigDict
from paper import HEADS
from paper_runs import METHODS, eval_embeddings, load_config, scorers

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.sources import real_db_rows
from ida_jax.artefacts.face_model import FaceModel
from ida_jax.common.files import json_text, written_whole
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.data.labelled_pairs import PairList, read_lfw_pairs
from ida_jax.data.lfw_crops import load_lfw, read_split
from ida_jax.metrics.roc import SplitScores, tar_at_far
from ida_jax.protocols.verification import evaluate_all_pairs, evaluate_kfold
from ida_jax.rescoring.methods import make_scorers
from ida_jax.rescoring.pairs import pair_scores, score_all_pairs
from ida_jax.runs import stages
from ida_jax.runs.run import Run
from ida_jax.runs.workdir import MODEL
from ida_jax.training.recognition import train

# The measure that chooses, and the most images of a person in it.
FAR, IMAGES = 1e-4, 3
FARS = (1e-3, 1e-4, 1e-5)
# At s = 32, as a short training takes them (paper_runs).
MARGINS = {"l2_softmax": 0.0, "cosface": 0.2, "arcface": 0.3}
BATCH_NORMS = ("global", "frozen")
GIVEN = {"rate": 0.0, "epochs": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    add = parser.add_argument
    add("--fit", type=float, default=0.8, help="share of the people to train on (0.8)")
    add(
        "--batch_norms", nargs="+", choices=BATCH_NORMS, default=BATCH_NORMS,
        help="global: the statistics of the batches; frozen: the given weights' (both)",
    )  # fmt: skip
    add("--rates", type=float, nargs="+", default=(0.001, 0.003, 0.01), help="learning rates")
    add("--epochs", type=int, nargs="+", default=(1, 2, 5), help="lengths, ascending")
    add("--heads", nargs="+", choices=MARGINS, default=tuple(MARGINS), help="trained at the best")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    # The step is compiled once, and not by each rate and each length again.
    jax.config.update("jax_compilation_cache_dir", str(options.workdir / "compiled"))

    data = _split_again(options)
    start = _given(options, data)
    candidates = _candidates(options, data, start)
    best = {
        batch_norm: max(
            (each for each in candidates[1:] if each["batch_norm"] == batch_norm), key=_tar
        )
        for batch_norm in options.batch_norms
    }
    chosen = max(best.values(), key=_tar)
    settings = _config(data, "arcface", chosen).train.to_dict()
    del settings["margin"], settings["head"]
    record: dict[str, Any] = {
        "choice": {
            "measure": f"TAR at FAR {FAR:g} of the cosine, all pairs of the anchor half's people "
            f"that were not trained on, at most {IMAGES} images each",
            "people": Counter(read_split(data / "lfw" / "split.csv").values()),
            "candidates": candidates,
            "best": best,
            "exchanged_statistics": _exchanged(options, data, best, start),
        },
        "train": settings,
        "margins": {head: MARGINS[head] for head in options.heads},
        "tuned": {batch_norm: {} for batch_norm in best},
    }
    for batch_norm, each in best.items():
        for head in options.heads if each is chosen else ("arcface",):
            folder = _tuned(options, data, head, each, start)
            record["tuned"][batch_norm][HEADS[head]] = _evaluated(options, folder, head)
    record["provenance"] = provenance()
    with written_whole(options.output) as temporary:
        temporary.write_text(json_text(record), encoding="utf-8")


def _config(data_dir: Path, head: str, settings: dict[str, Any]) -> ConfigDict:
    """configs/lfw_pretrained.py's run, with a training before its anchors."""
    c = load_config("lfw_pretrained")
    c.data_dir = str(data_dir)
    c.train.head, c.train.margin, c.train.scale = head, MARGINS[head], 32.0
    c.train.batch_size, c.train.clip_norm = 64, 5.0
    c.train.batch_norm = settings.get("batch_norm", "global")
    c.train.learning_rate, c.train.epochs = settings["rate"], float(settings["epochs"])
    c.train.decay_steps = ()
    c.train.checkpoint_every, c.train.log_every = 20, 10
    return c


def _given(options: Any, data: Path) -> FaceModel:
    config, folder = _config(data, "arcface", GIVEN), options.workdir / "given"
    config.stages = ("import",)
    stages.run(config, folder)
    return FaceModel.load(folder / MODEL)


def _tuned(options: Any, data: Path, head: str, settings: dict[str, Any], start: FaceModel) -> Path:
    """The folder of the given model after a training on the people of role fit.

    A longer training of the same rate goes on from a shorter one.
    """
    config = _config(data, head, settings)
    config.train_data.role = "fit"
    name = f"{head}-{settings['batch_norm']}-rate-{settings['rate']}"
    run = Run(config, options.workdir / name)
    folder = run.workdir / f"epochs-{settings['epochs']}"
    if not (folder / MODEL).is_file():
        model = train(run.train_faces, config, workdir=run.workdir, start=start)
        folder.mkdir(exist_ok=True)
        model.save(folder / MODEL)
    return folder


def _candidates(options: Any, data: Path, start: FaceModel) -> list[dict[str, Any]]:
    """Each setting with its TAR on the people that choose; the given weights first."""

    def model(settings: dict[str, Any]) -> FaceModel:
        return FaceModel.load(_tuned(options, data, "arcface", settings, start) / MODEL)

    settings = [
        {"batch_norm": b, "rate": r, "epochs": e}
        for b in options.batch_norms
        for r in options.rates
        for e in options.epochs
    ]
    return [
        _measured(options, data, GIVEN, lambda: start),
        *(_measured(options, data, each, partial(model, each)) for each in settings),
    ]


def _exchanged(
    options: Any, data: Path, best: dict[str, dict[str, Any]], start: FaceModel
) -> list[dict[str, Any]]:
    """Given weights with moved statistics, and the reverse: each with its TAR, as a candidate."""
    if "global" not in best:
        return []
    folder = _tuned(options, data, "arcface", best["global"], start)
    models = {"given": start, "tuned": FaceModel.load(folder / MODEL)}

    def mixed(weights: str, statistics: str) -> FaceModel:
        parts = {
            "params": models[weights].variables["params"],
            "batch_stats": models[statistics].variables["batch_stats"],
        }
        return dataclasses.replace(start, variables=parts)

    return [
        _measured(
            options, data, {"weights": weights, "statistics": statistics},
            partial(mixed, weights, statistics),
        )
        for weights, statistics in (("given", "tuned"), ("tuned", "given"))
    ]  # fmt: skip


def _measured(
    options: Any, data: Path, settings: dict[str, Any], model: Callable[[], FaceModel]
) -> dict[str, Any]:
    """The settings with the model's TAR on the people that choose, kept in a file."""
    name = "-".join(f"{key}-{value}" for key, value in settings.items())
    if not (path := options.workdir / f"{name}.json").is_file():
        faces = load_lfw(data / "lfw", role="choose", images_per_identity=IMAGES)
        embeddings = model().embed(faces.images, progress="embed those who choose")
        (point,) = tar_at_far(*score_all_pairs(embeddings, faces.labels), (FAR,))
        path.write_text(json.dumps({**settings, "tar": point.tar}), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def _tar(candidate: dict[str, Any]) -> float:
    return candidate["tar"]


def _split_again(options: Any) -> Path:
    """A data folder whose split gives the anchor half's people the roles fit and choose."""
    folder, given = options.workdir / "data", options.data_dir.resolve()
    (folder / "lfw").mkdir(parents=True, exist_ok=True)
    for link, target in (("lfw/lfw_112.tar", "lfw/lfw_112.tar"), ("weights", "weights")):
        if not (folder / link).exists():
            (folder / link).symlink_to(given / target)
    lines = ["identity,role"]
    for person, role in sorted(read_split(given / "lfw" / "split.csv").items()):
        if role == "anchor":
            share = int(hashlib.sha256(person.encode()).hexdigest()[:8], 16) / 2**32
            lines.append(f"{person},{'fit' if share < options.fit else 'choose'}")
    (folder / "lfw" / "split.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _evaluated(options: Any, folder: Path, head: str) -> dict[str, Any]:
    """The figures on the eval half: the tuned model's, and both models' with gains on the given."""
    config = _config(options.data_dir, head, GIVEN)
    config.stages = ("import", "anchors", "ssr")  # the first is finished: the tuned model is there
    stages.run(config, folder)
    run = Run(config, folder)
    faces, labels = eval_embeddings(run), run.eval_faces.labels
    terms = {name: scorer.terms(faces) for name, scorer in scorers(run).items()}
    own = evaluate_all_pairs(faces, labels, terms, fars=FARS)
    scored: dict[str, SplitScores] = {
        f"tuned_{name}": score_all_pairs(faces, labels, of) for name, of in terms.items()
    }
    given = _given_faces(options, run.eval_faces.names)
    given_terms = _given_terms(options, run, given)
    both = evaluate_all_pairs(given, labels, given_terms, fars=FARS, scored=scored)
    listed = _own_pairs(options, run.eval_faces.names)
    tuned = pair_scores(faces, listed.pairs, terms)
    own_list = evaluate_kfold(faces, listed, terms, labels=labels)
    both_lists = evaluate_kfold(
        given, listed, given_terms, labels=labels,
        scored={f"tuned_{name}": scores for name, scores in tuned.items()},
    )  # fmt: skip
    return {
        "tuned": own.evaluated.figures,
        "with_the_given": both.evaluated.figures,
        "own_pairs": {
            "pairs": len(listed.pairs),
            "genuine": int(np.sum(listed.same)),
            "tuned": own_list.figures,
            "with_the_given": both_lists.figures,
        },
        "moved": float(np.mean(1 - np.sum(given * faces, axis=1))),
    }


def _own_pairs(options: Any, names: Sequence[str]) -> PairList:
    """LFW's own pairs whose two images are both named; nobody of them was trained on."""
    root = options.data_dir / "lfw"
    everybody = lfw_faces(root).names
    listed = read_lfw_pairs(root / "pairs.txt", everybody)
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.int32([row_of.get(name, -1) for name in everybody])[listed.pairs]
    kept = np.all(rows >= 0, axis=1)
    return PairList(rows[kept], listed.same[kept], listed.fold[kept])


def _given_faces(options: Any, names: Sequence[str]) -> np.ndarray:
    """float32 [N, D], the given weights' unit embeddings of the named images."""
    root = options.data_dir / "lfw"
    rows = {name: row for row, name in enumerate(lfw_faces(root).names)}
    return unit_embeddings(lfw_embeddings(root)[[rows[name] for name in names]])


def _given_terms(options: Any, run: Run, faces: np.ndarray) -> dict[str, Any]:
    """The given weights' cosine and IDA-R, with the anchors of the same images."""
    training = run.train_faces
    rows = real_db_rows(training.labels, size=run.config.anchors.size, seed=run.config.seed)
    names = [training.names[row] for row in rows]
    anchors = AnchorSet.from_embeddings(
        _given_faces(options, names), labels=training.labels[rows], k=run.config.k,
        tau=run.config.tau,
    )  # fmt: skip
    made = make_scorers(METHODS[:2], anchors, k=run.config.k, tau=run.config.tau)
    return {name: scorer.terms(faces) for name, scorer in made.items()}


if __name__ == "__main__":
    main()
