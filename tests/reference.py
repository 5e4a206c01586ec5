"""Slow float64 NumPy transcriptions of the paper, row by row."""

import numpy as np
import scipy.optimize


def top_k(queries, anchors, k, query_labels=None, anchor_labels=None):
    """Similarities [N, K], descending; an anchor of the query's own label is left out."""
    out = []
    for i, query in enumerate(np.asarray(queries, np.float64)):
        similarities = []
        for j, anchor in enumerate(np.asarray(anchors, np.float64)):
            own = (
                query_labels is not None
                and anchor_labels[j] >= 0
                and query_labels[i] == anchor_labels[j]
            )
            if not own:
                similarities.append(float(query @ anchor))
        similarities = sorted(similarities, reverse=True)[:k]
        out.append(similarities + [-np.inf] * (k - len(similarities)))
    return np.array(out)


def density(similarities, tau):
    """F(f, Ψ) = 1 / Σᵢ exp(τ sᵢ), of one face."""
    return 1.0 / sum(np.exp(np.float64(tau) * np.float64(s)) for s in similarities)


def dao(f1, f2, support1, support2, tau):
    """Eq. 4 from embeddings and support sets [K, D], of one pair."""
    f1, f2 = np.asarray(f1, np.float64), np.asarray(f2, np.float64)
    s1 = [f1 @ f for f in np.asarray(support1, np.float64)]
    s2 = [f2 @ f for f in np.asarray(support2, np.float64)]
    return np.exp(tau * (f1 @ f2)) * (density(s1, tau) + density(s2, tau))


def unit(shape, seed, *, clusters=0):
    """float32 unit rows; in clusters where asked, as faces lie."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    if clusters:
        x = 0.7 * x + rng.normal(size=(clusters, shape[-1]))[rng.integers(clusters, size=shape[0])]
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def cohort_scores(face, cohort, n=None):
    """A face's n highest scores with the cohort, descending; all of them if None."""
    face = np.asarray(face, np.float64)
    return sorted((float(face @ a) for a in np.asarray(cohort, np.float64)), reverse=True)[:n]


def mean_and_std(scores, ddof=0):
    mean = sum(scores) / len(scores)
    return mean, np.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - ddof))


def legendre_fit(scores, degree):
    """Coefficients of the least-squares polynomial over ranks scaled to [-1, 1]."""
    ranks = [2 * r / (len(scores) - 1) - 1 if len(scores) > 1 else -1.0 for r in range(len(scores))]
    columns = [np.polynomial.legendre.Legendre.basis(j)(np.array(ranks)) for j in range(degree + 1)]
    return np.linalg.lstsq(np.stack(columns, axis=1), np.asarray(scores, np.float64), rcond=None)[0]


def csn_objective(theta, features, same, prior, ridge):
    """Weighted logistic loss of one pair after the other, on features of unit deviation."""
    rows = np.asarray(features, np.float64)
    genuine, impostor = sum(same), len(same) - sum(same)
    share = [prior / genuine if y else (1 - prior) / impostor for y in same]
    mean = sum(w * row for w, row in zip(share, rows, strict=True))
    deviation = np.sqrt(sum(w * (row - mean) ** 2 for w, row in zip(share, rows, strict=True)))
    loss = 0.5 * ridge * sum(theta[:-1] ** 2)
    for w, row, y in zip(share, rows, same, strict=True):
        z = theta[:-1] @ ((row - mean) / deviation) + theta[-1]
        loss += w * np.logaddexp(0, -z if y else z)
    return loss, mean, deviation


def soft_score(c, s1, s2, tau, weight, support, softness):
    """τ c + w log(F₁ + F₂) of one pair, its support sets soft: members fall off around κ."""

    def log_f(s):
        rank = np.arange(1, len(s) + 1)
        members = 1 / (1 + np.exp(-np.clip((support - rank + 0.5) / softness, -600, 600)))
        return -np.log(np.sum(members * np.exp(tau * s.astype(np.float64))))

    return tau * c + weight * np.log(np.exp(log_f(s1)) + np.exp(log_f(s2)))


def pairs_with_neighbours(count, seed):
    """Cosines [P] and both faces' similarities [P, 25] each, descending, float32."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(-0.2, 0.5, (2, count, 25)) + rng.uniform(-0.4, 0.4, (2, count, 1))
    sides = np.sort(sides, axis=2)[:, :, ::-1]
    return tuple(np.float32(x) for x in (rng.uniform(-0.2, 0.9, count), *sides))


def arcface(c, margin):
    """cos(θ + m), or its continuation for θ + m > π, through the angle; scale 1, as all below."""
    theta = np.arccos(np.float64(c))
    if theta + margin <= np.pi:
        return np.cos(theta + margin)
    return np.cos(theta) - margin * np.sin(np.pi - margin)


def sphereface(c, margin):
    theta = np.arccos(np.float64(c))
    k = min(int(theta * margin / np.pi), margin - 1)
    return (-1) ** k * np.cos(margin * theta) - 2 * k


def combined(c, margins):
    """cos(m₁θ + m₂) − m₃; where m₁θ + m₂ > π, on from −1 − m₃ by the cosine's own steps."""
    m1, m2, m3 = margins
    theta = np.arccos(np.float64(c))
    if m1 == 1:
        return arcface(c, m2) - m3
    if m1 * theta + m2 <= np.pi:
        return np.cos(m1 * theta + m2) - m3
    return -1 - m3 - (np.cos((np.pi - m2) / m1) - np.cos(theta))


def adaface(c, quality, margin, eps=1e-3):
    """As the authors' code takes it: angular margin −m·q, then the additive one m + m·q."""
    theta = np.arccos(np.clip(np.float64(c), -1 + eps, 1 - eps))
    theta = np.clip(theta - margin * np.float64(quality), eps, np.pi - eps)
    return np.cos(theta) - (margin + margin * np.float64(quality))


def adaface_quality(norms, mean, std):
    """The qualities of one batch, and the statistics after it."""
    norms = [min(max(float(n), 0.001), 100.0) for n in norms]
    if len(norms) > 0:
        mean = 0.01 * np.mean(norms) + 0.99 * mean
    if len(norms) > 1:
        std = 0.01 * np.std(norms, ddof=1) + 0.99 * std
    return [min(max((n - mean) / (std + 1e-3) * 0.333, -1), 1) for n in norms], mean, std


def mutual_likelihood(mean_1, mean_2, log_variance_1, log_variance_2):
    """−Σ_d [(μ₁ − μ₂)² / (σ₁² + σ₂²) + log(σ₁² + σ₂²)] of one pair (PFE)."""
    rows = (np.asarray(x, np.float64) for x in (mean_1, mean_2, log_variance_1, log_variance_2))
    total = 0.0
    for m1, m2, v1, v2 in zip(*rows, strict=True):
        variance = np.exp(v1) + np.exp(v2)
        total -= (m1 - m2) ** 2 / variance + np.log(variance)
    return total


def fused_gaussian(means, log_variances):
    """One mean and log-variance [D] of a template's images, as PFE's authors fuse them."""
    means, log_variances = np.asarray(means, np.float64), np.asarray(log_variances, np.float64)
    weights = 1 / np.exp(log_variances)
    mean = np.sum(means * weights, axis=0) / np.sum(weights, axis=0)
    return mean / np.linalg.norm(mean), np.min(log_variances, axis=0)


def positive_pairs_loss(means, log_variances, labels, rows):
    """Minus the mean likelihood of the pairs of different images of one identity."""
    found = [
        -mutual_likelihood(means[i], means[j], log_variances[i], log_variances[j])
        for i in range(len(labels))
        for j in range(len(labels))
        if labels[i] == labels[j] and rows[i] != rows[j]
    ]
    return sum(found) / len(found) if found else 0.0


def gaussians(shape, seed, *, clusters=0):
    """Unit means, and log-variances about PFE's first −7: float32 each."""
    noise = np.random.default_rng(seed + 1000).normal(size=shape)
    return unit(shape, seed, clusters=clusters), (noise - 7).astype(np.float32)


def fir_filtered(image, *, up=1, down=1, before=0, after=0):
    """StyleGAN2's upfirdn2d of one image [H, W, C], tap by tap: zeros inserted, zeros outside."""
    image = np.asarray(image, np.float64)
    height, width, channels = image.shape
    kernel = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64 * up**2
    spread = np.zeros((height * up + before + after, width * up + before + after, channels))
    for i in range(height):
        for j in range(width):
            spread[before + i * up, before + j * up] = image[i, j]
    rows = range(0, spread.shape[0] - 3, down)
    columns = range(0, spread.shape[1] - 3, down)
    return np.array(
        [
            [np.einsum("ij,ijc->c", kernel, spread[i : i + 4, j : j + 4]) for j in columns]
            for i in rows
        ]
    )


def convolved(image, kernel, *, stride=1, pad=0):
    """One image [H, W, C] and weights [h, w, C, C'], zeros outside."""
    image = np.pad(np.asarray(image, np.float64), ((pad, pad), (pad, pad), (0, 0)))
    h, w = kernel.shape[:2]
    rows = range(0, image.shape[0] - h + 1, stride)
    columns = range(0, image.shape[1] - w + 1, stride)
    return np.array(
        [
            [np.einsum("ijc,ijcd->d", image[i : i + h, j : j + w], kernel) for j in columns]
            for i in rows
        ]
    )


def convolved_up(image, kernel):
    """StyleGAN2's upsample_conv_2d of one image: a transposed convolution, and then the filter."""
    height, width, channels = np.shape(image)
    spread = np.zeros((2 * height - 1, 2 * width - 1, channels))
    spread[::2, ::2] = image
    return fir_filtered(convolved(spread, kernel, pad=2), before=1, after=1) * 4


def leaky(x):
    return np.where(x > 0, x, 0.2 * x) * np.sqrt(2)


def equalised(layer, x, rate=1.0):
    """A fully connected layer whose weights are stored divided by rate / √fan-in."""
    kernel = np.asarray(layer["kernel"], np.float64)
    return x @ kernel * (rate / np.sqrt(len(kernel))) + rate * np.asarray(layer["bias"], np.float64)


def equalised_kernel(layer):
    kernel = np.asarray(layer["kernel"], np.float64)
    return kernel / np.sqrt(np.prod(kernel.shape[:3]))


def stylegan_mapping(params, latent):
    """One latent [Z] to its style [W]."""
    x = np.asarray(latent, np.float64)
    x = x / np.sqrt(np.mean(x**2) + 1e-8)
    for number in range(len(params)):
        x = leaky(equalised(params[f"fc_{number}"], x, rate=0.01))
    return x


def stylegan_styled(layer, x, style, noise, convolve=None):
    """One map, by weights of its own: modulated, then brought to unit norm for each output."""
    kernel = equalised_kernel(layer) * equalised(layer["style"], style)[:, None]
    kernel = kernel / np.sqrt(np.sum(kernel**2, axis=(0, 1, 2)) + 1e-8)
    x = convolved(x, kernel, pad=1) if convolve is None else convolve(x, kernel)
    x = x + float(layer["noise_strength"]) * np.float64(noise)
    return leaky(x + np.asarray(layer["bias"], np.float64))


def stylegan_synthesis(params, styles, noise, *, filter_first=False):
    """One image [R, R, 3] from its styles [L, W] and noise (4, 8, 8, … R, R)."""

    def filtered_up(x, kernel):
        return convolved(fir_filtered(x, up=2, before=2, after=1), kernel, pad=1)

    up = filtered_up if filter_first else convolved_up
    styles = np.asarray(styles, np.float64)
    x = np.asarray(params["constant"], np.float64)
    x = stylegan_styled(params["block_4_conv_1"], x, styles[0], noise[0])
    image, size, layer = None, 4, 1
    while True:
        rgb = params[f"block_{size}_rgb"]
        kernel = equalised_kernel(rgb) * equalised(rgb["style"], styles[layer])[:, None]
        own = convolved(x, kernel) + np.asarray(rgb["bias"], np.float64)
        image = own if image is None else fir_filtered(image, up=2, before=2, after=1) + own
        if f"block_{size * 2}_rgb" not in params:
            return image
        size *= 2
        for number, own in enumerate([{"convolve": up}, {}]):
            conv = params[f"block_{size}_conv_{number}"]
            x = stylegan_styled(conv, x, styles[layer], noise[layer], **own)
            layer += 1


def group_deviations(features, group):
    """For each image of [B, H, W, C]: the deviation among its neighbours, averaged."""
    features = np.asarray(features, np.float64)
    out = []
    for b in range(len(features)):
        first = b // group * group
        variance = np.var(features[first : first + group], axis=0)
        out.append(np.mean(np.sqrt(variance + 1e-8)))
    return np.array(out)


def stylegan_discriminator(params, images, group):
    """Logits [B] of images [B, R, R, 3]."""

    def conv(name, x, **options):
        x = convolved(x, equalised_kernel(params[name]), **options)
        return x + np.asarray(params[name].get("bias", 0), np.float64)

    maps = []
    for image in images:
        x, size = leaky(conv("from_rgb", image)), len(image)
        while size > 4:
            name = f"block_{size}"
            skip = conv(f"{name}_skip", fir_filtered(x, down=2, before=1, after=1))
            x = leaky(conv(f"{name}_conv_0", x, pad=1))
            x = leaky(conv(f"{name}_conv_1", fir_filtered(x, before=2, after=2), stride=2))
            x, size = (x + skip) / np.sqrt(2), size // 2
        maps.append(x)
    logits = []
    for x, deviation in zip(maps, group_deviations(maps, group), strict=True):
        x = np.concatenate([x, np.full((4, 4, 1), deviation)], axis=2)
        x = leaky(conv("block_4_conv", x, pad=1)).reshape(-1)
        x = leaky(equalised(params["block_4_fc"], x))
        logits.append(equalised(params["output_fc"], x)[0])
    return np.array(logits)


def rates_by_group(scores, same, units, codes, *, groups, compared, fars, resamples, seed):
    """FAR and TAR by group, also at a group's own threshold, pairs written out in each resample.

    A pair of units a and b is written w_a · w_b times, of one unit w_a times; in each list the
    threshold of a FAR f is the ⌊f·n⌋-th highest impostor score. Intervals are percentiles, the
    nearest sample; the ratio's are at 1 − 0.05/m for the m pairs of groups that are compared.
    """
    scores = np.where(np.isnan(scores), -np.inf, np.asarray(scores, np.float64))

    def threshold(impostors, far):
        ordered = np.sort(impostors)[::-1]
        rank = int(np.floor(far * len(ordered) + 1e-9))
        return ordered[rank] if rank < len(ordered) else -np.inf

    def share(accepted, of):
        return np.count_nonzero(accepted & of) / np.count_nonzero(of) if of.any() else np.nan

    def measured(times):
        s, genuine, code = (np.repeat(values, times) for values in (scores, same, codes))
        out = {name: np.full((groups, len(fars)), np.nan) for name in ("far", "tar", "wrong")}
        out["threshold"] = np.empty((groups + 1, len(fars)))
        out["own_tar"], out["one_tar"] = np.empty(len(fars)), np.empty(len(fars))
        for f, far in enumerate(fars):
            overall = threshold(s[~genuine], far)
            own = np.full(len(s), overall)
            out["threshold"][-1, f] = overall
            for q in range(groups):
                mine = code == q
                out["wrong"][q, f] = np.count_nonzero((s > overall) & mine & ~genuine)
                out["far"][q, f] = share(s > overall, mine & ~genuine)
                out["tar"][q, f] = share(s > overall, mine & genuine)
                if (mine & ~genuine).any():
                    own[mine] = threshold(s[mine & ~genuine], far)
                    out["threshold"][q, f] = threshold(s[mine & ~genuine], far)
                else:
                    out["threshold"][q, f] = overall
            out["own_tar"][f] = share(s > own, genuine)
            out["one_tar"][f] = share(s > overall, genuine)
        return out

    whole = measured(np.ones(len(scores), int))
    rng, count = np.random.default_rng(seed), units.max() + 1
    drawn = []
    for _ in range(resamples):
        w = np.bincount(rng.integers(count, size=count), minlength=count)
        alone = units[:, 0] == units[:, 1]
        drawn.append(measured(np.where(alone, w[units[:, 0]], w[units[:, 0]] * w[units[:, 1]])))

    def ends(samples, statements=1):
        samples = samples[~np.isnan(samples)]
        tail = 0.025 / statements
        return (
            np.quantile(samples, [tail, 1 - tail], method="nearest")
            if len(samples) > 1
            else [np.nan] * 2
        )

    def all_ends(samples):
        flat = samples.reshape(len(samples), -1)
        return np.stack([ends(column) for column in flat.T], axis=1).reshape(2, *samples.shape[1:])

    stacked = {name: np.stack([d[name] for d in drawn]) for name in drawn[0]}
    whole |= {
        "genuine": [np.count_nonzero(same & (codes == q)) for q in range(groups)],
        "impostor": [np.count_nonzero(~same & (codes == q)) for q in range(groups)],
        "far_ends": all_ends(stacked["far"]),
        "tar_ends": all_ends(stacked["tar"]),
        "own_tar_ends": all_ends(stacked["own_tar"]),
        "gain_ends": all_ends(stacked["own_tar"] - stacked["one_tar"]),
        "ratio": [],
    }
    for f in range(len(fars)):
        rates = whole["far"][:compared, f]
        known = [q for q in range(compared) if not np.isnan(rates[q])]
        if len(known) < 2 or not rates[known].any():
            whole["ratio"].append(None)
            continue
        high, low = max(known, key=lambda q: rates[q]), min(known, key=lambda q: rates[q])
        with np.errstate(divide="ignore", invalid="ignore"):
            of_draws = stacked["far"][:, high, f] / stacked["far"][:, low, f]
        ratio = rates[high] / rates[low] if rates[low] else None
        pairs_of_groups = len(known) * (len(known) - 1) // 2
        whole["ratio"].append((high, low, ratio, list(ends(of_draws, pairs_of_groups))))
    return whole


def one_face_each(faces, margin=1.3):
    """Rows of `ida_jax.anchors.supported_weight` that are left of likely images of one person."""
    x, n = np.asarray(faces, np.float64), len(faces)
    cosines = {(i, j): float(x[i] @ x[j]) for j in range(n) for i in range(j)}
    middle, upper = np.quantile(list(cosines.values()), [0.5, 0.9])
    deviation = (upper - middle) / scipy.stats.norm.ppf(0.9)
    end = middle + margin * scipy.stats.norm.ppf(1 - 1 / len(cosines)) * deviation
    return [j for j in range(n) if all(cosines[i, j] <= end for i in range(j))]


def supported_weight(faces, crowding, share, *, copies=None):
    """ω of `ida_jax.anchors.supported_weight` by a tail's share, each face `copies` times (once).

    Copies of a face are no pairs. The tail are a share of the pairs, rounded up, with all copies of
    the last.
    """
    x = np.asarray(faces, np.float64)
    rows = [i for i, number in enumerate(copies or [1] * len(x)) for _ in range(number)]
    pairs = [
        (float(x[i] @ x[j]), (crowding[i] + crowding[j]) / 2)
        for place, i in enumerate(rows)
        for j in rows[place + 1 :]
        if i != j
    ]
    pairs.sort(key=lambda pair: -pair[0])
    ends = [pairs[int(np.ceil(len(pairs) * p)) - 1][0] for p in (1e-2, 1e-3, share)]
    mean = np.mean([h for c, h in pairs if c >= ends[2]])
    h = np.array([crowding[i] for i in rows], np.float64)

    def excess(theta):
        tilted = np.exp(theta * (h - h.mean()))
        return (h @ tilted) / tilted.sum() - mean

    return 2 * scipy.optimize.brentq(excess, -400, 400) * (ends[1] - ends[0]) / np.log(10)


def lowering_weight(faces, log_f, tau, share):
    """v of `ida_jax.anchors.supported_weight` by a tail's share, of all pairs."""
    x, f = np.asarray(faces, np.float64), np.asarray(log_f, np.float64) - np.mean(log_f)
    pairs = [(i, j) for j in range(len(x)) for i in range(j)]
    thresholds = [
        sorted(
            (
                tau * float(x[i] @ x[j]) + np.log(np.exp(w * f[i]) + np.exp(w * f[j]))
                for i, j in pairs
            ),
            reverse=True,
        )[int(share * len(pairs))]
        for w in np.arange(11) / 10
    ]
    return np.argmin(thresholds) / 10


def threshold_gain(faces, log_f, tau, copies, far):
    """A gain of `ida_jax.anchors.supported_weight.probe_gain`, each face `copies` times."""
    rows = [i for i, count in enumerate(copies) for _ in range(count)]
    x = np.asarray(faces, np.float64)
    cosines, aligned = [], []
    for n, i in enumerate(rows):
        for j in rows[n + 1 :]:
            if i != j:
                cosines.append(float(x[i] @ x[j]))
                aligned.append(cosines[-1] + np.log(np.exp(log_f[i]) + np.exp(log_f[j])) / tau)
    rank = int(np.ceil(len(cosines) * far)) - 1
    of_genuine = np.mean([np.log(2 * np.exp(log_f[i])) for i in rows]) / tau
    return sorted(cosines)[::-1][rank] - (sorted(aligned)[::-1][rank] - of_genuine)
