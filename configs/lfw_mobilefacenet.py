"""The main job on real faces, from the first pixel to the last score: train, then IDA, on LFW.

Trains MobileFaceNet with ArcFace on the 6,311 images of LFW's anchor half and evaluates on the eval
half. The set is a thousandth of MS1M: the figures show that the road holds, not what IDA can do.
Needs: DATA/lfw/lfw_112.tar and split.csv.
Hardware: 2 CPU cores, about half an hour.
Command: python -m ida_jax.main --config=configs/lfw_mobilefacenet.py \
    --config.data_dir=DATA --workdir=runs/lfw_mobilefacenet
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("LFW, MobileFaceNet trained on its anchor half")
    c.train_data = ConfigDict({"name": "lfw", "role": "anchor"})
    c.eval_data = ConfigDict({"name": "lfw", "role": "eval", "images_per_identity": 10})

    c.model.network = "mobilefacenet"
    c.model.options = ConfigDict({"embedding_dim": 128})

    c.train.scale, c.train.margin = 32.0, 0.2
    c.train.batch_size = 64
    c.train.learning_rate = 0.05
    c.train.steps, c.train.decay_steps = 600, (400, 540)
    c.train.checkpoint_every, c.train.log_every = 100, 20

    c.ssr.hidden = 128
    return choose_variant(c, variant)
