"""ResNet-50 on MS1MV3 by InsightFace's recipe, then IDA-R and IDA-L.

Reproduces: arcface_torch's ms1mv3_r50: ArcFace with m = 0.5 and its gradient, 512-d, no dropout,
batch 1024, rate 0.2, 25 epochs, 2 of them warm-up, the gradient clipped to 5, BatchNorm per device.
Its bfloat16 is float16 there. The rate falls linearly, as by arcface_torch's present
PolynomialLRWarmup; with its former PolyScheduler it is --config.train.schedule=polynomial.
Needs: DATA/ms1m-retinaface-t1 with train.rec, train.idx and lfw.bin, cfp_fp.bin, agedb_30.bin as
released (5,179,510 images, 93,431 identities), and DATA/lfw with lfw_112.tar and pairs.txt.
Hardware: 25 epochs are 129 M images: at the 4,800 images/s that InsightFace
reports for this network and 125 k classes on 8 V100 that is 7.5 hours there.
Expected: in InsightFace's model zoo, cosine's TAR on IJB-C:
96.37 % at FAR 1e-4 and 94.47 % at 1e-5
(arcface_torch's README). Nothing was trained here, and IDA was not tried on it.
Command: python -m ida_jax.main --config=configs/ms1mv3_r50.py \
    --config.data_dir=DATA --workdir=runs/ms1mv3_r50
Variant: configs/ms1mv3_r50.py:smoke runs the same code on rendered faces, in one to two
minutes on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("MS1MV3, ResNet-50, InsightFace's recipe")
    c.train_data = ConfigDict({"name": "recordio", "dataset": "ms1m-retinaface-t1"})
    c.verify_data = tuple(f"ms1m-retinaface-t1/{x}.bin" for x in ("lfw", "cfp_fp", "agedb_30"))
    c.model.options.update({"embedding_dim": 512, "dropout_rate": 0.0})
    c.train.head, c.train.margin, c.train.straight_through = "arcface", 0.5, True
    c.train.batch_norm, c.train.clip_norm = "per_device", 5.0
    c.train.schedule, c.train.verify_every = "linear", 2_000
    c.train.batch_size, c.train.learning_rate = 1024, 0.2
    c.train.epochs, c.train.warmup_epochs = 25.0, 2.0
    c.evaluate.pairs = "lfw"
    return choose_variant(c, variant)
