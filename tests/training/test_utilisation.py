import pytest

from ida_jax.runs.config import run_section
from ida_jax.training.utilisation import flops_per_image, peak_flops


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [("NVIDIA H100 80GB HBM3", 989e12, 494e12), ("NVIDIA H100 PCIe", 756e12, 378e12),
     ("NVIDIA A100-SXM4-80GB", 312e12, 156e12), ("TPU v5 lite", 197e12, 197e12),
     ("TPU v5", 459e12, 459e12), ("cpu", None, None),
     ("NVIDIA L40S", None, None), ("TPU7x", 1153.5e12, 1153.5e12)],
)  # fmt: skip
def test_the_longest_name_that_fits_tells_the_peak(kind, bfloat16, float32):
    assert peak_flops("bfloat16", kind) == bfloat16
    assert peak_flops("float32", kind) == float32


def test_flops_of_an_image_are_three_passes_of_its_products():
    config = run_section("test")
    config.model.network, config.model.image_size = "iresnet_nano", 32
    config.train.sample_rate, config.train.sub_centres = 0.5, 3
    # (output side, kernel side, channels in, out) of every convolution of iresnet_nano.
    convolutions = [(32, 3, 3, 16)]
    side, channels = 32, 16
    for width in (16, 32, 64, 128):
        convolutions += [(side, 3, channels, width), (side // 2, 3, width, width)]
        convolutions += [(side // 2, 1, channels, width)]  # the shortcut
        side, channels = side // 2, width
    forward = sum(2 * s * s * k * k * i * o for s, k, i, o in convolutions)
    forward += 2 * (side * side * channels) * 256
    head = 2 * 0.5 * 1000 * 3 * 256
    assert flops_per_image(config, num_classes=1000) == pytest.approx(3 * (forward + head))
