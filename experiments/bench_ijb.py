"""IJB-C's whole road on a made-up release: lists and embeddings in, every method's figures out.

    PYTHONPATH=. python experiments/bench_ijb.py > experiments/results/bench_ijb.json

469,375 × 512 embeddings, 23,124 templates, 15,658,489 pairs, both galleries, seven methods against
50,000 anchors, 1,000 resamples. Prints JSON: seconds by part, peak memory, and what was found. The
SSR module and CSN's classifier have random weights: they cost what trained ones do. `--small` is a
hundredth.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from ijb_release import IJBC, Size, write_release

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.provenance import provenance
from ida_jax.protocols.ijb import evaluate_ijb
from ida_jax.protocols.ijb_files import read_galleries, read_ijb
from ida_jax.rescoring.csn_fit import Csn
from ida_jax.rescoring.methods import make_scorers

METHODS = ("cosine", "ida_r", "ida_r_fallback", "ida_l", "s_norm", "as_norm", "csn")
_SMALL = Size(4_694, 400, 60, 150_000, 600, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a hundredth")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    size = _SMALL if options.small else IJBC
    anchors = 1_000 if options.small else 50_000
    with tempfile.TemporaryDirectory() as folder:
        write_release(Path(folder), size)
        record = _measure(Path(folder), size, anchors, options.resamples)
    record["provenance"] = provenance()
    print(json.dumps(record, indent=1))


def _measure(folder: Path, size: Size, anchors: int, resamples: int) -> dict:
    seconds, start = {}, time.perf_counter()

    def done(part: str) -> None:
        nonlocal start
        seconds[part] = round(time.perf_counter() - start, 2)
        start = time.perf_counter()

    meta = read_ijb(folder, subset="ijbc")
    galleries = read_galleries(folder, subset="ijbc", template_ids=meta.template_ids)
    done("lists")
    scorers = _scorers(anchors, size.width)
    done("anchors made up")
    embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
    evaluated = evaluate_ijb(
        embeddings, meta, scorers, subset="ijbc", galleries=galleries, resamples=resamples
    )
    done("evaluation")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "settings": {**size._asdict(), "anchors": anchors, "resamples": resamples,
                     "methods": METHODS},
        "seconds": seconds,
        "whole_seconds": round(sum(seconds.values()) - seconds["anchors made up"], 2),
        # The embeddings' file is mapped, and counts while its pages are in memory.
        "peak_mib": round(peak),
        "load_average": os.getloadavg()[0],
        "protocols": {
            name: {
                method: figures.get("tar@far", figures.get("tpir@fpir"))
                for method, figures in each.figures.items()
            }
            for name, each in evaluated.items()
        },
    }  # fmt: skip


def _scorers(anchors: int, width: int) -> dict:
    rng = np.random.default_rng(1)
    embeddings = rng.standard_normal((anchors, width), np.float32)
    hidden = 256
    params = {
        "hidden_fc": {
            "kernel": rng.normal(0, 0.05, (width, hidden)).astype(np.float32),
            "bias": np.zeros(hidden, np.float32),
        },
        "output_fc": {
            "kernel": rng.normal(0, 0.05, (hidden, 1)).astype(np.float32),
            "bias": np.zeros(1, np.float32),
        },
    }
    ssr = SSRModule(params, "standardised", 0.06, 0.005, 0.01, 10, 1.0)
    anchor_set = AnchorSet.from_embeddings(embeddings)
    csn = _csn(anchor_set, width)
    return make_scorers(METHODS, anchor_set, weight=0.5, ssr=ssr, csn=csn)


def _csn(anchors: AnchorSet, width: int) -> Csn:
    """Fitted to a few made-up faces."""
    from ida_jax.rescoring.csn_fit import fit_csn

    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(30), 4)
    faces = rng.normal(size=(30, width))[labels] + rng.normal(size=(120, width))
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    return fit_csn(faces.astype(np.float32), labels, anchors, exclude_own=False)


if __name__ == "__main__":
    main()
