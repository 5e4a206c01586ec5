"""MegaFace's full size, streamed: seconds, faces a second and peak memory, all methods at once.

Command: PYTHONPATH=. python experiments/bench_megaface.py [--small] [--methods=cosine,ida_r,ida_l]
Prints one JSON.

Distractors are drawn block by block from a seed, in clusters, and never lie anywhere as a whole.
Probes are as FaceScrub's, 80 identities of 44 or 45 images. ida_l's SSR module has random weights:
its speed is that of a trained one, its rank-1 says nothing. --small is 10,000 distractors and 5,000
anchors.

seconds: of the evaluation, with its bootstrap and with what compiles; `making` is the part of them
  that making distractors took. peak_mib: of the whole process.
"""

import argparse
import json
import time
from collections.abc import Iterator

import jax
import numpy as np
from workers import peak_resident_bytes

from ida_jax.anchors.anchor_set import AnchorSet
from ida_jax.artefacts.ssr_module import SSRModule
from ida_jax.common.provenance import provenance
from ida_jax.common.validation import unit_embeddings
from ida_jax.metrics.identification import DISTRACTOR_SIZES
from ida_jax.models.ssr_network import SSRNetwork
from ida_jax.protocols.megaface import evaluate_megaface
from ida_jax.rescoring.methods import make_scorers

PROBES, IDENTITIES = 3530, 80
BLOCK = 10_000


def made_up(count: int, width: int, *, seed: int, spread: float = 1.5) -> np.ndarray:
    """float32 [count, width], near 64 centres of their own."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((64, width), np.float32)
    noise = rng.standard_normal((count, width), np.float32)
    return centres[rng.integers(64, size=count)] + np.float32(spread) * noise


class Distractors:
    """Blocks of made-up distractors, and the seconds that making them took."""

    def __init__(self, count: int, width: int) -> None:
        self.count, self.width, self.seconds = count, width, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, self.count, BLOCK):
            begun = time.perf_counter()
            rows = min(BLOCK, self.count - start)
            block = made_up(rows, self.width, seed=100 + start)
            self.seconds += time.perf_counter() - begun
            yield block


def random_ssr(width: int) -> SSRModule:
    """An SSR module of random weights, with log F of the scale that searched ones have."""
    params = SSRNetwork().init(jax.random.key(0), np.zeros((1, width), np.float32))["params"]
    return SSRModule(jax.tree.map(np.asarray, params), "log", -2.5, 0.1, 0.0, 10, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="10⁴ distractors, 5,000 anchors")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--methods", default="cosine,ida_r,ida_l")
    options = parser.parse_args()
    count, anchors = (10_000, 5000) if options.small else (1_000_000, 50_000)

    labels = np.arange(PROBES) % IDENTITIES
    centres = made_up(IDENTITIES, options.width, seed=1)
    noise = np.random.default_rng(2).standard_normal((PROBES, options.width), np.float32)
    probes = centres[labels] + np.float32(3.0) * noise
    anchor_set = AnchorSet.from_embeddings(unit_embeddings(made_up(anchors, options.width, seed=3)))
    scorers = make_scorers(
        options.methods.split(","),
        anchor_set,
        ssr=random_ssr(options.width),
        expected_faces=count,
    )
    distractors = Distractors(count, options.width)
    begun = time.perf_counter()
    sizes = [size for size in DISTRACTOR_SIZES if size <= count]
    found = evaluate_megaface(probes, labels, distractors, scorers, sizes=sizes)
    seconds = time.perf_counter() - begun
    result = {
        "settings": vars(options) | {"distractors": count, "anchors": anchors, "probes": PROBES},
        "seconds": seconds,
        "making": distractors.seconds,
        "faces_per_second": count / (seconds - distractors.seconds),
        "peak_mib": peak_resident_bytes() / 2**20,
        "rank1": {name: of["rank1@distractors"] for name, of in found.figures.items()},
        "faults": {name: of["faults@distractors"] for name, of in found.figures.items()},
        "provenance": provenance(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
