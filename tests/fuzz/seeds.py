"""What a reader is to the fuzzer, and small files of the usual kinds."""

import functools
import io
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .mutate import mutated


class Reader(NamedTuple):
    """One reader.

    Attributes:
      name: of the file that it is given, whose suffix may decide how it is read.
      seeds: whole files, as bytes.
      read: reads the file at a path.
      mutations: of them one is drawn for each input.
      refused: how many of the last seeds are less than a whole file, and are refused.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    mutations: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (mutated,)
    refused: int = 0


class Seeds:
    """The seeds of readers by their names, each made once."""

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self._readers = readers
        self.of = functools.cache(lambda name: readers[name].seeds())

    def write(self, name: str, content: bytes, folder: Path) -> Path:
        """The content as the file of a reader's name."""
        home = folder / name
        home.mkdir(exist_ok=True)
        path = home / self._readers[name].name
        path.write_bytes(content)
        return path


def saved(save: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        save(path)
        return path.read_bytes()


def unit(rows: int, width: int = 4) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(**arrays: np.ndarray) -> tuple[bytes, bytes]:
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, **arrays)
    np.savez_compressed(packed, **arrays)
    return plain.getvalue(), packed.getvalue()


def parquet(**columns: list) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def image(suffix: str, size: int = 16) -> bytes:
    import cv2

    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()
