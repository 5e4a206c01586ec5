"""Table 5: IDA-R with probabilistic embeddings (PFE).

Command: PYTHONPATH=. python experiments/table5.py --scale=small \
    --output=experiments/results/table5_small.json
paper: ResNet-50 on MS1M by configs/ms1m_arcface.py in WORKDIR, IJB-B and IJB-C in DATA_DIR/ijbb and
ijbc, their images' embeddings WORKDIR/ms1m_arcface/{ijbb,ijbc}.npy.
small: the quickstart's recipe, all pairs of rendered identities never seen in training.
No PFE module can be trained yet: its two rows are empty.
"""

import json
from typing import Any

from paper import TABLE5, columns, experiment, percent

_TITLES = {
    "cosine": "ArcFace",
    "pfe": "+PFE (not run: no module is trained)",
    "ida_r": "+IDA-R",
    "pfe_ida_r": "+PFE&IDA-R (not run)",
}
_PLACES = (("ijbb", "1e-05"), ("ijbb", "0.0001"), ("ijbc", "1e-06"), ("ijbc", "1e-05"))


def small(options: Any) -> dict[str, Any]:
    from paper_runs import rendered_run

    results = json.loads(rendered_run(options).results_path.read_text(encoding="utf-8"))
    figures = results["protocols"]["rendered_all_pairs"]
    rows = []
    for method, title in _TITLES.items():
        row = {"method": title}
        for far in figures["cosine"]["tar@far"]:
            row |= columns(f"TAR@{far}", figures.get(method), "tar@far", far)
        for protocol, far in _PLACES:
            row[f"paper's {protocol} {far}"] = percent(TABLE5[method][protocol][far])
        rows.append(row)
    return {
        "ours": {method: figures.get(method) for method in _TITLES},
        "rows": rows,
        "differs": ["as Table 1 at this scale; without PFE"],
    }


def paper(options: Any) -> dict[str, Any]:
    from paper_runs import evaluated, paper_run, require_paper

    require_paper(options, ["ms1m_arcface"], ("ijbb", "ijbc"))
    run = paper_run(options, "ms1m_arcface")
    ours = {name: evaluated(options, run, name) for name in ("ijbb", "ijbc")}
    rows = []
    for method, title in _TITLES.items():
        row = {"method": title}
        for protocol, far in _PLACES:
            row |= columns(
                f"{protocol} {far}", ours[protocol].get(method), "tar@far", far,
                published=TABLE5[method][protocol][far],
            )  # fmt: skip
        rows.append(row)
    return {"ours": ours, "rows": rows, "differs": ["without PFE"]}


if __name__ == "__main__":
    experiment("table5", __doc__, small=small, paper=paper, published=TABLE5)
