"""Fig. 8: the probability of the own class and the cosine to it, at three moments of the training.

Command: PYTHONPATH=. python experiments/fig8.py --scale=small \
    --output=experiments/results/fig8_small.json
paper: MS1M (DATA_DIR/ms1m), ResNet-50 by configs/ms1m_arcface.py in a WORKDIR that this script
begins, so that the states at 80,000, 140,000 and 200,000 of 200,000 steps are kept.
small: the quickstart's recipe at 40, 70 and 100 % of its steps, 2,000 training faces.
The segments are the samples between the 10 % and 30 % quantiles of the probability and between the
70 % and 90 %, at each moment anew. Their overlap in the cosine is 1 less the Kolmogorov–Smirnov
distance: both segments' shares on the wrong side of the best threshold, added up.
"""

from typing import Any

from paper import FIGURES, experiment, save_figure

_SAMPLES = 2000


def small(options: Any) -> dict[str, Any]:
    from paper_runs import rendered_run

    return _drawn(options, rendered_run(options)) | {
        "differs": ["iresnet_nano on 500 rendered identities, s = 32, margin 0.3, 350 steps"]
    }


def paper(options: Any) -> dict[str, Any]:
    from paper_runs import paper_run, require_paper

    require_paper(options, ["ms1m_arcface"], faces=True)
    return _drawn(options, paper_run(options, "ms1m_arcface", keep=True)) | {"differs": []}


def _drawn(options: Any, run: Any) -> dict[str, Any]:
    import numpy as np
    from class_scores import Panel, density_figure, log_odds, overlap, sampled_faces, segments
    from paper_runs import moments

    from ida_jax.artefacts.face_model import FaceModel

    ours, rows = {}, []
    for path, step in moments(run).items():
        sample = sampled_faces(run, FaceModel.load(path), count=_SAMPLES)
        cosine, odds = log_odds(sample, run.config)
        probability = 0.5 * (1 + np.tanh(0.5 * odds))
        part = segments(odds)
        shared = overlap(cosine[part.low], cosine[part.high])
        ours[step] = {
            "samples": len(cosine),
            "cosine": _spread(cosine),
            "probability": _spread(probability),
            "segments": {k: _spread(probability[of]) for k, of in part._asdict().items()},
            "segments_cosine": {k: _spread(cosine[of]) for k, of in part._asdict().items()},
            "overlap": shared,
        }
        split = {"low probability": cosine[part.low], "high probability": cosine[part.high]}
        rows.append(
            [
                Panel(f"step {step:,}", "cosine to the own class", {"all": cosine}),
                Panel("", "probability of the own class", {"all": probability}, log=True),
                Panel(f"two segments, overlap {shared:.2f}", "cosine to the own class", split),
            ]
        )
    return {"ours": ours, "picture": save_figure(options, density_figure(rows))}


def _spread(values: Any) -> dict[str, float]:
    import numpy as np

    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return {"5%": low, "50%": middle, "95%": high, "deviation": float(np.std(values))}


if __name__ == "__main__":
    experiment("fig8", __doc__, small=small, paper=paper, published=FIGURES["fig8"])
