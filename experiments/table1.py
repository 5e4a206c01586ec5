"""Table 1: three heads, each by cosine, IDA-R and IDA-L.

Command: PYTHONPATH=. python experiments/table1.py --scale=small \
    --output=experiments/results/table1_small.json
paper: ResNet-50 on MS1M by configs/ms1m_{l2,cosface,arcface}.py in WORKDIR, IJB-B and IJB-C in
DATA_DIR/ijbb and ijbc, their images' embeddings WORKDIR/NAME/{ijbb,ijbc}.npy.
small: the quickstart's recipe, all pairs of 200 rendered identities never seen in training.
"""

from typing import Any

from paper import HEADS, NAMES, TABLE1, columns, experiment, percent

from ida_jax.runs.workdir import read_results

_CONFIGS = {"l2_softmax": "ms1m_l2", "cosface": "ms1m_cosface", "arcface": "ms1m_arcface"}
_PLACES = (("ijbb", "1e-05"), ("ijbb", "0.0001"), ("ijbc", "1e-06"), ("ijbc", "1e-05"))


def small(options: Any) -> dict[str, Any]:

    from paper_runs import rendered_run

    ours, rows = {}, []
    for head, title in HEADS.items():
        run = rendered_run(options, head)
        results = read_results(run.workdir)
        ours[head] = {"ssr": results["ssr"], **results["protocols"]["rendered_all_pairs"]}
        for method, ending in NAMES.items():
            row = {"method": title + ending}
            figures = ours[head][method]
            for far in figures["tar@far"]:
                row |= columns(f"TAR@{far}", figures, "tar@far", far)
            for protocol, far in _PLACES:
                published = TABLE1[head][method][protocol][far]
                row[f"paper's {protocol} {far}"] = percent(published)
            rows.append(row)
    return {
        "ours": ours,
        "rows": rows,
        "differs": [
            "a small network (iresnet_nano, 48 pixels) on 500 rendered identities, 350 steps",
            "margins and scale for so short a training: s = 32, ArcFace 0.3, CosFace 0.2",
            "500 anchors (one image a training identity) in place of 50,000",
            "all pairs of 2,000 rendered faces in place of IJB's templates",
        ],
    }


def paper(options: Any) -> dict[str, Any]:
    from paper_runs import evaluated, paper_run, require_paper

    require_paper(options, list(_CONFIGS.values()), ("ijbb", "ijbc"))
    ours, rows = {}, []
    for head, title in HEADS.items():
        run = paper_run(options, _CONFIGS[head])
        ours[head] = {name: evaluated(options, run, name) for name in ("ijbb", "ijbc")}
        for method, ending in NAMES.items():
            row = {"method": title + ending}
            for protocol, far in _PLACES:
                figures, published = ours[head][protocol][method], TABLE1[head][method]
                row |= columns(
                    f"{protocol} {far}", figures, "tar@far", far, published=published[protocol][far]
                )
            rows.append(row)
    return {"ours": ours, "rows": rows, "differs": []}


if __name__ == "__main__":
    experiment("table1", __doc__, small=small, paper=paper, published=TABLE1)
