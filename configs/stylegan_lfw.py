"""A generator of faces from LFW's anchor half, and IDA-R with its fake-db on the eval half.

Reproduces: Table 4's fake-db row at small scale. A StyleGAN2 of 64 px with adaptive augmentation
learns from the 6,311 faces of the anchor half; the anchors are faces that it makes, and the eval
half is only evaluated, behind a given MobileFaceNet.
Needs: DATA/lfw/lfw_112.tar and split.csv, DATA/weights/mobilefacenet.npz.
Hardware: 2 CPU cores, about an hour for 8,000 steps of 16 faces, which are few for a generator.
Expected: a Fréchet distance of .31 in the model's embedding space, still falling (real people's to
other real people is .02); TAR@FAR 1e-4 of .972 with the faces aligned, as with the real-db, .960
with them as they come, .970 by the cosine (experiments/results/table4_small.md).
Command: python -m ida_jax.main --config=configs/stylegan_lfw.py \
    --config.data_dir=DATA --workdir=runs/stylegan_lfw
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import run_section


def get_config(variant: str = "") -> ConfigDict:
    if variant:
        raise ValueError(
            f"variant '{variant}' is unknown: the weights are given, so there are no variants"
        )
    c = run_section("LFW, a StyleGAN2 of its anchor half")
    c.stages = ("import", "gan", "anchors", "evaluate")
    c.flip = False

    c.train_data = ConfigDict({"name": "lfw", "role": "anchor"})
    c.eval_data = ConfigDict({"name": "lfw", "role": "eval", "images_per_identity": 10})

    c.model.weights = "weights/mobilefacenet.npz"
    c.model.network = "mobilefacenet"
    c.model.options = ConfigDict({"embedding_dim": 128})
    c.model.mean = (0.485, 0.456, 0.406)
    c.model.std = (0.229, 0.224, 0.225)

    # At 64 px a real face is embedded as one of 112 px; at 32 it is not, and IDA gains nothing.
    c.gan.update(resolution=64, latent_dim=128, style_dim=128, channel_base=1024, channel_max=128)
    c.gan.update(dtype="float32", batch_size=16, steps=8_000)
    # What StyleGAN2-ADA leaves out where images are few and small.
    c.gan.path_weight, c.gan.style_mixing = 0.0, 0.0
    c.gan.r1_weight, c.gan.ema_images = 0.1, 3_000
    c.gan.augment_images = 100_000
    c.gan.evaluate_every, c.gan.evaluate_faces = 1_000, 2_000
    c.gan.checkpoint_every, c.gan.log_every = 500, 50

    c.anchors.source, c.anchors.size = "fake_db", 2_870
    # So short a training leaves its faces apart from real ones, which cost TAR as they come.
    c.anchors.align = True
    c.evaluate.methods = ("cosine", "ida_r", "ida_r_fallback")
    c.evaluate.sweeps = False
    return c
