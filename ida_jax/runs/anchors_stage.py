"""The stage anchors: a set from class weights, a real-db or a fake-db (Table 4), and its checks."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ida_jax.anchors import sources
from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.anchors.balance import Balance, balance_option, requested_balance
from ida_jax.anchors.candidates import generated_candidates
from ida_jax.anchors.degraded import degraded_provenance
from ida_jax.anchors.fake import fake_anchors
from ida_jax.anchors.fake_rules import TrainingFaces
from ida_jax.anchors.moments import fewest_faces
from ida_jax.common.errors import UserError
from ida_jax.data.dataset import image_subset
from ida_jax.data.degrade import with_degraded
from ida_jax.rescoring.method_table import methods_set_by
from ida_jax.runs.config_check import section_degradation
from ida_jax.runs.run import Run
from ida_jax.runs.workdir import ANCHORS, FAKES


def check_anchors(run: Run, unfinished: list[str]) -> None:
    """Whether the training people are enough for the anchors, and for what takes them."""
    c = run.config
    anchors = _most_anchors(run, left_out="ssr" in c.stages)
    if c.anchors.source == "fake_db":
        _check_fake_db(run)
    if "anchors" in unfinished:
        _ = _balance(run)
    if not 1 <= c.k <= anchors:
        raise UserError(
            f"k is {c.k}, but a support set can have at most {anchors} anchors here (one an "
            "identity, a face's own left out): lower k or take more identities"
        )
    cohort = not set(c.evaluate.methods).isdisjoint(methods_set_by("top_n"))
    _check_cohort(run, "evaluate.top_n", cohort and "evaluate" in c.stages, left_out=0)
    # CSN's fit leaves out both people of a pair.
    _check_cohort(run, "csn.top_n", "csn" in c.stages, left_out=2)


def _check_cohort(run: Run, key: str, used: bool, *, left_out: int) -> None:
    c = run.config
    anchors = _most_anchors(run, left_out=left_out)
    section, name = key.split(".")
    if used and (c[section][name] or 0) > anchors:
        raise UserError(
            f"{key} is {c[section][name]}, but a cohort can have at most {anchors} anchors here: "
            "lower it or take more identities"
        )


def _check_fake_db(run: Run) -> None:
    """Finds mistakes that would stop the choice of fakes by the training people."""
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


def _most_anchors(run: Run, *, left_out: int) -> int:
    """The largest support set: one anchor per identity, without those of the faces themselves."""
    anchors, given = run.config.anchors, run.given_class_weights
    if anchors.source == "fake_db":
        return anchors.size
    if anchors.source == "class_weights" and given is not None:
        return min(anchors.size, len(given)) - left_out
    return min(anchors.size, run.train_faces.num_identities) - left_out


def make_anchors(run: Run) -> None:
    """Writes the run's anchor set."""
    c = run.config.anchors
    (run.workdir / ANCHORS).parent.mkdir(exist_ok=True)
    options = {"fingerprint": run.model.fingerprint, "k": run.config.k, "tau": run.config.tau}
    match c.source:
        case "class_weights":
            weights, people = run.model.class_weights, run.train_faces.num_identities
            anchors = sources.class_weights(weights, size=c.size, seed=run.config.seed, **options)
            if len(weights) != people:
                print(
                    f"the {len(weights)} class weights are not of train_data's {people} people: "
                    "no face's own class is left out of its support set"
                )
                anchors = replace(anchors, labels=None)
        case "real_db":
            faces, (images, rows, provenance) = run.train_faces, real_db_images(run)
            labels = faces.labels[rows]
            anchors = AnchorSet.from_embeddings(
                run.embed(images, "anchors"),
                labels=labels,
                source="real_db",
                names=[faces.identities[label] for label in labels],
                provenance=provenance,
                **options,
            )
        case "fake_db":
            anchors = _fake_db(run)
    anchors.save(run.workdir / ANCHORS)
    shutil.rmtree(run.workdir / FAKES, ignore_errors=True)


def _balance(run: Run) -> Balance | None:
    """What `anchors.balance` asks for, of the training faces."""
    asked, faces = run.config.anchors.get("balance"), run.train_faces
    if asked is None:
        return None
    names = [faces.identities[label] for label in faces.labels]
    return requested_balance(balance_option(asked), names, len(names))


def _balanced_rows(run: Run) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows of a real-db balanced over `anchors.balance`, and its provenance."""
    c, faces, balance = run.config, run.train_faces, _balance(run)
    every = sources.real_db_rows(faces.labels, size=len(faces.labels))
    return sources.balanced_rows_of(
        every, balance, size=c.anchors.size, seed=c.seed, k=c.k,
        embeddings=lambda: run.embed(image_subset(faces.images, every), "anchors to choose from"),
    )  # fmt: skip


def real_db_images(run: Run) -> tuple[Sequence[np.ndarray], np.ndarray, dict[str, Any]]:
    """The real-db's images, degraded copies behind them; their training rows; the provenance."""
    c, faces, provenance = run.config, run.train_faces, {}
    rows = sources.real_db_rows(faces.labels, size=c.anchors.size, seed=c.seed)
    if c.anchors.get("balance") is not None:
        rows, provenance = _balanced_rows(run)
    degrade = section_degradation(c, "anchors")
    images, of = with_degraded(image_subset(faces.images, rows), degrade, numbers=rows)
    return images, rows[of], {**provenance, **degraded_provenance(degrade, of)}


def _fake_db(run: Run) -> AnchorSet:
    """The fake-db of the run's generator, and its report beside it."""
    from ida_jax.report.fake_report import write_fake_report

    c = run.config
    candidates = generated_candidates(run.generator, seed=c.seed, truncation=c.anchors.truncation)
    faces, learned = run.train_faces, run.generator.provenance
    size = {"faces": len(faces.labels), "identities": faces.num_identities}
    learned_from = all(learned.get(name) == number for name, number in size.items())
    training = TrainingFaces(
        run.train_embeddings, faces.labels, "train_data", learned_from=learned_from
    )
    anchors, report = fake_anchors(
        candidates, run.model, count=c.anchors.size, training=training, flip=c.flip, k=c.k,
        tau=c.tau, parts=run.workdir / FAKES, align=c.anchors.align,
        degrade=section_degradation(c, "anchors"),
    )  # fmt: skip
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    write_fake_report((run.workdir / ANCHORS).with_suffix(".report.html"), report, candidates)
    return anchors
