"""Table 4: IDA-R by the anchors' source: class weights, real-db, fake-db.

Command: PYTHONPATH=. python experiments/table4.py --scale=small \
    --output=experiments/results/table4_small.json
paper: ResNet-50 on MS1M by configs/ms1m_arcface.py in WORKDIR, IJB-B in DATA_DIR/ijbb, its images'
embeddings WORKDIR/ms1m_arcface/ijbb.npy.
small: the quickstart's recipe, all pairs of rendered identities never seen in training.
No generator of faces has been trained yet: the fake-db's row is empty.
"""

from typing import Any

from paper import TABLE4, columns, experiment

_TITLES = {
    "cosine": "ArcFace",
    "class_weights": "Weights of FC layers",
    "real_db": "Real-db",
    "fake_db": "Fake-db (not run: no generator is trained)",
}


def small(options: Any) -> dict[str, Any]:
    from paper_runs import eval_embeddings, rendered_run

    from ida_jax.evaluation.pair_lists import evaluate_all_pairs
    from ida_jax.rescoring.rescorer import Rescorer

    run = rendered_run(options)
    faces = eval_embeddings(run)
    terms = {"cosine": Rescorer(None, method="cosine").terms(faces)}
    for source, anchors in (("class_weights", _class_weights(run)), ("real_db", run.anchors)):
        terms[source] = Rescorer(anchors, k=run.config.k, tau=run.config.tau).terms(faces)
    found = evaluate_all_pairs(
        faces, run.eval_faces.labels, terms, fars=run.config.evaluate.fars,
        resamples=run.config.evaluate.resamples,
    ).evaluated  # fmt: skip
    return {
        "ours": found.figures,
        "rows": _rows(found.figures, [f"{far:g}" for far in run.config.evaluate.fars]),
        "notes": found.notes,
        "differs": [
            "iresnet_nano on 500 rendered identities: 500 anchors of either source, not 50,000",
            "all pairs of 2,000 rendered faces in place of IJB-B's templates",
        ],
    }


def paper(options: Any) -> dict[str, Any]:
    from paper_runs import evaluated, paper_run, require_paper

    require_paper(options, ["ms1m_arcface"], ["ijbb"])
    run = paper_run(options, "ms1m_arcface")
    path = run.workdir / "anchors" / "class_weights.safetensors"
    if not path.is_file():
        _class_weights(run).save(path)
    found = evaluated(options, run, "ijbb")
    by_weights = evaluated(
        options, run, "ijbb", ending="_class_weights", anchors=path, methods="cosine,ida_r"
    )
    figures = {
        "cosine": found["cosine"],
        "class_weights": by_weights["ida_r"],
        "real_db": found["ida_r"],
    }
    return {"ours": figures, "rows": _rows(figures, list(TABLE4["cosine"])), "differs": []}


def _class_weights(run: Any) -> Any:
    from ida_jax.anchors.sources import class_weights

    c = run.config
    return class_weights(
        run.model.class_weights, size=c.anchors.size, seed=c.seed, k=c.k, tau=c.tau,
        fingerprint=run.model.fingerprint,
    )  # fmt: skip


def _rows(figures: dict[str, Any], fars: list[str]) -> list[dict[str, str]]:
    rows = []
    for source, title in _TITLES.items():
        row = {"anchors": title}
        for far in fars:
            row |= columns(f"TAR@{far}", figures.get(source), "tar@far", far)
        row |= {f"paper's IJB-B {far}": f"{100 * rate:.2f}" for far, rate in TABLE4[source].items()}
        rows.append(row)
    return rows


if __name__ == "__main__":
    experiment("table4", __doc__, small=small, paper=paper, published=TABLE4)
