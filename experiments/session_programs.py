"""Every device program of bench_compiled.py, run and timed on this machine's device.

For gpu_session.py, in a process of its own for each program (workers.py). A part's bound is read
from the executable that is timed, as `ida-jax plan` reads it from one that it compiles without a
device.
"""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain_config  # noqa: F401
from bench_compiled import CASES, SIZES, Case

_CONFIGS = Path(__file__).parents[1] / "configs"
# Of R1's update, in whose convolutions XLA once saw huge dilated windows, before all else.
ORDER = ("gan", *(name for name in CASES if name != "gan"))
_FIRST_PART = "r1"


def timed(name: str, options: dict[str, Any]) -> dict[str, Callable]:
    """A program's parts in this process: `parts` names them, `run` times one."""
    import jax

    from ida_jax.planning.topology import GPUS, Topology
    from ida_jax.runs.programs import Sizes, device_program

    device = jax.devices()[0]
    kinds = [gpu for gpu in GPUS.values() if device.device_kind.startswith(gpu.name)]
    topology = Topology("here", [device], kinds[0] if kinds else None)
    case, small = CASES[name], options["small"]
    sizes = Sizes(lambda: 64, 300, 8) if small else SIZES
    program = device_program(case.program, _config(case, small), [device], sizes)
    parts = sorted(program.parts, key=lambda part: part.name != _FIRST_PART)

    def run(number: int) -> dict[str, Any]:
        from ida_jax.planning.costs import bound, measure
        from ida_jax.planning.flops import Flops

        part = parts[number]
        start = time.perf_counter()
        compiled = part.function.trace(*part.arguments).lower().compile()
        record = {"part": part.name, "compile_seconds": time.perf_counter() - start}
        costs = measure(compiled, Flops(0, 0), topology)
        record |= {"bytes": costs.memory_bytes, "temporaries": costs.memory.temporaries}
        if (waits := bound(costs, topology)) is not None:
            record |= {"bound": waits.seconds, "waits": waits.parts, "kernels": costs.kernels.count}
        found = _seconds(compiled, part.arguments, options["repeats"])
        record |= {"seconds": statistics.median(found), "fastest": min(found)}
        if waits is not None:
            record["share_of_bound"] = waits.seconds / record["seconds"]
        return record

    return {"parts": lambda: [part.name for part in parts], "run": run}


def _config(case: Case, small: bool) -> Any:
    spec = importlib.util.spec_from_file_location(case.config, _CONFIGS / f"{case.config}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("smoke" if small else "")
    for override in case.overrides:
        keys, _, text = override.removeprefix("--config.").partition("=")
        *sections, key = keys.split(".")
        section = config
        for inner in sections:
            section = section[inner]
        section[key] = type(section[key])(text)
    if small:
        # Even these take a minute or two to compile on a CPU.
        config.model.network, config.anchors.size = "iresnet_nano", 500
        config.gan.update(resolution=8, latent_dim=8, style_dim=8, channel_base=64, channel_max=8)
    return config


def _seconds(compiled: Any, arguments: tuple[Any, ...], repeats: int) -> list[float]:
    """Seconds of calls, one after the other; what a call takes over is made again before it."""
    import jax

    def is_shape(x: Any) -> bool:
        return isinstance(x, jax.ShapeDtypeStruct)

    # Static arguments, which hold no arrays, are in the executable.
    dynamic = [a for a in arguments if any(map(is_shape, jax.tree.leaves(a)))]
    made, found = None, []
    for number in range(repeats + 1):
        if made is None or any(x.is_deleted() for x in jax.tree.leaves(made)):
            made = jax.tree.map(_array, dynamic)
        jax.block_until_ready(made)
        start = time.perf_counter()
        out = compiled(*made)
        jax.block_until_ready(out)
        if number:
            found.append(time.perf_counter() - start)
        del out
    return found


def _array(shape: Any) -> Any:
    """An array of that shape on the device: small positive numbers, true, or zeros."""
    import jax
    import jax.numpy as jnp

    def values() -> Any:
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0, impl=shape.dtype._impl.name), shape.shape)
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return jax.random.uniform(jax.random.key(0), shape.shape, shape.dtype, 1e-3, 0.1)
        if shape.dtype == jnp.uint8:
            return jax.random.bits(jax.random.key(0), shape.shape, jnp.uint8)
        return jnp.full(shape.shape, shape.dtype == jnp.bool_, shape.dtype)

    return jax.jit(values, out_shardings=shape.sharding)()


def resumed(options: dict[str, Any], path: str | None, steps: int) -> dict[str, Callable]:
    """Train steps in this process, from the beginning or from the state in a file.

    A GPU's kernels are chosen in each process anew, by their timing.
    """
    import hashlib

    import jax
    import numpy as np
    import train_workers

    from ida_jax.common.devices import put_batch, training_mesh
    from ida_jax.training.train_step import make_program

    mesh = training_mesh(devices=jax.devices()[:1])
    program = make_program(
        train_workers._config(options), num_classes=options["classes"], mesh=mesh
    )
    step = program.step.lower(program.state, *program.batch).compile()
    state = program.init()
    first = 0
    if path is not None and os.path.exists(path):
        with np.load(path) as file:
            first = int(file["step"])
            leaves = [file[f"leaf_{i}"] for i in range(len(jax.tree.leaves(state)))]
        state = jax.tree.map(
            lambda now, before: _placed(before, now), state,
            jax.tree.unflatten(jax.tree.structure(state), leaves),
        )  # fmt: skip
    batches = train_workers._batches(options)

    def run() -> str:
        nonlocal state
        for number in range(first, first + steps):
            state, _ = step(state, *put_batch((*batches[number % 2], None), mesh))
        arrays = [_bits(x) for x in jax.tree.leaves(state)]
        if path is not None and first == 0:
            named = {f"leaf_{i}": x for i, x in enumerate(arrays)}
            np.savez(path, step=np.int64(steps), **named)
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(array.tobytes())
        return digest.hexdigest()

    return {"run": run}


def _bits(x: Any) -> Any:
    """A leaf as NumPy keeps it: keys and bfloat16 by their bits."""
    import jax
    import numpy as np

    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(x))
    array = np.asarray(x)
    return array.view(np.uint16) if array.dtype == jax.numpy.bfloat16 else array


def _placed(before: Any, now: Any) -> Any:
    import jax

    if jax.numpy.issubdtype(now.dtype, jax.dtypes.prng_key):
        return jax.device_put(
            jax.random.wrap_key_data(before, impl=now.dtype._impl.name), now.sharding
        )
    return jax.device_put(before.view(now.dtype), now.sharding)
