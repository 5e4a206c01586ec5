"""Does fine-tuning the given MobileFaceNet on LFW's anchor half help on its eval half?

Command: PYTHONPATH=. python experiments/finetune_lfw.py --data_dir=DATA \
    --workdir=runs/finetune_lfw --output=experiments/results/finetune_lfw.json

1. The anchor half is split by person: with each of --rates the network is trained on FIT of them,
   and measured after each of EPOCHS on all pairs of the others. The best rate and length are taken,
   with the given weights as a candidate too.
2. With these, the stages import, train, anchors and ssr of configs/lfw_pretrained.py on the whole
   anchor half, for each of --heads. Nothing of the eval half was looked at so far.
3. All pairs of the eval half by cosine, IDA-R and IDA-L, and the given weights' beside them, on the
   same resamples of its people.

Everything is made once, in WORKDIR: a stopped script goes on. N faces, D embedding.
"""

import argparse
import hashlib
import json
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
from ida_jax.data.lfw_crops import load_lfw, read_split
from ida_jax.metrics.roc import SplitScores, tar_at_far
from ida_jax.protocols.verification import evaluate_all_pairs
from ida_jax.rescoring.methods import make_scorers
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.runs import stages
from ida_jax.runs.run import Run
from ida_jax.training.recognition import train

RATES = (0.001, 0.003, 0.01)
EPOCHS = (1, 2)
# Of the anchor half's people, trained on while the others choose.
FIT = 0.4
# The measure that chooses, and the most images of a person in it.
FAR, IMAGES = 1e-4, 3
FARS = (1e-3, 1e-4, 1e-5)
# At s = 32, as a short training takes them (paper_runs).
MARGINS = {"l2_softmax": 0.0, "cosface": 0.2, "arcface": 0.3}
GIVEN = {"rate": 0.0, "epochs": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--heads", nargs="+", choices=MARGINS, default=("arcface",))
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    # The step is compiled once, and not by each rate and each length again.
    jax.config.update("jax_compilation_cache_dir", str(options.workdir / "compiled"))

    candidates = _candidates(options)
    tuned = max(candidates[1:], key=lambda each: each["tar"])
    record: dict[str, Any] = {
        "choice": {
            "measure": f"TAR at FAR {FAR:g} of the cosine, all pairs of the anchor half's people "
            f"that were not trained on, at most {IMAGES} images each",
            "fit": FIT,
            "candidates": candidates,
            "chosen": max(candidates, key=lambda each: each["tar"]),
            "chosen_of_the_tuned": tuned,
        },
        "train": _config(options, options.data_dir, "arcface", tuned).train.to_dict(),
        "margins": {head: MARGINS[head] for head in options.heads},
        "heads": {},
    }
    del record["train"]["margin"], record["train"]["head"]
    for head in options.heads:
        record["heads"][HEADS[head]] = _evaluated(options, head, tuned)
    record["provenance"] = provenance()
    with written_whole(options.output) as temporary:
        temporary.write_text(json_text(record), encoding="utf-8")


def _config(options: Any, data_dir: Path, head: str, settings: dict[str, Any]) -> ConfigDict:
    """configs/lfw_pretrained.py's run with a training between import and anchors."""
    c = load_config("lfw_pretrained")
    c.data_dir = str(data_dir)
    c.stages = ("import", "train", "anchors", "ssr")
    c.train.head, c.train.margin, c.train.scale = head, MARGINS[head], 32.0
    c.train.batch_size, c.train.clip_norm = 64, 5.0
    c.train.learning_rate, c.train.epochs = settings["rate"], float(settings["epochs"])
    c.train.decay_steps = ()
    c.train.checkpoint_every, c.train.log_every = 20, 10
    return c


def _candidates(options: Any) -> list[dict[str, Any]]:
    """Each rate and length with its TAR on the people that choose; the given weights first."""
    data = _split_again(options)
    faces = load_lfw(data / "lfw", role="choose", images_per_identity=IMAGES)
    given = _config(options, data, "arcface", GIVEN)
    folder = options.workdir / "choice"
    given.stages = ("import",)
    stages.run(given, folder / "given")
    start = FaceModel.load(folder / "given" / "model.safetensors")

    def measured(settings: dict[str, Any], model: Callable[[], FaceModel]) -> dict[str, Any]:
        path = folder / f"rate-{settings['rate']}-epochs-{settings['epochs']}.json"
        if not path.is_file():
            embeddings = model().embed(faces.images, progress="embed those who choose")
            (point,) = tar_at_far(*score_all_pairs(embeddings, faces.labels), (FAR,))
            path.write_text(json.dumps({**settings, "tar": point.tar}))
        return json.loads(path.read_text())

    candidates = [measured(GIVEN, lambda: start)]
    for rate in options.rates:
        for epochs in EPOCHS:
            settings = {"rate": rate, "epochs": epochs}
            c = _config(options, data, "arcface", settings)
            c.train_data.role = "fit"
            run = Run(c, folder / f"rate-{rate}")
            make = partial(train, run.train_faces, c, workdir=run.workdir, start=start)
            candidates.append(measured(settings, make))
    return candidates


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
            lines.append(f"{person},{'fit' if share < FIT else 'choose'}")
    (folder / "lfw" / "split.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _evaluated(options: Any, head: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The figures on the eval half: the tuned model's, and both models' with gains on the given."""
    config = _config(options, options.data_dir, head, settings)
    stages.run(config, options.workdir / head)
    run = Run(config, options.workdir / head)
    faces, labels = eval_embeddings(run), run.eval_faces.labels
    terms = {name: scorer.terms(faces) for name, scorer in scorers(run).items()}
    own = evaluate_all_pairs(faces, labels, terms, fars=FARS)
    scored: dict[str, SplitScores] = {
        f"tuned_{name}": score_all_pairs(faces, labels, of) for name, of in terms.items()
    }
    given = _given_faces(options, run.eval_faces.names)
    both = evaluate_all_pairs(
        given, labels, _given_terms(options, run, given), fars=FARS, scored=scored
    )
    return {
        "tuned": own.evaluated.figures,
        "with_the_given": both.evaluated.figures,
        "moved": float(np.mean(1 - np.sum(given * faces, axis=1))),
    }


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
