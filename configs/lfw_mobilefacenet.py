"""The main job on real faces, from the first pixel to the last score: train, then IDA, on LFW.

Trains MobileFaceNet with ArcFace on the 6,311 images of LFW's anchor half and evaluates on the eval
half. The set is a thousandth of MS1M: the figures show that the road holds, not what IDA can do.
Needs: DATA/lfw/lfw_112.tar and split.csv.
Hardware: 2 CPU cores, about half an hour.
Command: python -m ida_jax.main --config=configs/lfw_mobilefacenet.py \
    --config.data_dir=DATA --workdir=runs/lfw_mobilefacenet
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.title = "LFW, MobileFaceNet trained on its anchor half"
    c.seed = 0
    c.stages = ("train", "anchors", "ssr", "csn", "evaluate")
    c.data_dir = "data"
    c.k = 10
    c.tau = 1.0
    c.searcher = "auto"
    c.flip = True

    c.train_data = ConfigDict({"name": "lfw", "role": "anchor"})
    c.eval_data = ConfigDict({"name": "lfw", "role": "eval", "images_per_identity": 10})

    c.model = ConfigDict()
    c.model.network = "mobilefacenet"
    c.model.options = ConfigDict({"embedding_dim": 128})
    c.model.image_size = 112
    c.model.mean = c.model.std = (0.5, 0.5, 0.5)

    c.train = ConfigDict()
    c.train.head = "arcface"
    c.train.scale = 32.0
    c.train.margin = 0.2
    c.train.batch_size = 64
    c.train.steps = 600
    c.train.learning_rate = 0.05
    c.train.decay_steps = (400, 540)
    c.train.decay_factor = 0.1
    c.train.momentum = 0.9
    c.train.weight_decay = 5e-4
    c.train.checkpoint_every = 100
    c.train.log_every = 20

    c.anchors = ConfigDict({"source": "real_db", "size": 50_000})

    c.ssr = ConfigDict()
    c.ssr.hidden = 128
    c.ssr.target = "standardised"
    c.ssr.batch_size = 512
    c.ssr.steps = 30_000
    c.ssr.learning_rate = 1e-3
    c.ssr.decay_steps = (15_000, 20_000, 25_000)
    c.ssr.decay_factor = 0.1
    c.ssr.momentum = 0.9
    c.ssr.weight_decay = 5e-4

    c.csn = ConfigDict({"top_n": 100, "degree": 3})

    c.evaluate = ConfigDict()
    c.evaluate.methods = (
        "cosine", "ida_r", "ida_r_fallback", "ida_l", "s_norm", "as_norm", "csn"
    )  # fmt: skip
    c.evaluate.top_n = 300
    c.evaluate.fars = (1e-3, 1e-4, 1e-5, 1e-6)
    c.evaluate.pairs = "drawn"
    c.evaluate.folds = 10
    return c
