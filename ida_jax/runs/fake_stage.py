"""The stage `anchors` of a run whose anchors are a generator's faces."""

import shutil
import sys

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.candidates import generated_candidates
from ida_jax.anchors.fake import fake_anchors
from ida_jax.anchors.fake_rules import TrainingFaces
from ida_jax.anchors.moments import fewest_faces
from ida_jax.common.errors import UserError
from ida_jax.runs.run import Run

_PARTS = "fake.parts"


def check_fake_db(run: Run) -> None:
    """What the choice of fakes by the training people would end on, as a UserError."""
    c, people = run.config, run.train_faces.num_identities
    if not 1 <= c.k <= c.anchors.size:
        raise UserError(
            f"k is {c.k}, but anchors.size is {c.anchors.size}: lower k or raise the size"
        )
    if people <= c.k:
        raise UserError(
            f"the training set has {people} people, and fakes are judged by the {c.k} nearest of "
            "them (k): lower k or take more people"
        )
    width = c.model.options.embedding_dim
    if c.anchors.align and people < fewest_faces(width):
        raise UserError(
            f"anchors.align takes the covariance of {width} numbers from the training people, who "
            f"are {people}: expected {fewest_faces(width)} or more; set it to False"
        )


def fake_db(run: Run) -> AnchorSet:
    """The fake-db of the run's generator, and its report beside it."""
    from ida_jax.report.fake_report import write_fake_report

    c, folder = run.config, run.anchors_path.parent
    candidates = generated_candidates(run.generator, seed=c.seed, truncation=c.anchors.truncation)
    faces, learned = run.train_faces, run.generator.provenance
    size = {"faces": len(faces.labels), "identities": faces.num_identities}
    learned_from = all(learned.get(name) == number for name, number in size.items())
    training = TrainingFaces(
        run.train_embeddings, faces.labels, "train_data", learned_from=learned_from
    )
    parts = folder / _PARTS
    folder.mkdir(exist_ok=True)
    anchors, report = fake_anchors(
        candidates, run.model, count=c.anchors.size, training=training, flip=c.flip, k=c.k,
        tau=c.tau, parts=parts, align=c.anchors.align,
    )  # fmt: skip
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    write_fake_report(folder / "anchors.report.html", report, candidates)
    return anchors


def remove_parts(run: Run) -> None:
    """Removes the candidates' embeddings, once the anchors are written."""
    shutil.rmtree(run.anchors_path.parent / _PARTS, ignore_errors=True)
