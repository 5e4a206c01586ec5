"""ResNet-18 with ArcFace on CASIA-WebFace, then IDA-R, IDA-L and PFE.

Reproduces: the LFW column of Table 2.
Needs: DATA/casia_webface as TFDS ArrayRecord files with the features image and label (0.49 M
images, 10,572 identities; README, "Your own training set"), and DATA/lfw with lfw_112.tar and
pairs.txt.
Hardware: 512 images per step for 40 k steps are 20 M images, 42 epochs, with 2/5 of ResNet-50's
arithmetic: some half an hour at the rate that InsightFace reports for that one on 8 V100.
Expected: in the paper's Table 2, LFW accuracy of 98.73 (cosine), 99.03 (IDA-R), 98.98 (IDA-L).
Command: python -m ida_jax.main --config=configs/casia_r18_arcface.py \
    --config.data_dir=DATA --workdir=runs/casia_r18_arcface
Variant: configs/casia_r18_arcface.py:smoke runs the same code on rendered faces, in a
minute on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("CASIA-WebFace, ResNet-18, ArcFace")
    c.stages = ("train", "anchors", "ssr", "pfe", "csn", "evaluate")
    c.train_data.dataset = "casia_webface"
    c.model.network = "iresnet18"
    c.train.steps, c.train.decay_steps = 40_000, (20_000, 30_000, 35_000)
    c.train.checkpoint_every = c.train.verify_every = 2_000
    c.pfe.steps, c.pfe.decay_steps = 3_000, (2_000,)
    # 10,572 identities give no more anchors than that.
    c.anchors.size = 10_000
    c.evaluate.pairs, c.evaluate.template_size = "lfw", 5
    return choose_variant(c, variant)
