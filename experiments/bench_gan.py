"""A StyleGAN2 training step, ours beside PyTorch's.

Command: PYTHONPATH=. python experiments/bench_gan.py [--small] [--variants=plain,…]
Prints one JSON. --small is for a CPU: the networks of configs/stylegan_lfw.py, 64 px, batch 16;
without it the settings are those of a GPU, `gan_section`'s: 128 px, batch 64, bfloat16. Needs jax,
flax, optax, and torch for the peer; nothing else that ida_jax's own training reads its data and
configs with.

ours: the updates of `ida_jax.main`'s stage gan (`make_gan_program`), on one device.
torch: the same networks and phases in plain PyTorch (torch_stylegan.py), without kernels of its
  own: up-convolutions are transposed convolutions and a blur, which take a quarter of our
  up-convolution's products; cudnn.benchmark, TF32 wherever float32 is left, fused Adam.
  --torch-compile-mode compiles its phases that need no second derivatives.

A round is --steps steps, each with the copy of its uint8 images from the host: a multiple of 16, so
that lazy regularisation is in it as often as in a training (path length every 4 steps on half a
batch, R1 every 16). Both run in processes of their own, in turn, ours and PyTorch's in one round;
figures are medians of the rounds, `ratio` the median of each round's ratio of images/s.

Each variant of ours is "plain" or changes of the config's section gan, joined by +:
augment_target=0.6 is with adaptive augmentation, which plain and the peer are without. Others are
path_weight=0, dtype=float32, …. The peer keeps the plain settings.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import plain_config  # noqa: F401
from bench_train import _rounds
from workers import Failed, Worker, peak_resident_bytes, torch_answers, torch_device

_SIZES = ("resolution", "latent_dim", "style_dim", "mapping_layers", "channel_base", "channel_max")


def _config(options: dict[str, Any], variant: str = "plain") -> Any:
    from ida_jax.runs.config import gan_section

    config = gan_section()
    config.augment_target = 0.0
    for name in (*_SIZES, "batch_size", "dtype"):
        config[name] = options[name]
    for change in [] if variant == "plain" else variant.split("+"):
        name, _, text = change.partition("=")
        if name not in config:
            raise ValueError(f"variant '{variant}': the section gan has no '{name}'")
        config[name] = type(config[name])(text)
    return config


def _images(options: dict[str, Any]) -> list[np.ndarray]:
    """Two batches of noise, so that a copy of one can pass while the other is in use."""
    rng = np.random.default_rng(0)
    side = options["resolution"]
    shape = (options["batch_size"], side, side, 3)
    return [rng.integers(0, 256, shape, np.uint8) for _ in range(2)]


def ours(options: dict[str, Any], variant: str) -> dict[str, Callable]:
    """Our updates on one device, compiled."""
    import jax

    from ida_jax.common.devices import batch_sharding, put_batch, training_mesh
    from ida_jax.planning.flops import count_flops
    from ida_jax.training.gan_step import make_gan_program

    config = _config(options, variant)
    mesh = training_mesh(1, devices=jax.devices()[:1])
    program = make_gan_program(config, seed=0, mesh=mesh)
    batches = _images(options)
    batch = jax.ShapeDtypeStruct(batches[0].shape, np.uint8, sharding=batch_sharding(mesh))
    updates = {
        "generator": (program.generator, (program.state,), 1),
        "discriminator": (program.discriminator, (program.state, batch), 1),
        "r1": (program.r1, (program.state, batch), config.r1_every),
    }
    if config.path_weight:
        updates["path_length"] = (program.path_length, (program.state,), config.path_every)
    start = time.perf_counter()
    traced = {name: (f.trace(*given), every) for name, (f, given, every) in updates.items()}
    compiled = {name: update.lower().compile() for name, (update, _) in traced.items()}
    compile_seconds = time.perf_counter() - start
    state = program.init()

    def run(steps: int, source: str) -> float:
        nonlocal state
        jax.block_until_ready(state)
        start = time.perf_counter()
        for number in range(steps):
            images = put_batch(batches[number % 2], mesh)
            # In the order of `ida_jax.training.gan`.
            state, losses = compiled["generator"](state)
            if config.path_weight and number % config.path_every == 0:
                state = compiled["path_length"](state)
            state, new = compiled["discriminator"](state, images)
            if number % config.r1_every == 0:
                state = compiled["r1"](state, images)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        _check_finite(losses | new)
        return seconds

    def memory() -> dict[str, int | None]:
        analyses = [update.memory_analysis() for update in compiled.values()]
        stats = jax.devices()[0].memory_stats() or {}
        return {
            "peak_device_bytes": stats.get("peak_bytes_in_use"),
            "peak_resident_bytes": peak_resident_bytes(),
            "state_bytes": analyses[0].argument_size_in_bytes,
            "temporary_bytes": max(analysis.temp_size_in_bytes for analysis in analyses),
        }

    def describe() -> dict[str, Any]:
        flops = sum(count_flops(update.jaxpr).flops / every for update, every in traced.values())
        return {
            "compile_seconds": compile_seconds,
            "flops_per_image": flops / config.batch_size,
        }

    return {"run": run, "memory": memory, "describe": describe}


def torch_peer(options: dict[str, Any]) -> dict[str, Callable]:
    """The same step in PyTorch."""
    import torch
    from torch_stylegan import Training

    device = torch_device()
    training = Training(
        {name: options[name] for name in _SIZES},
        _config(options),
        dtype=getattr(torch, options["dtype"]),
        device=device,
        compile_mode=options["torch_compile_mode"],
    )
    batches = [torch.from_numpy(images) for images in _images(options)]
    if device == "cuda":
        batches = [images.pin_memory() for images in batches]
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def run(steps: int, source: str) -> float:
        synchronize()
        start = time.perf_counter()
        for number in range(steps):
            images = batches[number % 2].to(device, non_blocking=True)
            losses = training.step(number, images)
        synchronize()
        seconds = time.perf_counter() - start
        _check_finite(losses)
        return seconds

    return torch_answers(run, device, compile_seconds=run(1, "host"))


def _check_finite(losses: dict[str, Any]) -> None:
    for name, value in losses.items():
        if not np.isfinite(float(value)):
            raise ValueError(f"{name} is not finite")


def machine(options: dict[str, Any]) -> dict[str, Callable]:
    """The device and what it can do."""

    def describe() -> dict[str, Any]:
        from ida_jax.common.provenance import provenance
        from ida_jax.planning.topology import peak_flops

        peak = None
        # A CPU's name is in no table.
        with contextlib.suppress(KeyError):
            peak = peak_flops(options["dtype"])
        return {"data_sheet_flops": peak, "provenance": provenance()}

    return {"describe": describe}


def _measured(
    options: argparse.Namespace, variant: str, peer: Worker | None, peak: float | None
) -> dict[str, Any]:
    """A variant's record."""
    # Both processes share the device's memory.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    record: dict[str, Any] = {"variant": variant}
    try:
        with Worker(ours, vars(options), variant, environment=environment) as worker:
            record["ours"] = worker.ask("describe")
            record |= _rounds(options, worker, peer, "host")
            record["ours"]["memory"] = worker.ask("memory")
    except Failed as failed:
        return record | {"failed": str(failed)}
    if peak:
        rate = record["ours_images_per_second"] * record["ours"]["flops_per_image"]
        record["ours_mfu_of_data_sheet"] = rate / peak
    return record


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole record."""
    # A process of its own, since this one must leave the device alone.
    with Worker(machine, vars(options)) as worker:
        described = worker.ask("describe")
    print(f"device: {described['provenance']['devices']}", file=sys.stderr)
    peer, peer_record = None, {}
    if not options.skip_torch:
        try:
            peer = Worker(torch_peer, vars(options))
            peer_record = peer.ask("describe")
        except Failed as failed:
            peer_record = {"failed": str(failed)}
    variants = []
    for variant in options.variants:
        variants.append(_measured(options, variant, peer, described["data_sheet_flops"]))
        print(json.dumps(variants[-1]), file=sys.stderr)
    if peer:
        peer_record["memory"] = peer.ask("memory")
        peer.close()
    command = shlex.join(["python", *sys.orig_argv[1:]])  # a worker has another
    return {
        "settings": vars(options),
        "data_sheet_flops": described["data_sheet_flops"],
        "torch": peer_record,
        "variants": variants,
        "load_average": os.getloadavg()[0],
        "provenance": described["provenance"] | {"command": command},
    }


def _options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    small = "--small" in (sys.argv[1:] if arguments is None else arguments)

    def add(name: str, full: Any, little: Any, text: str) -> None:
        parser.add_argument(
            name, type=type(full), default=little if small else full,
            help=f"{text} ({full}; {little} with --small)",
        )  # fmt: skip

    parser.add_argument("--small", action="store_true", help="settings for a CPU")
    add("--resolution", 128, 64, "pixels, a power of two")
    add("--latent-dim", 512, 128, "of z")
    add("--style-dim", 512, 128, "of w")
    add("--mapping-layers", 2, 2, "from z to w")
    add("--channel-base", 16_384, 1024, "a block of side r has channel-base / r channels …")
    add("--channel-max", 512, 128, "… but at most these")
    add("--batch-size", 64, 16, "images per step")
    add("--dtype", "bfloat16", "float32", "of the maps, ours and PyTorch's")
    add("--steps", 32, 16, "in a measurement, a multiple of 16")
    add("--repeats", 5, 3, "rounds")
    parser.add_argument("--variants", type=lambda text: text.split(","), default=["plain"])
    parser.add_argument("--skip-torch", action="store_true")
    parser.add_argument("--torch-compile-mode", default="none", help="torch.compile's")
    options = parser.parse_args(arguments)
    if options.steps % 16 or options.steps < 1:
        parser.error(f"--steps: {options.steps} is not a multiple of 16")
    return options


if __name__ == "__main__":
    print(json.dumps(measure(_options()), indent=1))
