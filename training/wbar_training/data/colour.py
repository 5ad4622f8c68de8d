"""Colour, per image: hue, saturation and brightness by factors in [0.6, 1.4], and noise along the colours' principal axes.

    brightness   x·f                                saturation   grey + (x − grey)·f,  grey by ITU-R BT.601
    hue          the colours turned by (f − 1)·π around the grey axis, in YIQ
    PCA noise    x + 255·Σ_k α_k·λ_k·p_k,  α ~ N(0, 0.1),  λ and p of the pixels' covariance     (Krizhevsky et al. 2012)

The ranges are those of He et al. 2019 ("Bag of tricks"), section 2.1. Grey images have a brightness only.
"""

from math import pi

import torch
from torch import Tensor

from wbar_training.to_device import to_device

RANGE = (0.6, 1.4)
NOISE = 0.1
LUMA = (0.299, 0.587, 0.114)
TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.321), (0.211, -0.523, 0.311))
SAMPLED = 2048  # images that the covariance is computed from


def jitter(images: Tensor, draws: torch.Generator) -> Tensor:
    """Change brightness and, of colour images, saturation and hue. images: (B, C, H, W) float32 in 0…255, clipped to it."""
    drawn = torch.empty(3, len(images)).uniform_(*RANGE, generator=draws)
    brightness, saturation, _ = to_device(drawn, images.device).view(3, -1, 1, 1, 1)
    if images.shape[1] == 3:
        luma = to_device(torch.tensor(LUMA), images.device)
        grey = (images * luma.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        images = grey + (images - grey) * saturation
        turns = to_device(_turns((drawn[2] - 1) * pi), images.device)
        images = torch.einsum("bij,bjhw->bihw", turns, images)
    bright: Tensor = images * brightness
    return bright.clamp_(0, 255)


def _turns(angles: Tensor) -> Tensor:
    """Return (B, 3, 3), on the CPU: RGB to YIQ, chroma turned by the angle, and back. angles: on the CPU, in radians."""
    to = torch.tensor(TO_YIQ, dtype=torch.float64)
    cos, sin = angles.double().cos(), angles.double().sin()
    turn = torch.zeros(len(angles), 3, 3, dtype=torch.float64)
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = cos, -sin, sin, cos
    turned: Tensor = torch.linalg.inv(to) @ turn @ to
    return turned.float()


def principal_axes(images: Tensor) -> Tensor:
    """Return the principal axes of the pixels' colours as columns, each times its eigenvalue, (C, C) float32.

    images: (N, C, H, W) uint8.
    """
    sample = images[:: max(1, len(images) // SAMPLED)][:SAMPLED].cpu()
    pixels = sample.transpose(0, 1).flatten(1).double() / 255
    pixels = pixels[:, :: max(1, pixels.shape[1] // 2**22)]
    values, vectors = torch.linalg.eigh(torch.cov(pixels).reshape(len(pixels), len(pixels)))
    axes: Tensor = vectors * values
    return axes.float()


def pca_noise(images: Tensor, axes: Tensor, draws: torch.Generator) -> Tensor:
    """Add noise along the colours' principal axes.

    images: (B, C, H, W) float32 in 0…255, returned clipped to it.
    axes: (C, C), see `principal_axes`, on the images' device.
    """
    strengths = torch.randn(len(images), images.shape[1], generator=draws) * NOISE
    shift = 255 * to_device(strengths, axes.device) @ axes.T
    return (images + shift[:, :, None, None]).clamp_(0, 255)
