"""What `bench_train.py` measures: our step, PyTorch's, and the device's matrix products.

Each function makes a program in a process of its own (workers.py): functions by name.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import plain_config  # noqa: F401
from workers import peak_resident_bytes, torch_answers, torch_device


def _config(options: dict[str, Any], variant: str = "plain") -> Any:
    from ida_jax.runs.config import run_section

    config = run_section("benchmark")
    config.model.network = options["network"]
    config.model.image_size = options["image_size"]
    config.model.options.embedding_dim = options["embedding_dim"]
    config.model.options.dtype = options["dtype"]
    config.train.batch_size = options["batch_size"]
    config.train.head, config.train.margin = "arcface", 0.5
    for change in [] if variant == "plain" else variant.split("+"):
        name, _, text = change.partition("=")
        if name not in config.train:
            raise ValueError(f"variant '{change}': the section train has no '{name}'")
        kind = float if config.train[name] is None else type(config.train[name])
        config.train[name] = text.lower() in ("1", "true") if kind is bool else kind(text)
    return config


def _batches(options: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two batches of noise, so that a copy of one can pass while the other is in use."""
    rng = np.random.default_rng(0)
    rows, size = options["batch_size"], options["image_size"]
    return [
        (
            rng.integers(0, 256, (rows, size, size, 3), np.uint8),
            rng.integers(0, options["classes"], rows, np.int32),
        )
        for _ in range(2)
    ]


def ours(options: dict[str, Any], variant: str) -> dict[str, Callable]:
    """Our train step on one device, compiled."""
    import jax

    from ida_jax.common.devices import put_batch, training_mesh
    from ida_jax.training.train_step import make_program

    mesh = training_mesh(devices=jax.devices()[:1])
    program = make_program(_config(options, variant), num_classes=options["classes"], mesh=mesh)
    start = time.perf_counter()
    step = program.step.lower(program.state, *program.batch).compile()
    compile_seconds = time.perf_counter() - start
    state = program.init()
    batches = _batches(options)
    on_device = [put_batch((*batch, None), mesh) for batch in batches]

    def run(steps: int, source: str) -> float:
        nonlocal state
        jax.block_until_ready(state)
        start = time.perf_counter()
        previous = None
        for number in range(steps):
            batch = on_device[number % 2]
            if source == "host":
                batch = put_batch((*batches[number % 2], None), mesh)
            state, metrics = step(state, *batch)
            # As the trainer: one step is under way while the one before is looked at.
            if previous is not None:
                float(previous["loss"])
            previous = metrics
        jax.block_until_ready(state)
        if not np.isfinite(float(previous["loss"])):
            raise ValueError("the loss is not finite")
        return time.perf_counter() - start

    def memory() -> dict[str, int]:
        analysis = step.memory_analysis()
        stats = jax.devices()[0].memory_stats() or {}
        peak = stats.get("peak_bytes_in_use")
        return {
            "peak_device_bytes": peak,
            "peak_resident_bytes": peak_resident_bytes(),
            "state_bytes": analysis.argument_size_in_bytes,
            "temporary_bytes": analysis.temp_size_in_bytes,
        }

    def profile(folder: str) -> dict[str, Any]:
        from train_profile import times

        run(2, "device")
        with jax.profiler.trace(folder):
            run(3, "device")
        return times(folder, step.as_text(), steps=3)

    return {
        "run": run,
        "memory": memory,
        "profile": profile,
        "describe": lambda: {"compile_seconds": compile_seconds},
    }


def torch_peer(options: dict[str, Any]) -> dict[str, Callable]:
    """The same step in PyTorch."""
    import torch
    import torch_iresnet
    from torch_head import ArcFaceHead

    device = torch_device()
    config = _config(options)
    network = getattr(torch_iresnet, options["network"])(
        embedding_dim=options["embedding_dim"],
        dropout=config.model.options.dropout_rate,
        image_size=options["image_size"],
        autocast=_torch_dtype(options["dtype"]),
    )
    network = network.to(device, memory_format=torch.channels_last).train()
    head = ArcFaceHead(
        options["classes"],
        options["embedding_dim"],
        scale=config.train.scale,
        margin=config.train.margin,
        autocast=_torch_dtype(options["torch_head"]),
        device=device,
    )
    optimizer = torch.optim.SGD(
        [p for p in (*network.parameters(), *head.parameters()) if p.requires_grad],
        lr=config.train.learning_rate,
        momentum=config.train.momentum,
        weight_decay=config.train.weight_decay,
        fused=True,
    )

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # uint8 [B, H, W, 3] is [B, 3, H, W] in channels_last already.
        inputs = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return head(network(inputs), labels)

    mode = options["torch_compile_mode"]
    compiled = loss_of if mode == "none" else torch.compile(loss_of, mode=mode)

    def tensors(batch: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = torch.from_numpy(batch[0]), torch.from_numpy(batch[1]).long()
        return (images.pin_memory(), labels.pin_memory()) if device == "cuda" else (images, labels)

    on_host = [tensors(batch) for batch in _batches(options)]
    on_device = [tuple(x.to(device) for x in batch) for batch in on_host]
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

    def run(steps: int, source: str) -> float:
        synchronize()
        start = time.perf_counter()
        for number in range(steps):
            images, labels = on_device[number % 2]
            if source == "host":
                images, labels = (x.to(device, non_blocking=True) for x in on_host[number % 2])
            optimizer.zero_grad(set_to_none=True)
            loss = compiled(images, labels)
            loss.backward()
            optimizer.step()
        synchronize()
        if not np.isfinite(loss.item()):
            raise ValueError("the loss is not finite")
        return time.perf_counter() - start

    return torch_answers(run, device, compile_seconds=run(1, "device"))


def _torch_dtype(name: str) -> Any:
    import torch

    return None if name == "float32" else getattr(torch, name)


def machine(options: dict[str, Any]) -> dict[str, Callable]:
    """The device: its peaks, and the FLOPs of an image."""
    import jax
    import jax.numpy as jnp

    from ida_jax.common.provenance import provenance
    from ida_jax.planning.topology import peak_flops
    from ida_jax.training.train_step import flops_per_image

    def matrix_product(sizes: list[int]) -> dict[str, float]:
        """FLOP/s of square products in the benchmark's type."""
        product = jax.jit(jnp.matmul)
        rates = {}
        for size in sizes:
            keys = jax.random.split(jax.random.key(0))
            a, b = (jax.random.normal(key, (size, size), jnp.dtype(options["dtype"]))
                    for key in keys)  # fmt: skip
            product(a, b).block_until_ready()
            best, repeats = 0.0, 20 if options["small"] else 50
            for _ in range(3):
                start = time.perf_counter()
                for _ in range(repeats):
                    out = product(a, b)
                out.block_until_ready()
                seconds = time.perf_counter() - start
                best = max(best, 2.0 * size**3 * repeats / seconds)
            rates[str(size)] = best
        return rates

    def describe() -> dict[str, Any]:
        peak = None
        # A CPU's name is in no table.
        with contextlib.suppress(KeyError):
            peak = peak_flops(options["dtype"])
        return {
            "data_sheet_flops": peak,
            "flops_per_image": flops_per_image(_config(options), num_classes=options["classes"]),
            "provenance": provenance(),
        }

    return {"matrix_product": matrix_product, "describe": describe}
