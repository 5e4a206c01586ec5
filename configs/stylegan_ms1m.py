"""The paper's fake-db: a StyleGAN of MS-Celeb-1M, and IDA-R and IDA-L with 50,000 of its faces.

Reproduces: Table 4's fake-db row and, with it, the paper's default anchors (section 4.1), behind
the model of configs/ms1m_arcface.py. The generator is StyleGAN2 with adaptive augmentation in place
of StyleGAN, at 128 px, cut to the crops' 112.
Needs: DATA/ms1m as for configs/ms1m_arcface.py, and that run's model.safetensors:
--config.model.weights=PATH (from DATA, or absolute). WORKDIR/anchors/anchors.safetensors is then
for `ida-jax rescore` and, with IJB-B, `evaluate`.
Hardware: 25 M images, which take StyleGAN2-ADA's authors 4 days at 128 px on one V100 and 30 hours
on eight, "quite reasonable" after a fifth of it; not measured here on any GPU.
Expected: in the paper's Table 4, IJB-B TAR@FAR 1e-5 of 87.89 with the fake-db, 87.86 with the
real-db, 85.50 by the cosine.
Command: python -m ida_jax.main --config=configs/stylegan_ms1m.py \
    --config.data_dir=DATA --config.model.weights=$PWD/runs/ms1m_arcface/model.safetensors \
    --workdir=runs/stylegan_ms1m
Variant: configs/stylegan_ms1m.py:smoke trains a backbone first, and runs the same code on rendered
faces, in under two minutes on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("MS1M, StyleGAN2, the fake-db")
    c.stages = ("import", "gan", "anchors", "ssr", "evaluate")
    c.model.weights = "ms1m_arcface/model.safetensors"
    c.anchors.source = "fake_db"
    c.evaluate.methods = ("cosine", "ida_r", "ida_r_fallback", "ida_l")
    c.evaluate.pairs, c.evaluate.template_size = "lfw", 0
    c = choose_variant(c, variant)
    if variant:
        # With a backbone of its own, which is not what this config is about, and a generator that
        # has learned enough for a few of its faces to pass as such.
        c.stages = ("train", *c.stages[1:])
        c.model.network = "iresnet_nano"
        c.train_data.update(identities=60, images_per_identity=6)
        c.train.update(batch_size=32, steps=60, decay_steps=(40, 55), checkpoint_every=60)
        c.gan.update(steps=300, evaluate_every=150, evaluate_faces=128, checkpoint_every=150)
        c.gan.update(path_every=4, r1_every=16, log_every=50, ema_images=500)
        c.anchors.size = 32
    return c
