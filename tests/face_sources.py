"""Small sources of faces as they lie on disk, written without the code under test."""

import struct

import cv2
import numpy as np

from ida_jax.data.dataset import EncodedFaces


def jpeg(value, *, size=8, grey=False):
    """A JPEG, red by `value` and no other colour; or grey."""
    bgr = np.zeros((size, size, 3), np.uint8)
    bgr[:, :, 2] = value
    return cv2.imencode(".jpg", bgr[:, :, 2] if grey else bgr)[1].tobytes()


def encoded_faces(images, labels):
    """Faces in memory, named a, b, c …"""
    names = tuple("abcdefgh"[: max(labels) + 1])
    return EncodedFaces(list(images), np.array(labels, np.int32), names, "row {}".format)


def write_recordio(folder, images, labels):
    """InsightFace's train.rec and train.idx: a header, the images, a record an identity."""
    first = len(images) + 1
    identities = sorted(set(labels))
    payloads = [struct.pack("<IfQQ2f", 2, 0, 0, 0, first, first + len(identities))]
    payloads += [
        struct.pack("<IfQQ", 0, label, key, 0) + image
        for key, (image, label) in enumerate(zip(images, labels, strict=True), 1)
    ]
    for label in identities:
        keys = [key for key, of in enumerate(labels, 1) if of == label]
        payloads.append(struct.pack("<IfQQ2f", 2, 0, 0, 0, keys[0], keys[-1] + 1))
    folder.mkdir(parents=True)
    records, index = b"", ""
    for key, payload in enumerate(payloads):
        index += f"{key}\t{len(records)}\n"
        records += struct.pack("<II", 0xCED7230A, len(payload)) + payload
        records += bytes(-len(payload) % 4)
    (folder / "train.rec").write_bytes(records)
    (folder / "train.idx").write_text(index)
    (folder / "property").write_text(f"{len(identities)},8,8\n")
    return folder
