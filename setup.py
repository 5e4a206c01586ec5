"""Metadata of ida_jax. The build backend and the tools' settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

_EXPORT = ["flatbuffers", "onnx>=1.16", "onnxruntime"]
_TRAIN = [
    "array_record",
    "grain>=0.2.15",
    # tensorflow-datasets needs it and does not say so.
    "importlib_resources",
    "opencv-python-headless",
    "orbax-checkpoint>=0.12,<0.13",
    "tensorboardX",
    "tensorflow-datasets>=4.9.9",
]
# Wheels exist for Linux alone; elsewhere the exact search on the device is used.
_SCANN = ["scann>=1.4; platform_system == 'Linux' and python_version < '3.14'"]
# The stores of docs/vector_indexes.md that have wheels.
_INDEX = ["duckdb", "faiss-cpu", "psycopg[binary]", "qdrant-client"]
# A PostgreSQL with pgvector where the system's has none: its binaries alone are used.
_PGVECTOR = ["pgserver; platform_system == 'Linux' and python_version < '3.13'"]
_RAY = ["ray[data]>=2.50"]
_TEST = ["hypothesis", "pytest>=8", "pytest-xdist", "ruff", "scikit-image"]

setup(
    name="ida_jax",
    version="0.1.0",
    description="Inter-class Discrepancy Alignment for face recognition, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    # The wheel holds the configs too: --config=quickstart names one of them.
    packages=[*find_packages(include=["ida_jax", "ida_jax.*"]), "ida_jax.configs"],
    package_dir={"ida_jax.configs": "configs"},
    package_data={"ida_jax": ["py.typed", "report/*.css", "report/*.js"]},
    python_requires=">=3.11",
    # Of rescoring, evaluation and calibration; what a command needs beyond it is named when it is
    # missing (ida_jax/common/errors.py).
    install_requires=[
        "absl-py",
        "flax>=0.12",
        "jax>=0.10",
        "matplotlib>=3.8",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "pyarrow>=16",
        "safetensors",
        "scipy",
        "tqdm",
    ],
    extras_require={
        "train": _TRAIN,
        "scann": _SCANN,
        "interop": [*_EXPORT, "torch"],
        "ray": _RAY,
        "index": [*_INDEX, *_SCANN],
        "cuda": ["jax[cuda12]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        # XLA's GPU compiler without the CUDA libraries (about 590 MB): the plugin of this very jax,
        # which brings jax-cuda12-pjrt, and the assembler.
        "plan-gpu": ["jax[cuda12-local]>=0.10", "nvidia-cuda-nvcc-cu12"],
        "docs": ["cogapp", "mkdocs-jupyter", "mkdocs-material", "mkdocstrings[python]"],
        "test": [*_TRAIN, *_SCANN, *_EXPORT, *_INDEX, *_PGVECTOR, *_TEST],
        "all": [*_TRAIN, *_SCANN, *_EXPORT, "torch"],
    },
    entry_points={"console_scripts": ["ida-jax = ida_jax.__main__:console"]},
)
