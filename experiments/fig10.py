"""Fig. 10: pairs that IDA-R decides otherwise than the cosine, as images: corrected and broken.

Command: PYTHONPATH=. python experiments/fig10.py --scale=small --data_dir=DATA \
    --output=experiments/results/fig10_small.json
paper: ResNet-50 on MS1M by configs/ms1m_arcface.py in WORKDIR, all pairs of LFW (DATA_DIR/lfw).
small: all pairs of rendered identities; and of LFW's half by the given MobileFaceNet, where
DATA_DIR has both. LFW's picture shows real people and stays in WORKDIR.
Both methods decide at their own threshold of one FAR, the lowest with at least 10 false accepts by
both.
"""

from typing import Any

from paper import FIGURES, experiment

_SHOWN = 5  # pairs of a kind


def small(options: Any) -> dict[str, Any]:
    from paper_runs import sets

    return _drawn(options, sets(options)) | {
        "differs": [
            "the paper shows MegaFace's faces; here rendered ones, and LFW's where they are",
            "all pairs at one FAR in place of MegaFace's searches",
        ]
    }


def paper(options: Any) -> dict[str, Any]:
    from paper_runs import Set, eval_embeddings, paper_run, require, require_paper

    require_paper(options, ["ms1m_arcface"])
    require({options.data_dir / "lfw": "LFW's crops"})
    run = paper_run(options, "ms1m_arcface")
    found = _drawn(options, [Set("lfw", run, eval_embeddings(run), run.eval_faces.labels)])
    return found | {"differs": ["LFW's faces, all pairs, in place of MegaFace's searches"]}


def _drawn(options: Any, sets: Any) -> dict[str, Any]:
    from paper_runs import scorers

    from ida_jax.common.files import written_whole
    from ida_jax.protocols.verification import evaluate_all_pairs
    from ida_jax.report.pair_cards import changed_pairs

    ours = {}
    for each in sets:
        methods = scorers(each.run, ("cosine", "ida_r"))
        terms = {name: scorer.terms(each.faces) for name, scorer in methods.items()}
        fars = each.run.config.evaluate.fars
        found = evaluate_all_pairs(each.faces, each.labels, terms, fars=fars, resamples=0)
        changed = changed_pairs(found, each.faces, terms)
        if changed is None:
            ours[each.name] = "no FAR has 10 false accepts by both methods"
            continue
        folder = options.output.parent if each.name == "rendered" else options.workdir
        path = folder / f"{options.output.stem}_{each.name}.png"
        with written_whole(path) as temporary:
            _figure(changed, each.run.eval_faces.images).savefig(temporary, format="png")
        ours[each.name] = {
            "far": changed.far,
            "thresholds": {"cosine": changed.base_threshold, "ida_r": changed.other_threshold},
            "pairs": {f"{g.kind}_{_kind(g)}": g.total for g in changed.groups},
            "picture": path.name,
        }
    return {"ours": ours}


def _kind(group: Any) -> str:
    return "genuine" if group.genuine else "impostor"


def _figure(changed: Any, images: Any) -> Any:
    import numpy as np

    from ida_jax.report.style import far_name, house_style, new_figure

    @house_style
    def draw() -> Any:
        rows = len(changed.groups)
        figure, axes = new_figure(rows=rows, columns=_SHOWN, width=11, height=1.35 * rows + 0.4)
        for axis in axes:
            axis.axis("off")
        for i, group in enumerate(changed.groups):
            shown = zip(group.pairs[:_SHOWN], group.base, group.other, strict=False)
            for axis, (pair, base, other) in zip(axes[i * _SHOWN :], shown, strict=False):
                axis.imshow(np.concatenate([images[row] for row in pair], axis=1))
                margins = base - changed.base_threshold, other - changed.other_threshold
                axis.set_title(
                    f"cosine {margins[0]:+.3f}, IDA-R {margins[1]:+.3f}", fontsize=8, loc="center",
                    fontweight="normal",
                )  # fmt: skip
            axes[i * _SHOWN].text(
                -0.02, 0.5, f"{group.kind}\n{_kind(group)}\n{group.total:,} in all", fontsize=9,
                transform=axes[i * _SHOWN].transAxes, ha="right", va="center",
            )  # fmt: skip
        figure.suptitle(
            f"Scores less the threshold at FAR {far_name(changed.far)}: accepted above 0",
            fontsize=10,
        )
        return figure

    return draw()


if __name__ == "__main__":
    experiment("fig10", __doc__, small=small, paper=paper, published=FIGURES["fig10"])
