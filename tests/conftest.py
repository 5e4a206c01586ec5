"""Tests run on eight fake CPU devices, with strict dtype promotion and rank promotion raising."""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# Tests, and the commands that they start, compile much and compute little. With these two flags a
# network's step compiles in half of the time, and without most optimisations in a sixth. jax 0.12
# no longer knows the second one, and ends at a flag that it does not know.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    os.environ["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=1 "
        + "--xla_cpu_use_fusion_emitters=false " * version("jaxlib").startswith("0.10.")
        + os.environ.get("XLA_FLAGS", "")
    )
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Many tests train the same small network: it is compiled once a run of the tests, for all workers
# and the commands that they start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="ida_jax_tests")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The first example of a shape compiles, so that no deadline would hold; the same examples each run.
hypothesis.settings.register_profile("ida_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ida_jax")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real faces and weights; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("IDA_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}: set IDA_SHARED_DATA to its folder")
    return path


@pytest.fixture(scope="module")
def optimised():
    """For what computes longer than it compiles: JAX's optimisations, in commands too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def tiny_network():
    """The network "tiny", one block: all that a step does with a network, in a tenth of the time.

    It is for whatever does not depend on the network.
    """
    from functools import partial

    from ida_jax.artefacts import face_model
    from ida_jax.models.resnet import IResNet

    face_model._NETWORKS["tiny"] = partial(IResNet, (1,), (8,))
    yield
    del face_model._NETWORKS["tiny"]


# The longest files, the longest first: with --dist loadfile a worker that begins one of them late
# ends minutes after the others.
_LONGEST = (
    "test_train_runs", "test_smoke_configs", "test_main", "test_peer_networks", "test_kills",
    "test_training_gan", "test_train_step", "test_mobilefacenet", "test_training",
    "test_embedding_run", "test_notebook", "test_paper_experiments", "test_loss_scale",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # xdist's own order: the files with most tests first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-kill",
        action="store_true",
        help="kill each command of tests/faults before its every change, not before two of them",
    )
