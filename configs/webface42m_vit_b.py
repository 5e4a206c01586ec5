"""ViT-B on WebFace42M with AdamW and Partial FC by InsightFace's recipe, then IDA-R and IDA-L.

Reproduces: arcface_torch's wf42m_pfc03_40epoch_64gpu_vit_b: CosFace with m = 0.4, three tenths of
the classes a step, 512-d, batch 24,576, AdamW at rate 0.001 with weight decay 0.1, 40 epochs, 4 of
them warm-up, the gradient clipped to 5, BatchNorm per device, blocks computed again in the backward
pass. The network is its vit_b_dp005_mask_005, which leaves out a tenth of the tokens whatever its
name says. Its bfloat16 is float16 there. The rate falls linearly, as by PolynomialLRWarmup.
Needs: DATA/WebFace42M with train.rec, train.idx and lfw.bin, cfp_fp.bin, agedb_30.bin as
released (42,474,557 images, 2,059,906 identities), and DATA/lfw with lfw_112.tar and pairs.txt.
Hardware: 40 epochs are 1,699 M images: at the 13,800 images/s that InsightFace reports on 64 GPUs
that is 34 hours there. Class weights and both moments take 12.7 GB over all devices; the records
are read where they lie.
Expected: in InsightFace's model zoo, cosine's TAR on IJB-C:
97.90 % at FAR 1e-4 and 97.04 % at 1e-5
(arcface_torch's README). Nothing was trained here, and IDA was not tried on it.
Command: python -m ida_jax.main --config=configs/webface42m_vit_b.py \
    --config.data_dir=DATA --workdir=runs/webface42m_vit_b
Variant: configs/webface42m_vit_b.py:smoke runs the same code on rendered faces, in one to two
minutes on a CPU.
"""

from ml_collections import ConfigDict

from ida_jax.runs.config import choose_variant, run_section


def get_config(variant: str = "") -> ConfigDict:
    c = run_section("WebFace42M, ViT-B, AdamW, Partial FC 0.3")
    c.train_data = ConfigDict({"name": "recordio", "dataset": "WebFace42M"})
    c.verify_data = tuple(f"WebFace42M/{x}.bin" for x in ("lfw", "cfp_fp", "agedb_30"))
    c.model.network = "vit_b"
    c.model.options = ConfigDict(
        {"embedding_dim": 512, "drop_path_rate": 0.05, "mask_ratio": 0.1, "dtype": "bfloat16"}
    )
    c.train.head, c.train.margin = "cosface", 0.4
    c.train.batch_norm, c.train.clip_norm = "per_device", 5.0
    c.train.optimizer, c.train.schedule = "adamw", "linear"
    c.train.batch_size, c.train.learning_rate, c.train.weight_decay = 24_576, 0.001, 0.1
    c.train.sample_rate, c.train.class_block = 0.3, 65_536
    c.train.epochs, c.train.warmup_epochs = 40.0, 4.0
    c.train.remat, c.train.workers = True, 8
    c.train.verify_every = 2_000
    c.evaluate.pairs = "lfw"
    return choose_variant(c, variant)
