"""Fig. 6: IDA-R's TAR against the support set's size k, and against the number of anchors.

Command: PYTHONPATH=. python experiments/fig6.py --scale=small --data_dir=DATA \
    --output=experiments/results/fig6_small.json
paper: ResNet-50 on MS1M by configs/ms1m_arcface.py in WORKDIR, IJB-B in DATA_DIR/ijbb, its images'
embeddings WORKDIR/ms1m_arcface/ijbb.npy.
small: all pairs of rendered identities; and of LFW's half by the given MobileFaceNet, where
DATA_DIR has both. k at all anchors, |A| at k = 10.
"""

from typing import Any

from paper import FIGURES, experiment
from paper_sweeps import small_sweeps, swept_protocol

_KS = (1, 2, 5, 10, 20, 50, 100)
_SIZES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


def small(options: Any) -> dict[str, Any]:
    return small_sweeps(options, ks=_KS, taus=(), sizes=None)


def paper(options: Any) -> dict[str, Any]:
    return swept_protocol(options, k=_KS, anchors=_SIZES)


if __name__ == "__main__":
    experiment("fig6", __doc__, small=small, paper=paper, published=FIGURES["fig6"])
