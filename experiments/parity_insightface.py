"""How far this project is from InsightFace's published formulas, item by item.

Command: PYTHONPATH=. python experiments/parity_insightface.py \
    --output=experiments/results/parity_insightface.json

Theirs are the float64 transcriptions and the networks built from the published descriptions that
the tests compare with (tests/), of arcface_torch at commit 3c95e6c; no code of theirs is run. Each
item is measured as its test measures it. The networks are compared in float32, from which float64
tells rounding and a difference of the functions apart, both ours and theirs being run in it too.
Two minutes on one CPU core.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(_TESTS / room) for room in (".", "ops", "interop", "metrics", "protocols")]

import reference_insightface as theirs  # noqa: E402

from ida_jax.common.files import json_text, written_whole  # noqa: E402
from ida_jax.common.provenance import provenance  # noqa: E402

Item = dict[str, Any]
RATE, STEPS = 0.1, 1000
SIDE = 112


def margins() -> Iterator[Item]:
    from ida_jax.ops import margin

    cosines = np.linspace(-math.cos(0.51), 1, 1001, dtype=np.float32)  # where θ + m ≤ π
    heads: dict[str, tuple[tuple[float, float, float], Callable]] = {
        "arcface, straight_through": (
            (1.0, 0.5, 0.0),
            lambda c: margin.arcface(c, scale=64.0, margin=0.5, straight_through=True),
        ),
        "cosface": ((1.0, 0.0, 0.4), lambda c: margin.cosface(c, scale=64.0, margin=0.4)),
    }
    for name, (listed, ours) in heads.items():
        value, vjp = jax.vjp(ours, jnp.asarray(cosines))
        (gradient,) = vjp(jnp.ones_like(value))
        expected = np.array([theirs.margin_logit(c, listed) for c in cosines]) * 64
        for what, found, wanted in zip(
            ("logit", "gradient"), (value, gradient), expected.T, strict=True
        ):
            yield _item(
                f"margin {listed}: {what}", "`losses.py`", f"`train.head={name}`", found, wanted,
                "1,001 cosines, s = 64",
            )  # fmt: skip


def partial_fc() -> Iterator[Item]:
    import test_class_softmax

    steps = list(test_class_softmax.sampled_steps(dense=True))
    for what, place in (("class weights", 2), ("momenta", 3)):
        yield _item(
            f"Partial FC V2: {what}", "`partial_fc_v2.py`", "`train.sample_rule=dense`",
            steps[-1][0][place], steps[-1][1][place],
            f"{len(steps)} steps of SGD, 9 of 20 classes sampled; theirs in float64",
        )  # fmt: skip


def verification() -> Iterator[Item]:
    import test_insightface as made_up

    from ida_jax.data.labelled_pairs import consecutive_pairs
    from ida_jax.protocols.insightface_rule import insightface_figures

    faces, same = made_up._faces(600, 600)
    unit = faces / np.linalg.norm(faces, axis=1, keepdims=True)
    accuracies, rates, _ = theirs.verification(unit[0::2], unit[1::2], same)
    ours = insightface_figures(faces, consecutive_pairs(same, folds=10), xnorm=1.0)
    for what, found, wanted in (
        ("10-fold accuracy", ours["accuracy"], np.mean(accuracies)),
        ("VAL at FAR 1e-3", ours["val@far"]["0.001"], np.mean(rates)),
    ):
        yield _item(
            what, "`eval/verification.py`", "`--rule=insightface`", found, wanted, "600 pairs"
        )


def schedules() -> Iterator[Item]:
    from ida_jax.runs.config import train_section
    from ida_jax.training.optimizer import learning_rate_schedule

    def ours(**changes: Any) -> np.ndarray:
        config = train_section()
        config.update({"learning_rate": RATE, "steps": STEPS, **changes})
        schedule = learning_rate_schedule(config)
        return np.array([float(schedule(jnp.int32(step))) for step in range(STEPS)])

    warmup = 100
    linear = np.array(theirs.learning_rates(RATE, warmup=warmup, total=STEPS))
    yield _item(
        "`PolynomialLRWarmup`, after the warm-up", "`lr_scheduler.py`", "`train.schedule=linear`",
        ours(schedule="linear", warmup_steps=warmup)[warmup:], linear[warmup:],
        f"{STEPS - warmup} rates of 0.1; in the warm-up ours is a step ahead",
    )  # fmt: skip
    square = np.array(theirs.polynomial_rates(RATE, total=STEPS, power=2))
    yield _item(
        "`PolyScheduler`", "`lr_scheduler.py`, before", "`train.schedule=polynomial`",
        ours(schedule="polynomial")[:-1], square[1:],
        f"{STEPS - 1} rates of 0.1; theirs is a step behind",
    )  # fmt: skip


def loss_scaling() -> Iterator[Item]:
    import torch

    from ida_jax.training.loss_scale import adjusted, initial_loss_scale

    rng = np.random.default_rng(0)
    scaler, ours = torch.amp.GradScaler("cpu"), initial_loss_scale()
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    expected, found = [], []
    for overflow in rng.random(10_000) < 3e-4:
        optimizer.zero_grad()
        scaler.scale(weight.sum() * (math.inf if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        ours = adjusted(ours, jnp.bool_(not overflow))
        expected.append(math.log2(scaler.get_scale()))
        found.append(math.log2(float(ours.scale)))
    yield _item(
        "loss scale of float16", "`torch.amp.GradScaler`, run itself",
        "`model.options.dtype=float16`", np.array(found), np.array(expected),
        f"its logarithm over 10,000 steps, {len(set(expected))} different ones",
    )  # fmt: skip


def networks() -> Iterator[Item]:
    """Each network with statistics near its activations', as training leaves them, and far off."""
    import torch_networks
    from test_interop_iresnet import torch_network

    made = {
        "iresnet18": lambda: torch_network("iresnet18", embedding_dim=512, image_size=112),
        "mbf": lambda: torch_networks.filled(torch_networks.MBF()),
        "vit_t": lambda: torch_networks.filled(torch_networks.ViT(12, 256)),
        "ir_se50": lambda: torch_networks.filled(torch_networks.IRSE((3, 4, 14, 3))),
    }
    for near in (True, False):
        for name, build in made.items():
            network = build().eval()
            if near:
                _near_activations(network)
            compared = {"network": name, "near_activations": near, **_compared(network)}
            # In float64 nothing but a difference of the functions is left.
            assert compared["both_in_float64"] < 1e-8, compared
            if near:
                assert max(compared[of] for of in ("from_pth", "from_onnx", "to_onnx")) < 1e-5
            yield compared


def _near_activations(network: Any) -> None:
    """Moves every BatchNorm's statistics, in place, near those of 16 random images' activations.

    Means differ from theirs by up to a tenth of the deviation, variances by up to a fifth.
    """
    import torch

    images = np.random.default_rng(1).normal(size=(16, 3, SIDE, SIDE)).astype(np.float32)
    norms = _batch_norms(network)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0  # one pass gives them the batch's own
            norm.train()
        network(torch.from_numpy(images))
        for norm in norms:
            norm.eval()
            mean, var = norm.running_mean, norm.running_var
            mean.add_(0.2 * var.sqrt() * (torch.rand(mean.shape, generator=generator) - 0.5))
            var.mul_(0.8 + 0.4 * torch.rand(var.shape, generator=generator))


def _batch_norms(network: Any) -> list[Any]:
    import torch

    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    return [module for module in network.modules() if isinstance(module, kinds)]


def _compared(network: Any) -> dict[str, float]:
    """Largest differences of the unit embeddings of two random images; largest BatchNorm input."""
    import torch
    from test_torch_networks import embed, export, random_images, unit

    from ida_jax.artefacts.face_model import build_network
    from ida_jax.interop.exported import largest_difference
    from ida_jax.interop.onnx_export import onnx_bytes, onnx_graph
    from ida_jax.interop.weights import import_model

    images = random_images(SIDE, 2)
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with tempfile.TemporaryDirectory() as folder:
        weights, graph, given, found = (
            Path(folder) / name for name in ("w.pth", "w.onnx", "images.npy", "embeddings.npy")
        )
        torch.save(network.state_dict(), weights)
        export(network, SIDE, graph)
        model, from_onnx = import_model(weights), import_model(graph)
        np.save(given, images)
        script = Path(__file__).with_name("in_float64.py")
        subprocess.run([sys.executable, script, weights, given, found], check=True)
        exactly = unit(np.load(found))
    largest = 0.0

    def look(_: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal largest
        largest = max(largest, float(inputs[0].abs().max()))

    hooks = [norm.register_forward_pre_hook(look) for norm in _batch_norms(network)]
    with torch.no_grad():
        theirs = unit(network(batch).numpy())
        for hook in hooks:
            hook.remove()
        theirs_exactly = unit(network.double()(batch.double()).numpy())
    # Embeddings that hardly depend on the image would show nothing.
    assert np.max(np.abs(theirs[0] - theirs[1])) > 5e-3

    def ours(read: Any) -> np.ndarray:
        module = build_network(read.network, read.network_options)
        return unit(np.asarray(embed(module, read.variables, images)))

    exported = onnx_graph(onnx_bytes(model, output_kind="raw", input="float_nchw"))
    options = {"input": "float_nchw", "output_kind": "raw", "ssr": None, "batch": 2}
    from_pth = ours(model)
    differences = {
        "from_pth": from_pth - theirs,
        "from_onnx": ours(from_onnx) - theirs,
        "ours_from_float64": from_pth - exactly,
        "theirs_from_float64": theirs - theirs_exactly,
        "both_in_float64": exactly - theirs_exactly,
    }
    return {name: float(np.max(np.abs(of))) for name, of in differences.items()} | {
        "to_onnx": float(largest_difference(exported, model, **options)),
        "largest_activation": largest,
    }


def alignment() -> Iterator[Item]:
    from skimage.transform import SimilarityTransform

    from ida_jax.data.alignment import ARCFACE_POINTS, similarity_transform

    rng = np.random.default_rng(0)
    faces = ARCFACE_POINTS * rng.uniform(0.3, 6, (500, 1, 1)) + rng.normal(0, 8, (500, 5, 2))
    expected = [SimilarityTransform.from_estimate(f, ARCFACE_POINTS).params[:2] for f in faces]
    yield _item(
        "alignment by five points", "`face_align.py`: scikit-image, run itself",
        "`--landmarks`", similarity_transform(faces), np.array(expected),
        "the transforms' entries, 500 faces",
    )  # fmt: skip


def templates() -> Iterator[Item]:
    import test_ijb
    from ijb_release import write_release

    from ida_jax.protocols.ijb import evaluate_ijb
    from ida_jax.protocols.ijb_files import read_galleries, read_ijb
    from ida_jax.rescoring.methods import make_scorers

    with tempfile.TemporaryDirectory() as folder:
        release = Path(folder) / "release"
        write_release(release, test_ijb.SIZE)
        meta = read_ijb(release, subset="ijbc")
        galleries = read_galleries(release, subset="ijbc", template_ids=meta.template_ids)
        raw = np.load(release / "embeddings.npy")
        evaluated = evaluate_ijb(
            raw, meta, make_scorers(("cosine",), None), subset="ijbc", galleries=galleries,
            join_galleries=True, resamples=0,
        )  # fmt: skip
    slow = test_ijb._pooled_slowly(raw, meta.templates, meta.media, meta.detector, unit=False)
    slow /= np.linalg.norm(slow, axis=1, keepdims=True)
    rows, people = (np.concatenate(c) for c in zip(*galleries.galleries.values(), strict=True))
    mates = [people.tolist().index(person) for person in galleries.probes.subjects]
    ranks, tpir = theirs.identification(slow[galleries.probes.rows] @ slow[rows].T, mates)
    ours = evaluated["ijbc_1toN_joined_norm_detector"].figures["cosine"]
    found = [*(ours["rank"][str(k)] for k in ranks), *(ours["tpir@fpir"][f"{f:g}"] for f in tpir)]
    yield _item(
        "IJB-C templates, 1:N: ranks and TPIR", "`ijb_1n.py`", "`--galleries=joined`",
        np.array(found), np.array([*ranks.values(), *tpir.values()]),
        f"a made-up release, {test_ijb.SIZE.templates} templates",
    )  # fmt: skip


def _item(item: str, whose: str, option: str, found: Any, wanted: Any, measured: str) -> Item:
    difference = np.max(np.abs(np.asarray(found, np.float64) - np.asarray(wanted, np.float64)))
    return {
        "item": item,
        "theirs": whose,
        "ours": option,
        "largest_difference": float(difference),
        "largest_value": float(np.max(np.abs(wanted))),
        "measured": measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    parts = (margins, partial_fc, verification, schedules, loss_scaling, alignment, templates)
    record = {
        "items": [item for part in parts for item in part()],
        "networks": list(networks()),
        "provenance": provenance(),
    }
    with written_whole(options.output) as temporary:
        temporary.write_text(json_text(record), encoding="utf-8")


if __name__ == "__main__":
    main()
