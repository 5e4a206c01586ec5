"""Metadata of ida_jax. The build backend and the tools' settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

_EXPORT = ["flatbuffers", "onnx>=1.16", "onnxruntime"]

setup(
    name="ida_jax",
    version="0.1.0",
    description="Inter-class Discrepancy Alignment for face recognition, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["ida_jax", "ida_jax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "array_record",
        "flax>=0.12",
        "grain>=0.2.15",
        # tensorflow-datasets needs it and does not say so.
        "importlib_resources",
        "jax>=0.10",
        "matplotlib>=3.8",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "opencv-python-headless",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12,<0.13",
        "pyarrow>=16",
        "safetensors",
        # Wheels exist for Linux alone; elsewhere the exact search on the device is used.
        "scann>=1.4; platform_system == 'Linux' and python_version < '3.14'",
        "scipy",
        "tensorboardX",
        "tensorflow-datasets>=4.9.9",
        "tqdm",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "interop": [*_EXPORT, "torch"],
        "test": [*_EXPORT, "hypothesis", "pytest>=8", "pytest-xdist", "ruff", "scikit-image"],
    },
)
