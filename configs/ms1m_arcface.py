"""The paper's main model: ResNet-50 with ArcFace on MS-Celeb-1M, then IDA-R, IDA-L and PFE.

Reproduces: the ArcFace, +IDA-R and +IDA-L rows of Table 1, and Table 5. (Trained model and modules,
looked at on LFW; then IJB by ida_jax.embed --flip --pfe and ida_jax.evaluate --protocol=ijbc
--flip=added --log_variances.)
Needs: DATA/ms1m as TFDS ArrayRecord files with the features image and label (the refined MS1M: 5.8
M images, 85,742 identities; README, "Your own training set"), and DATA/lfw with lfw_112.tar and
pairs.txt.
Hardware: 512 images per step for 200 k steps are 102 M images, 18 epochs. At the 4,700 images/s
that InsightFace reports for this network on 8 V100 that is 6 hours there.
Expected: in the paper's Table 1, IJB-C TAR@FAR 1e-5 of 90.62 (cosine), 91.40 (IDA-R), 91.38
(IDA-L).
Command: python -m ida_jax.main --config=configs/ms1m_arcface.py \
    --config.data_dir=DATA --workdir=runs/ms1m_arcface
Variant: configs/ms1m_arcface.py:smoke runs the same code on rendered faces, in a
minute on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("MS1M, ResNet-50, ArcFace")
    c.stages = ("train", "anchors", "ssr", "pfe", "csn", "evaluate")
    c.evaluate.pairs, c.evaluate.template_size = "lfw", 5
    c.train.verify_every = 5_000
    return choose_variant(c, variant)
