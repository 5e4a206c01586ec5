"""Sweeps of k, τ and |A| for Fig. 6 and 7."""

from collections.abc import Sequence
from typing import Any

from paper import save_figure


def small_sweeps(
    options: Any, *, ks: Sequence[int], taus: Sequence[float], sizes: Sequence[int] | None
) -> dict[str, Any]:
    """A record's content: `protocols.sweeps` over all pairs of each small set."""
    from paper_runs import sets

    from ida_jax.protocols.sweeps import sweep
    from ida_jax.report.rate_plots import sweep_figure

    ours, pictures = {}, []
    for each in sets(options):
        fars = [far for far in each.run.config.evaluate.fars if far >= 1e-5]
        found = sweep(
            each.faces, each.labels, each.run.anchors, fars=fars, ks=ks, taus=taus, sizes=sizes,
            seed=each.run.config.seed,
        )  # fmt: skip
        ours[each.name] = {
            "faces": len(each.faces), "anchor_set": len(each.run.anchors), "sweeps": found
        }  # fmt: skip
        pictures.append(save_figure(options, sweep_figure(found), f"_{each.name}"))
    return {
        "ours": ours,
        "pictures": pictures,
        "differs": [
            "all pairs of the sets' faces in place of IJB-B's templates",
            "rendered: iresnet_nano on 500 rendered identities, which are the anchors",
            "lfw: a MobileFaceNet given as weights, one anchor per person of LFW's other half"
            if "lfw" in ours
            else "no real faces: --data_dir lacks LFW or weights/mobilefacenet.npz",
        ],
    }


def swept_protocol(options: Any, **values: Sequence[float]) -> dict[str, Any]:
    """A record's content: IJB-B's 1:1 at each value of k, tau and anchors, the others the run's."""
    import numpy as np
    from paper_runs import evaluated, paper_run, require_paper

    from ida_jax.anchors.anchor_set import AnchorSet
    from ida_jax.report.rate_plots import sweep_figure

    require_paper(options, ["ms1m_arcface"], ["ijbb"])
    run = paper_run(options, "ms1m_arcface")
    anchors, found = run.anchors, {}
    order = np.random.default_rng(run.config.seed).permutation(len(anchors))
    for name, each in values.items():
        figures = []
        each = [value for value in each if name != "anchors" or value <= len(anchors)]
        for value in each:
            flags: dict[str, Any] = {name: value}
            if name == "anchors":
                path = run.workdir / "anchors" / f"first-{value}.safetensors"
                if not path.is_file():
                    rows = order[:value]
                    labels = None if anchors.labels is None else anchors.labels[rows]
                    AnchorSet(
                        anchors.embeddings[rows], labels, anchors.source, anchors.fingerprint,
                        anchors.k, anchors.tau,
                    ).save(path)  # fmt: skip
                flags = {"anchors": path}
            ending = f"_{name}_{value}"
            figures.append(
                evaluated(
                    options,
                    run,
                    "ijbb",
                    ending=ending,
                    methods="cosine,ida_r",
                    resamples=2,
                    **flags,
                )
            )
        fars = ("1e-05", "0.0001")
        found[name] = {
            "values": each,
            "tar@far": {far: [f["ida_r"]["tar@far"][far] for f in figures] for far in fars},
            "cosine": {far: figures[0]["cosine"]["tar@far"][far] for far in fars},
        }
    picture = save_figure(options, sweep_figure(found))
    return {"ours": found, "pictures": [picture], "differs": []}
