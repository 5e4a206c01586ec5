"""The last stage of a run: every method's figures on the evaluation set, and the report.

N faces, D embedding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ida_jax.artefacts.uncertainty_model import ProbabilisticEmbeddings
from ida_jax.common.errors import printable
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import require_log_variances, unit_embeddings, unit_rows
from ida_jax.data.labelled_pairs import PairList
from ida_jax.metrics.evaluation import Evaluation, regression_quality, with_notes
from ida_jax.metrics.ignored import between
from ida_jax.metrics.templates import dealt_templates, fuse, pool_templates, pooling_matrix
from ida_jax.protocols.insightface_rule import with_insightface
from ida_jax.protocols.pfe_methods import (
    FUSED_MEANS,
    LikelihoodMethods,
    likelihood_methods,
    likelihood_of_all_pairs,
    likelihood_of_pairs,
)
from ida_jax.protocols.sweeps import sweep
from ida_jax.protocols.table import Faces, noted
from ida_jax.protocols.verification import evaluate_all_pairs, evaluate_kfold
from ida_jax.rescoring.csn_fit import Csn
from ida_jax.rescoring.density import searched_log_density
from ida_jax.rescoring.method_table import METHODS, REGRESSED, SEARCHED
from ida_jax.rescoring.methods import cohort_notes, make_scorers
from ida_jax.rescoring.pairs import score_all_pairs
from ida_jax.rescoring.rescorer import Rescorer
from ida_jax.runs.run import Run
from ida_jax.runs.workdir import CSN, figures_and_notes, write_results
from ida_jax.tables.identities import labels_among


def evaluate_run(run: Run) -> None:
    """Writes results.json and report.html of the run's evaluation set."""
    from ida_jax.report.pair_cards import changed_pairs
    from ida_jax.report.run_report import write_run_report
    from ida_jax.training.loop import read_metrics

    c = run.config
    data = run.eval_faces
    title, uncertain = "embed the evaluation set", None
    if "pfe" in c.stages:
        raw, log_variances = run.uncertainty.raw_embeddings(
            run.model, data.images, flip=c.flip, progress=title
        )
        faces, _, norms = unit_rows(raw, what="the model's embeddings")
        uncertain = ProbabilisticEmbeddings(faces, require_log_variances(log_variances))
    else:
        raw = run.model.raw_embeddings(data.images, flip=c.flip, progress=title)
        faces, _, norms = unit_rows(raw, what="the model's embeddings")
    own = _own_labels(run)
    needs = {need for method in c.evaluate.methods for need in METHODS[method].needs}
    scorers = make_scorers(
        c.evaluate.methods,
        run.anchors,
        k=c.k,
        tau=c.tau,
        probes=faces,
        people=own,
        top_n=c.evaluate.top_n,
        searcher=c.searcher,
        ssr=run.ssr if "ssr" in needs else None,
        csn=Csn.load(run.workdir / CSN) if "csn" in needs else None,
    )
    methods = {
        name: scorer.terms(faces, labels=own, norms=norms) for name, scorer in scorers.items()
    }
    results: dict[str, Any] = {
        "model": {"fingerprint": run.model.fingerprint, "network": run.model.network},
        "anchors": {
            "source": run.anchors.source,
            "size": len(run.anchors),
            "fingerprint": run.anchors.fingerprint,
        },
    }
    if SEARCHED in methods:
        searched = methods[SEARCHED].values[:, 0]
    else:
        searched = searched_log_density(
            faces, run.anchors, k=c.k, tau=c.tau, labels=own, searcher=c.searcher
        )
    if "ssr" in needs:
        regressed = run.ssr.log_density(faces)
        results["ssr"] = regression_quality(np.exp(regressed), np.exp(searched))._asdict()
        results["ssr"] |= run.ssr.judgement()

    # The variant is in the name: mirrored crops added or not, LFW's own list or a drawn one.
    name = c.eval_data.name + ("_flip" if c.flip else "")
    kfold = f"{name}_{'' if c.evaluate.pairs == 'lfw' else 'drawn_'}{c.evaluate.folds}fold"
    bootstrap = {"resamples": c.evaluate.resamples, "seed": c.seed}
    listed, every, kept = {}, {}, _kept_pairs(run)
    if uncertain is not None:
        by_likelihood = _by_likelihood(run, uncertain, own)
        listed = likelihood_of_pairs(uncertain, run.pair_list.pairs[kept], by_likelihood)
        every = likelihood_of_all_pairs(uncertain, data.labels, by_likelihood)
    known = run.one_person
    ignored = None if known is None else known.codes
    everything = evaluate_all_pairs(
        faces,
        data.labels,
        methods,
        fars=c.evaluate.fars,
        scored=every,
        ignored=ignored,
        groups=run.groups,
        group_thresholds=c.evaluate.get("group_thresholds", False),
        **bootstrap,
    )
    if known is not None:
        print(printable(known.note(everything.ignored)))
    pairs = PairList(*(of_pairs[kept] for of_pairs in run.pair_list))
    of_list = evaluate_kfold(faces, pairs, methods, labels=data.labels, scored=listed, **bootstrap)
    on_list = with_insightface(
        {kfold: of_list},
        c.evaluate.get("rule", "exact"),
        Faces(faces, np.zeros(len(faces), bool), norms, ()),
        pairs,
        kfold,
    )
    left_out = int(np.count_nonzero(~kept))
    evaluated = {
        **{variant: noted(of, known, left_out) for variant, of in on_list.items()},
        f"{name}_all_pairs": noted(everything.evaluated, known, everything.ignored),
    }
    if c.evaluate.template_size:
        variant = f"{name}_templates{c.evaluate.template_size}_all_pairs"
        evaluated[variant] = evaluate_templates(run, faces, norms, uncertain, own, scorers)
    evaluated = with_notes(evaluated, cohort_notes(scorers.values(), c.evaluate.top_n))
    results |= figures_and_notes(evaluated)
    # A sweep does not leave out a face's own person, who should not be among the anchors.
    if c.evaluate.sweeps and own is None:
        results["sweeps"] = sweep(
            faces,
            data.labels,
            run.anchors,
            fars=c.evaluate.fars,
            ignored=ignored,
            seed=c.seed,
        )
    results["provenance"] = provenance()
    write_results(
        run.workdir,
        results,
        write_run_report,
        title=c.title,
        settings={"config": c.to_dict()},
        evaluated=evaluated,
        scores=everything.scores,
        log_density=searched,
        dataset=data,
        metrics=read_metrics(run.workdir),
        changed=changed_pairs(everything, faces, methods),
        sweeps=results.get("sweeps"),
    )


def evaluate_templates(
    run: Run,
    faces: np.ndarray,
    norms: np.ndarray,
    uncertain: ProbabilisticEmbeddings | None,
    own: np.ndarray | None,
    scorers: Mapping[str, Rescorer],
) -> Evaluation:
    """All pairs of templates: every method on mean pooled embeddings, and PFE on fused ones.

    Unit embeddings are pooled; IDA-Q takes the norm of the mean of the raw ones.
    """
    c = run.config
    templates, labels = dealt_templates(run.eval_faces.labels, size=c.evaluate.template_size)
    # Each image is a medium of its own.
    matrix = pooling_matrix(templates, np.arange(len(faces)))
    pooled = unit_embeddings(pool_templates(matrix, faces))
    raw = pool_templates(matrix, faces * norms[:, None])
    of_pooled = np.linalg.norm(raw, axis=1) / matrix.sum(axis=1)
    if own is not None:
        own = own[np.unique(templates, return_index=True)[1]]
    methods = {
        name: scorer.terms(pooled, labels=own, norms=of_pooled) for name, scorer in scorers.items()
    }
    scored = {}
    if uncertain is not None:
        fused = ProbabilisticEmbeddings(*fuse(*uncertain, templates))
        for method, name in FUSED_MEANS.items():
            if method in scorers:
                terms = scorers[method].terms(fused.means, labels=own)
                scored[name] = score_all_pairs(fused.means, labels, terms)
        scored |= likelihood_of_all_pairs(fused, labels, _by_likelihood(run, fused, own))
    known = run.one_person
    found = evaluate_all_pairs(
        pooled,
        labels,
        methods,
        fars=c.evaluate.fars,
        scored=scored,
        ignored=None if known is None else known.codes,
        resamples=c.evaluate.resamples,
        seed=c.seed,
    )
    return noted(found.evaluated, known, found.ignored)


def _kept_pairs(run: Run) -> np.ndarray:
    """bool [P], the pairs of the run's list that count."""
    listed = run.pair_list.pairs
    if run.one_person is None:
        return np.ones(len(listed), bool)
    return ~between(run.eval_faces.labels[listed], run.one_person.codes)


def _by_likelihood(
    run: Run, faces: ProbabilisticEmbeddings, own: np.ndarray | None
) -> LikelihoodMethods:
    c = run.config
    return likelihood_methods(
        faces,
        run.uncertain_anchors if SEARCHED in c.evaluate.methods else None,
        k=c.k,
        tau=c.tau,
        labels=own,
        anchor_labels=run.anchors.labels,
        ssr=run.ssr if REGRESSED in c.evaluate.methods else None,
    )


def _own_labels(run: Run) -> np.ndarray | None:
    """`labels_among` the training people, in whose numbering the anchors' labels are.

    None where no person is in both sets, as it should be, or where anchors are of nobody.
    """
    if run.anchors.labels is None:
        return None
    faces, training = run.eval_faces, run.train_faces.identities
    own = labels_among(faces.identities, training, np.arange(len(training)))
    return None if own is None else own[faces.labels]
