"""A training step of backbone and ArcFace head, ours beside PyTorch's as its users run it.

Command: PYTHONPATH=. python experiments/bench_train.py [--small] [--variants=plain,remat=true]
Prints one JSON. --small ends in about two minutes on two CPU cores; without it the settings are
those of a GPU: IR-50, batch 512, 85,742 classes, bfloat16. Needs jax, flax, optax, and torch for
the peer; nothing else that ida_jax's own trainer reads its data and configs with.

ours: the step of `ida_jax.main` (`make_program`), on one device.
torch: the same network and head (torch_iresnet.py, torch_head.py): autocast to the same type,
  channels_last, torch.compile, fused SGD with the same momentum and weight decay, cudnn.benchmark,
  TF32 wherever float32 is left. Its head's product is in --torch-head's type; InsightFace's is in
  half precision where its network is.
device: images already there, as uint8; host: copied from the host's memory for every step (pinned
  and without waiting in PyTorch; one step ahead, as our trainer does, in ours).

Both run in processes of their own, in turn, ours and PyTorch's in one round; figures are medians of
the rounds, `ratio` the median of each round's ratio of images/s. Each variant of ours has rounds
with PyTorch of its own. A variant is "plain" or changes of the config's section train, joined by +:
remat=true, batch_norm=per_device, head_dtype=bfloat16, class_block=8192, sample_rate=0.1, ….
MFU compares the FLOPs of `flops_per_image` with the data sheet's rate, and with what
the best of several square matrix products reached on the device in the same run.

--xla-flags may be given several times; every variant is measured with each. Worth trying on GPUs:
  --xla_gpu_autotune_level=4                     (the default; more or less search of kernels)
  --xla_gpu_enable_triton_gemm=false             (cuBLAS alone for matrix products)
  --xla_gpu_enable_latency_hiding_scheduler=true (several devices)
  --xla_gpu_enable_command_buffer=               (no CUDA graphs) or =FUSION,CUBLAS,CUDNN
  --xla_gpu_force_conv_nhwc=true                 (NHWC convolutions whatever the type)
  --xla_gpu_enable_cublaslt=true
An unknown flag ends the variant, which the record then says.
--profile=FOLDER writes a trace of our step there and adds to each variant where its time goes.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
from typing import Any

import train_workers
from workers import Failed, Worker

SOURCES = ("device", "host")


def _measured(options: argparse.Namespace, flags: str, variant: str, peer: Worker | None) -> dict:
    """A variant's record."""
    environment = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        # Both processes share the device's memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    record: dict[str, Any] = {"variant": variant, "xla_flags": flags}
    try:
        with Worker(train_workers.ours, vars(options), variant, environment=environment) as worker:
            record["ours"] = worker.ask("describe")
            for source in options.sources:
                record[source] = _rounds(options, worker, peer, source)
            record["ours"]["memory"] = worker.ask("memory")
            if options.profile:
                name = f"{variant}{flags}".replace("/", "_").replace(" ", "_")
                record["profile"] = worker.ask("profile", os.path.join(options.profile, name))
    except Failed as failed:
        return record | {"failed": str(failed)}
    return record


def _rounds(
    options: argparse.Namespace, worker: Worker, peer: Worker | None, source: str
) -> dict[str, Any]:
    """Rates of ours and PyTorch, in turn."""
    images = options.steps * options.batch_size
    rates: dict[str, list[float]] = {"ours": [], "torch": []}
    programs = {"ours": worker} | ({"torch": peer} if peer else {})
    for number in range(-1, options.repeats):
        # Neither is always the one that finds the device warm.
        for name in sorted(programs, reverse=number % 2 == 1):
            seconds = programs[name].ask("run", options.steps if number >= 0 else 1, source)
            if number >= 0:
                rates[name].append(images / seconds)
    record = {
        f"{name}_images_per_second": statistics.median(found)
        for name, found in rates.items() if found
    }  # fmt: skip
    if peer:
        ratios = [a / b for a, b in zip(rates["ours"], rates["torch"], strict=True)]
        record |= {"ratio": statistics.median(ratios), "ratios": ratios}
    record["rounds"] = rates
    return record


def _add_utilisation(record: dict, flops: float, peaks: dict[str, float | None]) -> None:
    for source in SOURCES:
        rates = record.get(source, {})
        for name in ("ours", "torch"):
            rate = rates.get(f"{name}_images_per_second")
            for of, peak in peaks.items():
                if rate and peak:
                    rates[f"{name}_mfu_of_{of}"] = rate * flops / peak


def measure(options: argparse.Namespace) -> dict:
    """The whole record."""
    # A process of its own, since this one must leave the device alone.
    with Worker(train_workers.machine, vars(options)) as worker:
        machine = worker.ask("describe")
        print(f"device: {machine['provenance']['devices']}", file=sys.stderr)
        products = worker.ask("matrix_product", options.matrix_sizes)
    peaks = {"data_sheet": machine["data_sheet_flops"], "matrix_product": max(products.values())}
    peer, peer_record = None, {}
    if not options.skip_torch:
        try:
            peer = Worker(train_workers.torch_peer, vars(options))
            peer_record = peer.ask("describe")
        except Failed as failed:
            peer_record = {"failed": str(failed)}
    variants = []
    for flags in options.xla_flags or [""]:
        for variant in options.variants:
            variants.append(_measured(options, flags, variant, peer))
            _add_utilisation(variants[-1], machine["flops_per_image"], peaks)
            print(json.dumps(variants[-1]), file=sys.stderr)
    if peer:
        peer_record["memory"] = peer.ask("memory")
        peer.close()
    command = shlex.join(["python", *sys.orig_argv[1:]])  # a worker has another
    return {
        "settings": vars(options),
        "flops_per_image": machine["flops_per_image"],
        "data_sheet_flops": machine["data_sheet_flops"],
        "matrix_product_flops": products,
        "torch": peer_record,
        "variants": variants,
        "load_average": os.getloadavg()[0],
        "provenance": machine["provenance"] | {"command": command},
    }


def _options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def strings(text: str) -> list[str]:
        return text.split(",")

    small = "--small" in (sys.argv[1:] if arguments is None else arguments)

    def add(name: str, full: Any, little: Any, kind: Any, text: str) -> None:
        parser.add_argument(
            name, type=kind, default=little if small else full,
            help=f"{text} ({full}; {little} with --small)".replace("%", "%%"),
        )  # fmt: skip

    parser.add_argument("--small", action="store_true", help="settings for a CPU")
    add("--network", "iresnet50", "iresnet18", str, "backbone")
    add("--batch-size", 512, 16, int, "images per step")
    add("--image-size", 112, 56, int, "pixels")
    add("--classes", 85_742, 10_000, int, "identities")
    add("--embedding-dim", 512, 512, int, "512 as InsightFace, the paper has 256")
    add("--dtype", "bfloat16", "float32", str, "of the convolutions, ours and PyTorch's")
    add("--torch-head", "bfloat16", "float32", str, "of the peer's head product")
    add("--steps", 30, 4, int, "in a measurement")
    add("--repeats", 5, 3, int, "rounds")
    add("--matrix-sizes", "4096,8192,16384", "1024,2048", strings, "of the products")
    parser.add_argument("--variants", type=strings, default=["plain"])
    parser.add_argument("--sources", type=strings, default=list(SOURCES))
    parser.add_argument("--xla-flags", action="append", help="may be given several times")
    parser.add_argument("--skip-torch", action="store_true")
    parser.add_argument("--torch-compile-mode", default="default", help="torch.compile's, or none")
    parser.add_argument("--profile", default=None, help="folder for traces of our step")
    options = parser.parse_args(arguments)
    if unknown := set(options.sources) - set(SOURCES):
        parser.error(f"--sources: {', '.join(unknown)}; choose of {', '.join(SOURCES)}")
    options.matrix_sizes = [int(size) for size in options.matrix_sizes]
    return options


if __name__ == "__main__":
    print(json.dumps(measure(_options()), indent=1))
