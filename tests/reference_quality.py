"""IDA-Q in slow float64 NumPy, as it is written in `ida_jax.ops.quality` and its fit."""

import math

import numpy as np


def score(c, u1, l1, u2, l2, fit):
    """s of one pair."""
    short = max(0.0, fit["a"] + fit["b"] * (l1 + l2) - c)
    return (
        fit["T"] * c - fit["u"] * (u1 + u2) - fit["l"] * (l1 + l2) - short**2 / (2 * fit["s"] ** 2)
    )


def label_free(c, u1, l1, u2, l2):
    """log DAO by the mean cosine, less 0.06 (l₁ + l₂)."""
    return c + math.log(math.exp(-u1) + math.exp(-u2)) - 0.06 * (l1 + l2)


def crowding(face, own, anchors, owners, k, without=()):
    """Mean cosine of the k nearest anchors of other people than the face's own and `without`."""
    cosines = [
        float(np.dot(face.astype(np.float64), anchor.astype(np.float64)))
        for anchor, owner in zip(anchors, owners, strict=True)
        if owner != own and owner not in without
    ]
    return float(np.mean(sorted(cosines)[::-1][:k]))


def fitted(faces, norms, labels, anchors, owners, k):
    """T, θ_u, θ_l, a, b, σ on all pairs of the faces."""
    faces, log_norms = faces.astype(np.float64), np.log(norms)
    images = {label: int(np.sum(labels == label)) for label in labels.tolist()}
    genuine, impostor = [], []
    for i in range(len(faces)):
        for j in range(i + 1, len(faces)):
            kind = genuine if labels[i] == labels[j] else impostor
            kind.append((float(faces[i] @ faces[j]), i, j))
    x = np.array([log_norms[i] + log_norms[j] for _, i, j in genuine])
    y = np.array([c for c, *_ in genuine])
    weights = np.array([1 / images[labels[i]] for _, i, _ in genuine])
    robust = np.ones_like(y)
    for _ in range(50):
        design = np.stack([np.ones_like(x), x], axis=1) * np.sqrt(weights * robust)[:, None]
        a, b = np.linalg.lstsq(design, y * np.sqrt(weights * robust), rcond=None)[0]
        residual = np.abs(y - a - b * x)
        deviation = 1.4826 * np.median(residual)
        robust = np.minimum(1, 1.345 * deviation / np.maximum(residual, 1e-12))
    ordered = sorted((c for c, *_ in impostor), reverse=True)
    high = {far: ordered[math.floor(far * len(ordered) + 1e-9)] for far in (1e-2, 1e-3, 1e-4)}
    rate = math.log(10) / (high[1e-4] - high[1e-3])
    u = np.array(
        [crowding(f, own, anchors, owners, k) for f, own in zip(faces, labels, strict=True)]
    )

    def mean(values, theta, weight):
        tilted = np.exp(theta * values + weight)
        return 2 * np.sum(values * tilted) / np.sum(tilted)

    def solved(values, target, low, high, weight=0.0):
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if mean(values, middle, weight) < target else (low, middle)
        return (low + high) / 2

    thetas = []
    for far in (1e-2, 1e-3, 1e-4):
        sums = [
            crowding(faces[i], labels[i], anchors, owners, k, (labels[j],))
            + crowding(faces[j], labels[j], anchors, owners, k, (labels[i],))
            for c, i, j in impostor
            if c > high[far]
        ]
        thetas.append(solved(u, np.mean(sums), 0, rate / 2))
    density = min(thetas)
    target = np.mean([log_norms[i] + log_norms[j] for c, i, j in impostor if c > high[1e-2]])
    norm = solved(log_norms, target, -rate, rate, density * u)
    return {"T": rate, "u": density, "l": norm, "a": a, "b": b, "s": deviation}
