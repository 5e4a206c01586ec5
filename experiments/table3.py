"""Table 3: rank-1 of MegaFace's protocol against numbers of distractors.

Command: PYTHONPATH=. python experiments/table3.py --scale=small \
    --output=experiments/results/table3_small.json
paper: ResNet-100 on MS1M by configs/ms1m_r100_arcface.py in WORKDIR, MegaFace's lists in
DATA_DIR/megaface, embeddings WORKDIR/ms1m_r100_arcface/{facescrub,megaface}.npy.
small: rendered identities, probes of 200 never seen in training, one face each of 1,000 others as
distractors.
"""

from typing import Any

from paper import NAMES, TABLE3, columns, experiment, percent, save_figure

_SIZES = (10, 100, 1000)


def small(options: Any) -> dict[str, Any]:
    from paper_runs import eval_embeddings, rendered_run, scorers

    from ida_jax.data.rendered import rendered_faces
    from ida_jax.protocols.megaface import evaluate_megaface

    run = rendered_run(options)
    sizes = _SIZES if options.scale == "small" else (5, 10)
    others = run.config.verify_data
    distractors = rendered_faces(
        identities=sizes[-1],
        images_per_identity=1,
        image_size=others.image_size,
        first_identity=others.first_identity + others.identities,
        shares=run.config.eval_data.get("shares"),
        seed=run.config.seed,
    )
    found = evaluate_megaface(
        eval_embeddings(run),
        run.eval_faces.labels,
        [run.embed(distractors.images, "embed the distractors")],
        scorers(run),
        sizes=sizes,
    )
    return {
        **_shown(options, found.figures, [str(size) for size in sizes]),
        "notes": found.notes,
        "differs": [
            "iresnet_nano on 500 rendered identities in place of ResNet-100 on MS1M",
            "200 rendered identities of 10 images as probes, up to 1,000 distractors",
        ],
    }


def paper(options: Any) -> dict[str, Any]:
    from paper_runs import evaluated, paper_run, require_paper

    require_paper(options, ["ms1m_r100_arcface"], ["megaface"])
    figures = evaluated(options, paper_run(options, "ms1m_r100_arcface"), "megaface")
    return {**_shown(options, figures, list(TABLE3["cosine"])), "differs": []}


def _shown(options: Any, figures: dict[str, Any], sizes: list[str]) -> dict[str, Any]:
    from ida_jax.report.rate_plots import distractors_figure

    rows = []
    for method, ending in NAMES.items():
        row = {"method": "ArcFace" + ending}
        for size in sizes:
            row |= columns(size, figures[method], "rank1@distractors", size)
        row |= {f"paper's {size}": percent(rate) for size, rate in TABLE3[method].items()}
        rows.append(row)
    picture = save_figure(options, distractors_figure(figures))
    return {"ours": figures, "rows": rows, "picture": picture}


if __name__ == "__main__":
    experiment("table3", __doc__, small=small, paper=paper, published=TABLE3)
