"""A run: the stages that a config names, each resumable, each ending in one file.

    train     → DIR/model.safetensors            backbone and margin head, by SGD
    import    → DIR/model.safetensors            or a backbone's weights from elsewhere
                DIR/imported.safetensors         where train follows, which begins with them
    gan       → DIR/generator.safetensors        the generator of faces, for the fake-db
    anchors   → DIR/anchors/anchors.safetensors  class weights, real-db or fake-db (Table 4)
    ssr       → DIR/ssr.safetensors              the SSR module on the frozen backbone (IDA-L)
    pfe       → DIR/pfe.safetensors              the uncertainty module (PFE), and by it
                DIR/anchors/log_variances.npy    log σ² of the anchors
    csn       → DIR/csn.safetensors              the classifier of CSN
    evaluate  → DIR/results.json                 every method's figures; and DIR/report.html

Mistakes that a later stage would fail on (an unknown name, k larger than the anchors can give,
missing data) are found before the first stage starts. All processes train; the first alone does the
other stages, on its own devices, while the others wait for each stage's file. The stage ssr starts
again when interrupted, since it takes seconds to minutes; the training set's embeddings are kept in
parts, and an interrupted pass continues.

A stage whose file exists is not run again. A workdir may be continued with another config: a stage
looks only at what it depends on (`STAGES`). Where that has changed, the cheap ones are run again,
and the trainings refuse the config. N faces, D embedding.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ida_jax.anchors import sources
from ida_jax.artefacts.face_model import FaceModel
from ida_jax.artefacts.generator import FaceGenerator
from ida_jax.common.devices import training_mesh
from ida_jax.common.errors import UserError, require_module
from ida_jax.common.files import require_file
from ida_jax.common.parts import write_npy
from ida_jax.common.processes import all_or_none, is_first
from ida_jax.common.validation import row_norms, unit_embeddings
from ida_jax.data.balanced import balanced_rows
from ida_jax.data.labelled_pairs import PairList
from ida_jax.data.load import require_faces, require_verification
from ida_jax.data.pipeline import check_labels
from ida_jax.metrics.frechet import frechet_distance, precision_recall
from ida_jax.metrics.kfold import kfold_accuracy
from ida_jax.protocols.insightface_rule import RULES, check_rule, insightface_figures
from ida_jax.rescoring.csn_fit import fit_csn
from ida_jax.rescoring.density import searched_log_density
from ida_jax.runs.anchors_stage import check_anchors, make_anchors, real_db_images
from ida_jax.runs.config_check import check_config, section_degradation
from ida_jax.runs.embedding_run import EMBEDDING_STAGES, EmbeddingRun, check_embeddings
from ida_jax.runs.evaluate_stage import evaluate_run
from ida_jax.runs.run import Run, Stage
from ida_jax.runs.workdir import (
    ANCHOR_VARIANCES,
    ANCHORS,
    CSN,
    GENERATOR,
    IMPORTED,
    MODEL,
    PFE,
    RESULTS,
    SSR,
    claim_workdir,
    outdated_stages,
    read_results,
)
from ida_jax.training.gan_step import check_gan_batch
from ida_jax.training.length import in_steps
from ida_jax.training.pfe import check_pfe_batch
from ida_jax.training.train_step import check_batch

# What whatever takes the training set's embeddings depends on.
_ON_FACES = ("seed", "train_data", "flip")
_DEGRADED = ("anchors.degrade", "anchors.degrade_share", "anchors.degrade_copies")
# No fake-db is drawn from it by default.
_FIGURES_SEED = 2**31


def run(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs the config's stages in their order and returns results.json's content.

    A config with `embeddings` is a run from a file of embeddings, with stages of its own.
    """
    workdir = Path(workdir)
    if "embeddings" in config:
        current, stages, check = EmbeddingRun(config, workdir), EMBEDDING_STAGES, check_embeddings
    else:
        current, stages, check = Run(config, workdir), run_stages(config), _check
    if not config.stages:
        raise UserError("the config names no stages: name one or more")
    for name in config.stages:
        if name not in stages:
            raise UserError(f"stage '{name}' is unknown: choose from {', '.join(stages)}")
    with all_or_none():
        outdated = outdated_stages(workdir, config, stages)
        unfinished = [
            name
            for name in config.stages
            if name in outdated or not (workdir / stages[name].result).is_file()
        ]
        if unfinished:
            check(current, unfinished)
    with all_or_none():
        if is_first():
            claim_workdir(workdir, config, stages)
    for name in config.stages:
        stage, result = stages[name], workdir / stages[name].result
        if name not in unfinished:
            print(f"{name}: finished before, see {result}")
        elif stage.by_all or is_first():
            stage.run(current)
        # The first process alone does the rest.
        while not is_first() and not result.is_file():
            time.sleep(1)
    return read_results(workdir) if is_first() and (workdir / RESULTS).is_file() else {}


def _check(run: Run, unfinished: list[str]) -> None:
    """Finds mistakes that would stop a later stage, before hours are spent on the earlier ones."""
    c = run.config
    check_config(c, unfinished)
    if {"train", "gan", "pfe"} & set(unfinished):
        require_module("grain")  # which feeds the trainings
    if {"train", "gan", "anchors", "ssr", "pfe"} & set(unfinished):
        require_faces(c.train_data, data_dir=c.data_dir)
    if "evaluate" in unfinished:
        require_faces(c.eval_data, data_dir=c.data_dir)
        _ = run.one_person
    if "train" in unfinished:
        check_batch(c.train, training_mesh(c.train.class_shards))
        in_steps(c.train, len(run.train_faces.labels))
    if "gan" in unfinished:
        check_gan_batch(c.gan.batch_size, jax.device_count())
    if "anchors" in unfinished and c.anchors.source == "fake_db" and c.anchors.generator:
        size = run.generator.image_size
        if size != c.model.image_size:
            raise UserError(
                f"anchors.generator makes crops of {size} px, but the model takes "
                f"{c.model.image_size} px: give a generator trained on such crops"
            )
    if "pfe" in unfinished:
        check_pfe_batch(c.pfe, jax.device_count())
        balanced_rows(
            run.train_faces.labels, identities=c.pfe.identities, images=c.pfe.images, seed=c.seed
        )
    if "train" in unfinished and c.train.verify_every and is_first():
        require_verification(c.verify_data, data_dir=c.data_dir)
        for name, (images, pair_list) in run.verifications.items():
            first = f"the first image of verify_data ({name})"
            run.model_preprocessing.check(images[0], what=first)
            check_rule(c.train.get("verify_rule", "exact"), pair_list)
    if "import" in unfinished:
        require_file(Path(c.data_dir) / c.model.weights, what="weights")
        _ = run.given_class_weights
    if {"train", "gan", "anchors", "ssr"} & set(unfinished):
        check_labels(run.train_faces)
        run.model_preprocessing.check(run.train_faces.images[0], what="train_data's first image")
        if {"anchors", "ssr", "csn", "evaluate"} & set(unfinished):
            check_anchors(run, unfinished)
    if "evaluate" in unfinished:
        run.model_preprocessing.check(run.eval_faces.images[0], what="eval_data's first image")
        check_rule(c.evaluate.get("rule", "exact"), run.pair_list)  # draws or reads it
        _ = run.groups


def _train(run: Run) -> None:
    from ida_jax.training.recognition import train

    verifying = run.config.train.verify_every > 0

    def verify(model: FaceModel) -> dict[str, float]:
        rule = run.config.train.get("verify_rule", "exact")  # a section from before the entry
        return figures_of_sets(model, run.verifications, flip=run.config.flip, rule=rule)

    imported = "import" in run.config.stages
    model = train(
        run.train_faces,
        run.config,
        workdir=run.workdir,
        start=FaceModel.load(run.workdir / IMPORTED) if imported else None,
        verify=verify if verifying else None,
    )
    if is_first():
        model.save(run.workdir / MODEL)


def figures_of_sets(
    model: FaceModel, sets: Mapping[str, tuple[Sequence[np.ndarray], PairList]],
    *, flip: bool, rule: str,
) -> dict[str, float]:  # fmt: skip
    """`held_out_figures` of one set; of several sets, SET_FIGURE, and the mean as "accuracy"."""
    found = {name: held_out_figures(model, *of, flip=flip, rule=rule) for name, of in sets.items()}
    if len(found) == 1:
        return next(iter(found.values()))
    mean = float(np.mean([figures["accuracy"] for figures in found.values()]))
    named = {f"{name}_{key}": v for name, of in found.items() for key, v in of.items()}
    return {"accuracy": mean, **named}


def held_out_figures(
    model: FaceModel, images: Sequence[np.ndarray], pair_list: PairList, *, flip: bool, rule: str
) -> dict[str, float]:
    """The cosine's k-fold "accuracy"; by InsightFace's rule also its "val" at 1e-3 and "xnorm".

    XNorm is the mean norm of the embeddings of images and of mirrored ones, as InsightFace has it.

    Args:
      images: crops, uint8 [H, W, 3].
      flip: adds mirrored images' embeddings.
      rule: of `RULES`.
    """
    if rule == RULES[0]:
        faces, (pairs, same, fold) = model.embed(images, flip=flip), pair_list
        cosines = np.sum(faces[pairs[:, 0]] * faces[pairs[:, 1]], axis=1)
        return {"accuracy": kfold_accuracy(cosines, same, folds=fold).mean}
    sides = [model.raw_embeddings(images)]
    if flip:
        sides.append(model.raw_embeddings([image[:, ::-1] for image in images]))
    faces = unit_embeddings(np.sum(sides, axis=0), what="the model's embeddings")
    xnorm = float(np.mean([row_norms(side) for side in sides]))
    figures = insightface_figures(faces, pair_list, xnorm=xnorm)
    (val,) = figures["val@far"].values()
    return {"accuracy": figures["accuracy"], "val": val, "xnorm": xnorm}


def _import(run: Run) -> None:
    from ida_jax.interop.weights import import_model

    c = run.config.model
    path = Path(run.config.data_dir) / c.weights
    model = import_model(path, preprocessing=run.model_preprocessing)
    expected = (c.network, c.options.embedding_dim, c.image_size)
    actual = (model.network, model.width, model.preprocessing.image_size)
    if actual != expected:
        raise UserError(
            f"{path} holds {_description(actual)}, but the config's model is "
            f"{_description(expected)}: set model.network, model.options.embedding_dim and "
            "model.image_size to what the file holds"
        )
    model = replace(model, class_weights=run.given_class_weights)
    model.save(run.workdir / (IMPORTED if "train" in run.config.stages else MODEL))


def _description(model: tuple[str, int, int]) -> str:
    return f"{model[0]}, {model[1]}-d, {model[2]} px"


def _gan(run: Run) -> None:
    from ida_jax.training.gan import train_gan

    c, real = run.config, None
    with all_or_none():
        if is_first():
            real = run.train_embeddings
    generator = train_gan(
        run.train_faces,
        c.gan,
        workdir=run.workdir,
        seed=c.seed,
        title=c.title,
        evaluate=lambda generator: _generator_figures(generator, run, real),
    )
    if is_first():
        generator.save(run.workdir / GENERATOR)


def _generator_figures(generator: FaceGenerator, run: Run, real: np.ndarray) -> dict[str, float]:
    """Fréchet distance, precision and recall (`metrics.frechet`) beside real unit rows [N, D].

    They are of embeddings by the face model, where a generator's faces become anchors, and not
    comparable with a published FID.
    """
    c = run.config
    rows = sources.sampled_rows(len(real), size=c.gan.evaluate_faces, seed=c.seed)
    faces = generator.faces(0, len(rows), seed=_FIGURES_SEED)
    generated = run.model.embed(faces, flip=c.flip)
    shares = precision_recall(real[rows], generated)
    distance = frechet_distance(real[rows], generated)
    return {"frechet": distance, "precision": shares.precision, "recall": shares.recall}


def _ssr(run: Run) -> None:
    from ida_jax.training.ssr import train_ssr, train_ssr_on_the_fly, with_copies
    from ida_jax.training.ssr_choice import chooses, train_chosen_ssr

    c = run.config
    faces, labels = run.train_embeddings, run.train_faces.labels
    if (degrade := section_degradation(c, "ssr")) is not None:
        rows, copies = run.degraded_embeddings(degrade)
        faces, labels = np.concatenate([faces, copies]), np.concatenate([labels, labels[rows]])
    people = labels
    if run.anchors.labels is None:
        labels = None  # nobody's anchors
    options = {"k": c.k, "tau": c.tau, "fingerprint": run.model.fingerprint}
    options |= {"workdir": run.workdir, "seed": c.seed}
    if chooses(c.ssr, len(faces), len(np.unique(people))):
        ssr = train_chosen_ssr(
            faces, people, labels, run.anchors, c.ssr, searcher=c.searcher, **options
        )
    elif c.ssr.targets == "on_the_fly":
        ssr = train_ssr_on_the_fly(
            faces, labels, run.anchors, c.ssr, searcher=c.searcher, **options
        )
    else:
        faces, labels = with_copies(
            faces, labels, copies=c.ssr.copies, mix=c.ssr.mix, noise=c.ssr.noise, seed=c.seed
        )
        log_density = searched_log_density(faces, run.anchors, labels=labels, searcher=c.searcher)
        ssr = train_ssr(faces, log_density, c.ssr, **options)
    replace(ssr, anchors_sketch=run.anchors.sketch).save(run.workdir / SSR)


def _pfe(run: Run) -> None:
    from ida_jax.training.pfe import train_pfe

    c, faces = run.config, run.train_faces
    trained = train_pfe(faces, run.model, c.pfe, workdir=run.workdir, seed=c.seed)
    if not is_first():
        return
    # Class weights have no images, and so no variances.
    if "anchors" in c.stages and c.anchors.source == "real_db":
        images, _, _ = real_db_images(run)
        anchors = trained.embed(run.model, images, flip=c.flip, progress="anchors' variances")
        write_npy(run.workdir / ANCHOR_VARIANCES, anchors.log_variances)
    trained.save(run.workdir / PFE)


def _csn(run: Run) -> None:
    csn = fit_csn(
        run.train_embeddings,
        run.train_faces.labels,
        run.anchors,
        top_n=run.config.csn.top_n,
        degree=run.config.csn.degree,
        seed=run.config.seed,
        searcher=run.config.searcher,
    )
    csn.save(run.workdir / CSN)


STAGES = {
    "train": Stage(
        _train, MODEL, by_all=True, remade=False, parts=("checkpoints",),
        depends_on=("seed", "train_data", "verify_data", "model", "train"),
    ),
    "import": Stage(_import, MODEL, remade=False, depends_on=("model",)),
    "gan": Stage(
        _gan, GENERATOR, by_all=True, remade=False, parts=("gan_checkpoints",),
        depends_on=("seed", "train_data", "flip", "gan"),
    ),
    "anchors": Stage(make_anchors, ANCHORS, depends_on=(*_ON_FACES, "k", "tau", "anchors")),
    "ssr": Stage(
        _ssr, SSR, after=("anchors",), depends_on=(*_ON_FACES, "k", "tau", "searcher", "ssr")
    ),
    # Its variances of the anchors are of those that the config draws.
    "pfe": Stage(
        _pfe, PFE, by_all=True, remade=False, parts=("pfe_checkpoints",),
        depends_on=(*_ON_FACES, "anchors.source", "anchors.size", "anchors.balance", *_DEGRADED,
                    "pfe"),
    ),
    "csn": Stage(_csn, CSN, after=("anchors",), depends_on=(*_ON_FACES, "searcher", "csn")),
    "evaluate": Stage(evaluate_run, RESULTS, after=("anchors", "ssr", "csn")),
}  # fmt: skip


def run_stages(config: ConfigDict) -> dict[str, Stage]:
    """The stages of a config's run from images: before a training, import ends in its own file."""
    if not {"import", "train"} <= set(config.stages):
        return STAGES
    return {**STAGES, "import": STAGES["import"]._replace(result=IMPORTED)}
