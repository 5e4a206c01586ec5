"""Fig. 7: IDA-R's TAR against τ.

Command: PYTHONPATH=. python experiments/fig7.py --scale=small --data_dir=DATA \
    --output=experiments/results/fig7_small.json
paper: ResNet-50 on MS1M by configs/ms1m_arcface.py in WORKDIR, IJB-B in DATA_DIR/ijbb, its images'
embeddings WORKDIR/ms1m_arcface/ijbb.npy.
small: all pairs of rendered identities; and of LFW's half by the given MobileFaceNet, where
DATA_DIR has both.
"""

from typing import Any

from paper import FIGURES, experiment
from paper_sweeps import small_sweeps, swept_protocol

_TAUS = (0.25, 0.5, 1, 2, 4, 8, 16)


def small(options: Any) -> dict[str, Any]:
    return small_sweeps(options, ks=(), taus=_TAUS, sizes=())


def paper(options: Any) -> dict[str, Any]:
    return swept_protocol(options, tau=_TAUS)


if __name__ == "__main__":
    experiment("fig7", __doc__, small=small, paper=paper, published=FIGURES["fig7"])
