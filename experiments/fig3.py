"""Fig. 3: the cosines of samples to all class weights, sorted: the nearest classes dominate.

Command: PYTHONPATH=. python experiments/fig3.py --scale=small \
    --output=experiments/results/fig3_small.json
paper: 500 samples of MS1M (DATA_DIR/ms1m), ResNet-50 by configs/ms1m_arcface.py in WORKDIR.
small: 500 training faces of the quickstart's recipe.
The record has quantiles over samples of the sorted cosines to other classes, and the share of
Σ_j exp(s cos θ_j) over other classes that the nearest k hold.
"""

from typing import Any

from paper import FIGURES, experiment, save_figure

_SAMPLES = 500
_RANKS = (1, 2, 5, 10, 20, 50, 100, 1000, 10_000)


def small(options: Any) -> dict[str, Any]:
    from paper_runs import rendered_run

    return _drawn(options, rendered_run(options)) | {
        "differs": ["iresnet_nano and 500 rendered identities: 500 classes in place of 85,742"]
    }


def paper(options: Any) -> dict[str, Any]:
    from paper_runs import paper_run, require_paper

    require_paper(options, ["ms1m_arcface"], faces=True)
    return _drawn(options, paper_run(options, "ms1m_arcface")) | {"differs": []}


def _drawn(options: Any, run: Any) -> dict[str, Any]:
    import numpy as np
    from class_scores import sampled_faces

    sample = sampled_faces(run, run.model, count=_SAMPLES)
    own = np.arange(len(sample.labels)), sample.labels
    cosines = sample.faces @ sample.weights.T
    own_cosine = cosines[own]
    cosines[own] = -np.inf
    others = -np.sort(-cosines, axis=1)[:, :-1]
    share = np.exp(run.config.train.scale * (others - others[:, :1]).astype(np.float64))
    share = np.cumsum(share, axis=1) / share.sum(axis=1, keepdims=True)
    ranks = [rank for rank in _RANKS if rank <= others.shape[1]]
    quantiles = np.quantile(others, (0.05, 0.5, 0.95), axis=0)
    ours = {
        "classes": len(sample.weights),
        "samples": len(own_cosine),
        "own_class_cosine": np.quantile(own_cosine, (0.05, 0.5, 0.95)),
        "other_classes_cosine_at_rank": {r: quantiles[:, r - 1] for r in ranks},
        "median_share_of_nearest": {r: np.median(share[:, r - 1]) for r in ranks},
    }
    figure = _figure(own_cosine, others, quantiles)
    return {"ours": ours, "picture": save_figure(options, figure)}


def _figure(own: Any, others: Any, quantiles: Any) -> Any:
    import numpy as np

    from ida_jax.report.style import BLUE, VERMILION, house_style, new_figure

    @house_style
    def draw() -> Any:
        figure, (tiled, curves) = new_figure(columns=2, width=10, height=4.2)
        order = np.argsort(own)
        image = tiled.imshow(
            np.concatenate([own[:, None], others], axis=1)[order], aspect="auto", cmap="cividis",
            interpolation="nearest", extent=(0.5, others.shape[1] + 1.5, len(own), 0),
        )  # fmt: skip
        tiled.grid(False)
        tiled.set_title("Each sample's cosines, its own class's first")
        tiled.set_xlabel("class, the nearest first")
        tiled.set_ylabel("samples, by the own class's cosine")
        figure.colorbar(image, ax=tiled)
        rank = np.arange(1, others.shape[1] + 1)
        curves.fill_between(rank, quantiles[0], quantiles[2], color=BLUE, alpha=0.2, linewidth=0,
                            label="other classes, 5 % to 95 %")  # fmt: skip
        curves.plot(rank, quantiles[1], color=BLUE, linewidth=1.8, label="other classes, median")
        curves.axhline(np.median(own), color=VERMILION, linestyle="--", linewidth=1.6,
                       label="own class, median")  # fmt: skip
        curves.axvline(10, color="#888888", linestyle=":", linewidth=1.4, label="k = 10")
        curves.set_xscale("log")
        curves.set_xlabel("rank of the class")
        curves.set_ylabel("cosine")
        curves.set_title("Over all samples")
        curves.legend(frameon=False)
        return figure

    return draw()


if __name__ == "__main__":
    experiment("fig3", __doc__, small=small, paper=paper, published=FIGURES["fig3"])
