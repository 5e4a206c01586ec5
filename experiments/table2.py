"""Table 2: accuracy on LFW, CALFW and YTF by cosine, IDA-R and IDA-L.

Command: PYTHONPATH=. python experiments/table2.py --scale=small --data_dir=DATA \
    --output=experiments/results/table2_small.json
paper: ResNet-18 on CASIA-WebFace by configs/casia_r18_arcface.py in WORKDIR; DATA_DIR/lfw, calfw
and ytf with the sets' own pairs, embeddings WORKDIR/casia_r18_arcface/{lfw,calfw,ytf}.npy.
small: drawn pairs of rendered identities; and LFW's own 6,000 pairs by the given MobileFaceNet,
where DATA_DIR has both.
"""

from typing import Any

from paper import NAMES, TABLE2, columns, experiment, percent

from ida_jax.runs.workdir import read_results

_SETS = ("lfw", "calfw", "ytf")


def small(options: Any) -> dict[str, Any]:
    from paper_runs import lfw_run, rendered_run

    results = read_results(rendered_run(options).workdir)
    kfold = {n: of for n, of in results["protocols"].items() if n.endswith("fold")}
    ours: dict[str, Any] = {"rendered": next(iter(kfold.values()))}
    differs = ["rendered: iresnet_nano on 500 rendered identities, drawn pairs of 200 others"]
    run = lfw_run(options)
    if run is None:
        differs.append("no real LFW: --data_dir lacks its crops or weights/mobilefacenet.npz")
    else:
        ours["lfw"] = _lfw(run)
        differs.append(
            "lfw: a MobileFaceNet given as weights, not a ResNet-18 on CASIA; anchors and the SSR "
            "module are of half of LFW's own people, each left out of his own support set (IDA-R)"
        )
    differs.append("CALFW and YTF are not run: there are no images of them")
    rows = []
    for method, ending in NAMES.items():
        row = {"method": "cosine" + ending}
        for name, figures in ours.items():
            row |= columns(name, figures[method], "accuracy")
        row |= {f"paper's {name}": percent(TABLE2[method][name]) for name in _SETS}
        rows.append(row)
    return {"ours": ours, "rows": rows, "differs": differs}


def _lfw(run: Any) -> dict[str, Any]:
    """LFW's 10-fold accuracy on its own list, whatever half the people are of."""
    import numpy as np
    from paper_runs import scorers

    from ida_jax.common.files import written_whole
    from ida_jax.data.dataset import image_subset
    from ida_jax.data.labelled_pairs import read_lfw_pairs
    from ida_jax.data.lfw_crops import load_lfw
    from ida_jax.protocols.verification import evaluate_kfold

    root = run.config.data_dir + "/lfw"
    everybody = load_lfw(root)
    listed = read_lfw_pairs(root + "/pairs.txt", everybody.names)
    rows, pairs = np.unique(listed.pairs, return_inverse=True)
    path = run.workdir / f"lfw-pairs-{run.model.fingerprint}.npy"
    if not path.is_file():
        embeddings = run.embed(image_subset(everybody.images, rows), "embed LFW's pairs")
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.save(file, embeddings)
    faces, labels = np.load(path), everybody.labels[rows]
    number = {name: label for label, name in enumerate(run.train_faces.identities)}
    among_anchors = np.int32([number.get(everybody.identities[label], -1) for label in labels])
    terms = {
        name: scorer.terms(faces, labels=among_anchors) for name, scorer in scorers(run).items()
    }
    listed = listed._replace(pairs=pairs.reshape(-1, 2))
    return evaluate_kfold(faces, listed, terms, labels=labels).figures


def paper(options: Any) -> dict[str, Any]:
    from paper_runs import evaluated, paper_run, require_paper

    require_paper(options, ["casia_r18_arcface"], _SETS)
    run = paper_run(options, "casia_r18_arcface")
    ours = {name: evaluated(options, run, name) for name in _SETS}
    rows = []
    for method, ending in NAMES.items():
        row = {"method": "ArcFace" + ending}
        for name in _SETS:
            published = TABLE2[method][name]
            row |= columns(name, ours[name][method], "accuracy", published=published)
        rows.append(row)
    return {"ours": ours, "rows": rows, "differs": []}


if __name__ == "__main__":
    experiment("table2", __doc__, small=small, paper=paper, published=TABLE2)
