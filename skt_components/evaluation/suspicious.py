"""Find pictures whose channel order or peak is probably wrong."""

from __future__ import annotations

import itertools

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from skt_components.ops.checks import check_positive, check_same_shape, check_tensor
from skt_components.ops.transfer import mu_law


def find_suspicious(
    prediction: Float[Tensor, "3 h w"],
    target: Float[Tensor, "3 h w"],
    *,
    peak: float = 1.0,
    bounded: bool = True,
    low_light: bool = False,
) -> list[str]:
    """Return remarks about a probably wrong channel order, peak or exposure; an empty list if there are none.

    A prediction that is not finite gets a remark, and is not compared.

    Args:
        prediction: ``(3, H, W)`` linear RGB on the scale of ``peak``.
        target: ``(3, H, W)`` linear RGB on the scale of ``peak``.
        peak: linear value of white.
        bounded: targets do not exceed the peak. If False, as for simulated scenes with bright lights, a target is
            suspicious if more than 5 % of its values exceed the peak.
        low_light: targets far below the peak are normal, as in BracketIRE.

    Raises:
        TypeError: a picture is not a floating-point tensor.
        ValueError: shapes differ or are not ``(3, H, W)``, or ``peak`` is not above 0.

    Example:
        >>> import torch
        >>> target = torch.linspace(0, 1, 3 * 16 * 16).view(3, 16, 16)
        >>> find_suspicious(target, target)
        []
        >>> find_suspicious(target.flip(0), target)[0]
        'the prediction fits far better with its channels as BGR: a wrong channel order?'
    """
    check_tensor("prediction", prediction, ndim=3, layout="(3, H, W)", channels=3)
    check_same_shape("prediction", prediction, "target", target)
    check_positive("peak", peak)
    prediction, target = (picture.detach().double() / peak for picture in (prediction, target))
    finite = bool(prediction.isfinite().all())
    found = _suspicious_order(prediction, target) if finite else ["the prediction holds infinite or NaN values"]
    highest, above = float(target.max()), float((target > 1).double().mean())
    if above > 0.05 or (bounded and highest > 1.001):
        found.append(f"the target reaches {highest * peak:.4g}, above the peak of {peak:g}: a wrong peak?")
    elif highest < 1 / 64 and not low_light:
        found.append(f"the target reaches only {highest * peak:.3g}, the peak is {peak:g}: a wrong peak?")
    ratio = float(prediction.mean() / target.mean()) if target.mean() > 0 else 1.0
    if finite and not 1 / 6 < ratio < 6:
        found.append(f"the prediction is {ratio:.3g} times as bright as the target: a wrong peak or exposure?")
    return found


def _suspicious_order(prediction: Tensor, target: Tensor) -> list[str]:
    """Compare the colors of blocks, without their brightness, under each order of the channels."""
    coarse = [F.adaptive_avg_pool2d(picture.clamp(min=0), 16) for picture in (prediction, target)]
    gain = coarse[1].mean() / coarse[0].mean().clamp(min=1e-12)
    shown, wanted = (c - c.mean(0) for c in (mu_law(coarse[0] * gain), mu_law(coarse[1])))
    orders = list(itertools.permutations(range(3)))
    errors = [float((shown[list(order)] - wanted).square().mean()) for order in orders]
    best = min(range(len(orders)), key=errors.__getitem__)
    # The other order must be better than gray too: the colors of a poor network do not fit in any order.
    if errors[0] < 1e-4 or errors[best] > min(0.5 * errors[0], float(wanted.square().mean())):
        return []
    name = "".join("RGB"[channel] for channel in orders[best])
    return [f"the prediction fits far better with its channels as {name}: a wrong channel order?"]
