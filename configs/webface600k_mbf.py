"""arcface_torch's MobileFaceNet on WebFace600K, then IDA-R and IDA-L.

Reproduces: the recognition network of InsightFace's package buffalo_s, MBF@WebFace600K, whose own
config is not published. The settings are those of arcface_torch's wf12m_mbf, WebFace12M having as
many identities: CosFace with m = 0.4, 512-d, batch 1024, rate 0.1, weight decay 1e-4, 20 epochs,
the gradient clipped to 5, BatchNorm per device. Its bfloat16 is float16 there. The rate falls
linearly, as by arcface_torch's present PolynomialLRWarmup.
Needs: DATA/WebFace600K with train.rec, train.idx and lfw.bin, cfp_fp.bin, agedb_30.bin (as
WebFace12M: 12,720,066 images, 617,970 identities), and DATA/lfw with lfw_112.tar and pairs.txt.
Hardware: 20 epochs are 254 M images, at 0.45 GFLOP each a fourteenth of ResNet-50's arithmetic, so
that reading and decoding them may be what takes time. InsightFace reports no throughput. Class
weights and momentum take 2.5 GB over all devices.
Expected: in InsightFace's model zoo, cosine's 95.02 % TAR at FAR 1e-4 on IJB-C and 99.70 % accuracy
on LFW (the Python package's buffalo_s). Nothing was trained here, and IDA was not tried on it.
Command: python -m ida_jax.main --config=configs/webface600k_mbf.py \
    --config.data_dir=DATA --workdir=runs/webface600k_mbf
Variant: configs/webface600k_mbf.py:smoke runs the same code on rendered faces, in one to two
minutes on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("WebFace600K, MobileFaceNet, InsightFace's recipe")
    c.train_data = ConfigDict({"name": "recordio", "dataset": "WebFace600K"})
    c.verify_data = tuple(f"WebFace600K/{x}.bin" for x in ("lfw", "cfp_fp", "agedb_30"))
    c.model.network = "mbf"
    c.model.options = ConfigDict({"embedding_dim": 512, "dtype": "bfloat16"})
    c.train.head, c.train.margin = "cosface", 0.4
    c.train.batch_norm, c.train.clip_norm = "per_device", 5.0
    c.train.schedule = "linear"
    c.train.batch_size, c.train.learning_rate, c.train.weight_decay = 1024, 0.1, 1e-4
    c.train.epochs, c.train.workers = 20.0, 8
    c.train.verify_every = 10_000
    c.evaluate.pairs = "lfw"
    return choose_variant(c, variant)
