"""ResNet-50 on WebFace4M by InsightFace's recipe, then IDA-R and IDA-L.

Reproduces: arcface_torch's training of this network on this set: CosFace with m = 0.4, 512-d, no
dropout, batch 1024, linear decay over 20 epochs, the backbone's gradient clipped to 5, BatchNorm
per device.
Needs: DATA/webface4m as TFDS ArrayRecord files with the features image and label (4,235,242
images, 205,990 identities; README, "Your own training set"), and DATA/lfw with lfw_112.tar and
pairs.txt.
Hardware: 1,024 images per step for 82,720 steps are 85 M images. At the 4,800 images/s that
InsightFace reports for this network and 125 k classes on 8 V100 that is 5 hours there.
Expected: nobody has published a figure for this network on this set, nor has it been trained here.
InsightFace's model zoo brackets it by cosine's TAR on IJB-C: R100 on WF4M has 97.19 % at FAR 1e-4
and 95.48 % at 1e-5, R50 on MS1MV3 96.37 % and 94.47 % (arcface_torch's README). IDA was not tried
on it.
Command: python -m ida_jax.main --config=configs/webface_r50_insightface.py \
    --config.data_dir=DATA --workdir=runs/webface_r50_insightface
Variant: configs/webface_r50_insightface.py:smoke runs the same code on rendered faces, in a
minute on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("WebFace4M, ResNet-50, InsightFace's recipe")
    c.train_data.dataset = "webface4m"
    c.model.options.update({"embedding_dim": 512, "dropout_rate": 0.0})
    c.train.head, c.train.margin = "cosface", 0.4
    c.train.batch_size, c.train.batch_norm = 1024, "per_device"
    c.train.steps, c.train.schedule = 82_720, "linear"
    c.train.clip_norm = 5.0
    c.train.verify_every = 2_000
    c.evaluate.pairs = "lfw"
    return choose_variant(c, variant)
