"""Fig. 9: Fig. 8's two segments of probability, in the cosine and in DAO.

Command: PYTHONPATH=. python experiments/fig9.py --scale=small \
    --output=experiments/results/fig9_small.json
paper: MS1M (DATA_DIR/ms1m), ResNet-50 by configs/ms1m_arcface.py in WORKDIR.
small: 2,000 training faces of the quickstart's recipe.
A pair is a training face and its class weight. Its DAO takes both sides' support sets, k = 10, from
the real-db, and from the class weights; a side's own identity is left out. The overlap is that of
fig8.py, which does not depend on a score's scale: log-DAO has the same as DAO.
"""

from typing import Any

from paper import FIGURES, experiment, save_figure

_SAMPLES = 2000
_TAUS = (1, 2, 4, 8, 16, 32, 64)


def small(options: Any) -> dict[str, Any]:
    from paper_runs import rendered_run

    return _drawn(options, rendered_run(options)) | {
        "differs": ["iresnet_nano on 500 rendered identities, s = 32, margin 0.3, 350 steps"]
    }


def paper(options: Any) -> dict[str, Any]:
    from paper_runs import paper_run, require_paper

    require_paper(options, ["ms1m_arcface"], faces=True)
    return _drawn(options, paper_run(options, "ms1m_arcface")) | {"differs": []}


def _drawn(options: Any, run: Any) -> dict[str, Any]:
    import numpy as np
    from class_scores import Panel, density_figure, log_odds, overlap, sampled_faces, segments

    from ida_jax.anchors.anchor_set import AnchorSet
    from ida_jax.anchors.search import support_sets
    from ida_jax.rescoring.density import log_density_of

    sample = sampled_faces(run, run.model, count=_SAMPLES)
    cosine, odds = log_odds(sample, run.config)
    part = segments(odds)
    every_class = np.arange(len(sample.weights), dtype=np.int32)
    sources = {
        "real_db": run.anchors,
        "class_weights": AnchorSet(sample.weights, every_class),
    }
    titles = {"real_db": "real-db", "class_weights": "class weights"}
    ours: dict[str, Any] = {"samples": len(cosine), "overlap_in_cosine": _overlap(cosine, part)}
    scores = {}
    for source, anchors in sources.items():
        sides = [
            support_sets(rows, anchors, k=run.config.k, labels=labels).similarities
            for rows, labels in ((sample.faces, sample.labels), (sample.weights, every_class))
        ]
        overlaps = {}
        for tau in _TAUS:
            of_face, of_class = (log_density_of(side, tau=tau) for side in sides)
            log_dao = tau * cosine + np.logaddexp(of_face, of_class[sample.labels])
            scores[source, tau] = log_dao
            overlaps[tau] = overlap(log_dao[part.low], log_dao[part.high])
        ours[f"overlap_in_dao_{source}"] = overlaps
    names = {"low": "low probability", "high": "high probability"}
    split = {name: getattr(part, key) for key, name in names.items()}
    first = Panel(
        f"cosine, overlap {ours['overlap_in_cosine']:.3f}",
        "cosine to the own class",
        {name: cosine[of] for name, of in split.items()},
    )
    rows = [[first]]
    for source, title in titles.items():
        log_dao = scores[source, run.config.tau]
        rows[0].append(
            Panel(
                f"DAO, {title}, overlap {_overlap(log_dao, part):.3f}",
                "log-DAO",
                {name: log_dao[of] for name, of in split.items()},
            )
        )
    return {"ours": ours, "picture": save_figure(options, density_figure(rows))}


def _overlap(scores: Any, part: Any) -> float:
    from class_scores import overlap

    return overlap(scores[part.low], scores[part.high])


if __name__ == "__main__":
    experiment("fig9", __doc__, small=small, paper=paper, published=FIGURES["fig9"])
