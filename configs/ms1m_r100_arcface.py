"""ResNet-100 with ArcFace on MS-Celeb-1M, then IDA-R and IDA-L.

Reproduces: the model of Table 3 (MegaFace). (Trained model and modules, looked at on LFW;
then MegaFace by ida_jax.embed --flip and ida_jax.evaluate --protocol=megaface.)
Needs: DATA/ms1m as TFDS ArrayRecord files with the features image and label (the refined MS1M: 5.8
M images, 85,742 identities; README, "Your own training set"), and DATA/lfw with lfw_112.tar and
pairs.txt.
Hardware: 512 images per step for 200 k steps are 102 M images, with twice the arithmetic of
ResNet-50: 12 hours at half the speed that InsightFace reports for that one on 8 V100. For TPUs:
ida-jax plan --config=configs/ms1m_r100_arcface.py --topology=v5e:4x4 --classes=85742
Expected: in the paper's Table 3, rank-1 at 10⁶ distractors of 98.30 (cosine), 98.56 (IDA-R), 98.54
(IDA-L).
Command: python -m ida_jax.main --config=configs/ms1m_r100_arcface.py \
    --config.data_dir=DATA --workdir=runs/ms1m_r100_arcface
Variant: configs/ms1m_r100_arcface.py:smoke runs the same code on rendered faces, in one
to two minutes on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("MS1M, ResNet-100, ArcFace")
    c.model.network = "iresnet100"
    c.evaluate.pairs = "lfw"
    c.train.verify_every = 5_000
    return choose_variant(c, variant)
