"""ResNet-50 with the L2-constrained softmax on MS-Celeb-1M, then IDA-R and IDA-L.

Reproduces: the L2-Face, +IDA-R and +IDA-L rows of Table 1, at the scale α = 64 of the other two
losses, since the paper gives none. (Trained model and modules, looked at on LFW; then IJB
by ida_jax.embed --flip and ida_jax.evaluate --protocol=ijbc --flip=added.)
Needs: DATA/ms1m as TFDS ArrayRecord files with the features image and label (the refined MS1M: 5.8
M images, 85,742 identities; README, "Your own training set"), and DATA/lfw with lfw_112.tar and
pairs.txt.
Hardware: 512 images per step for 200 k steps are 102 M images, 18 epochs. At the 4,700 images/s
that InsightFace reports for this network on 8 V100 that is 6 hours there.
Expected: in the paper's Table 1, IJB-C TAR@FAR 1e-5 of 81.96 (cosine), 82.87 (IDA-R), 82.39
(IDA-L).
Command: python -m ida_jax.main --config=configs/ms1m_l2.py \
    --config.data_dir=DATA --workdir=runs/ms1m_l2
Variant: configs/ms1m_l2.py:smoke runs the same code on rendered faces, in a
minute on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("MS1M, ResNet-50, L2-Face")
    c.train.head, c.train.margin = "l2_softmax", 0.0
    c.evaluate.pairs = "lfw"
    c.train.verify_every = 5_000
    return choose_variant(c, variant)
