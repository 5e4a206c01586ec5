"""ResNet-100 on WebFace42M with Partial FC by InsightFace's recipe, then IDA-R and IDA-L.

Reproduces: arcface_torch's wf42m_pfc02_r100: CosFace with m = 0.4, a fifth of the classes a step,
512-d, no dropout, batch 1024, rate 0.1, 20 epochs, the gradient clipped to 5, BatchNorm per device.
Its bfloat16 is float16 there. The rate falls linearly, as by arcface_torch's present
PolynomialLRWarmup; with its former PolyScheduler it is --config.train.schedule=polynomial.
Needs: DATA/WebFace42M with train.rec, train.idx and lfw.bin, cfp_fp.bin, agedb_30.bin as
released (42,474,557 images, 2,059,906 identities), and DATA/lfw with lfw_112.tar and pairs.txt.
Hardware: 20 epochs are 849 M images, with twice the arithmetic of ResNet-50, for which InsightFace
reports 4,738 images/s with 1.4 M classes and Partial FC 0.1 on 8 V100: 4 days there. Class weights
and momentum take 8.4 GB over all devices; the records are read where they lie.
Expected: in InsightFace's model zoo, cosine's TAR on IJB-C:
97.70 % at FAR 1e-4 and 96.31 % at 1e-5
(arcface_torch's README). Nothing was trained here, and IDA was not tried on it.
Command: python -m ida_jax.main --config=configs/webface42m_r100_pfc02.py \
    --config.data_dir=DATA --workdir=runs/webface42m_r100_pfc02
Variant: configs/webface42m_r100_pfc02.py:smoke runs the same code on rendered faces, in one to two
minutes on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("WebFace42M, ResNet-100, Partial FC 0.2")
    c.train_data = ConfigDict({"name": "recordio", "dataset": "WebFace42M"})
    c.verify_data = tuple(f"WebFace42M/{x}.bin" for x in ("lfw", "cfp_fp", "agedb_30"))
    c.model.network = "iresnet100"
    c.model.options.update({"embedding_dim": 512, "dropout_rate": 0.0})
    c.train.head, c.train.margin = "cosface", 0.4
    c.train.batch_norm, c.train.clip_norm = "per_device", 5.0
    c.train.schedule = "linear"
    c.train.batch_size, c.train.learning_rate = 1024, 0.1
    c.train.sample_rate, c.train.class_block = 0.2, 65_536
    c.train.epochs, c.train.workers = 20.0, 8
    c.train.verify_every = 10_000
    c.evaluate.pairs = "lfw"
    return choose_variant(c, variant)
