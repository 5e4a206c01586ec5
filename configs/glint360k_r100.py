"""ResNet-100 on Glint360K by InsightFace's recipe, then IDA-R and IDA-L.

Reproduces: arcface_torch's glint360k_r100: CosFace with m = 0.4, 512-d, no dropout, batch 1024,
rate 0.1, weight decay 1e-4, 20 epochs, the gradient clipped to 5, BatchNorm per device.
Its bfloat16 is float16 there. The rate falls linearly, as by arcface_torch's present
PolynomialLRWarmup; with its former PolyScheduler it is --config.train.schedule=polynomial.
Needs: DATA/glint360k with train.rec, train.idx and lfw.bin, cfp_fp.bin, agedb_30.bin as
released (17,091,657 images, 360,232 identities), and DATA/lfw with lfw_112.tar and pairs.txt.
Hardware: 20 epochs are 342 M images, with twice the arithmetic of ResNet-50, for which InsightFace
reports 4,800 images/s with 125 k classes on 8 V100: 40 hours there.
Expected: in InsightFace's model zoo, cosine's TAR on IJB-C:
97.55 % at FAR 1e-4 and 96.38 % at 1e-5
(arcface_torch's README). Nothing was trained here, and IDA was not tried on it.
Command: python -m ida_jax.main --config=configs/glint360k_r100.py \
    --config.data_dir=DATA --workdir=runs/glint360k_r100
Variant: configs/glint360k_r100.py:smoke runs the same code on rendered faces, in one to two
minutes on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("Glint360K, ResNet-100, InsightFace's recipe")
    c.train_data = ConfigDict({"name": "recordio", "dataset": "glint360k"})
    c.verify_data = tuple(f"glint360k/{x}.bin" for x in ("lfw", "cfp_fp", "agedb_30"))
    c.model.network = "iresnet100"
    c.model.options.update({"embedding_dim": 512, "dropout_rate": 0.0})
    c.train.head, c.train.margin = "cosface", 0.4
    c.train.batch_norm, c.train.clip_norm = "per_device", 5.0
    c.train.schedule, c.train.verify_every = "linear", 2_000
    c.train.batch_size, c.train.learning_rate = 1024, 0.1
    c.train.weight_decay, c.train.epochs = 1e-4, 20.0
    c.evaluate.pairs = "lfw"
    return choose_variant(c, variant)
