"""Perceptual loss over any frozen feature extractor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from skt_components.ops.checks import at_least_float32, check_not_empty, check_same_shape, check_tensor

FeatureExtractor = Callable[[Tensor], Sequence[Tensor]]


def perceptual_loss(
    student: Float[Tensor, "b 3 h w"],
    teacher: Float[Tensor, "b 3 h w"],
    extractor: FeatureExtractor,
    *,
    layer_weights: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """Compute the distance of feature maps, ``sum_l w_l mean|phi_l(student) - phi_l(teacher)|`` (in eq. 5).

    Args:
        student, teacher: RGB, nominally [0, 1].
        extractor: maps a picture to feature maps: ``VGG19Features`` for the paper's phi_ij, a knowledge bank (its
            ``extract_features`` is used), or any function.
        layer_weights: one weight per feature map; equal weights that sum to 1 when None.

    Raises:
        TypeError: a picture is not a floating-point tensor, or the extractor returns no sequence of tensors.
        ValueError: shapes differ, ``layer_weights`` has another length than the features, or there are none.

    Example:
        >>> import torch
        >>> x = torch.rand(1, 3, 8, 8)
        >>> perceptual_loss(x, x, lambda picture: [picture, picture[:, :, ::2, ::2]])
        tensor(0.)
    """
    check_tensor("student", student, ndim=4, layout="(B, 3, H, W)")
    check_tensor("teacher", teacher, ndim=4, layout="(B, 3, H, W)")
    check_same_shape("student", student, "teacher", teacher)
    check_not_empty("student", student)
    extract = getattr(extractor, "extract_features", extractor)
    features_s, features_t = extract(student), extract(teacher)
    if not isinstance(features_s, Sequence) or not all(isinstance(f, Tensor) for f in features_s):
        raise TypeError(f"extractor must return a sequence of tensors, got {type(features_s).__name__}")
    if not features_s:
        raise ValueError("extractor returned no feature maps")
    weights = layer_weights if layer_weights is not None else [1 / len(features_s)] * len(features_s)
    if len(weights) != len(features_s):
        raise ValueError(f"layer_weights has {len(weights)} entries for {len(features_s)} feature maps")
    terms = [
        w * (at_least_float32(s) - at_least_float32(t)).abs().mean()
        for w, s, t in zip(weights, features_s, features_t, strict=True)
    ]
    return sum(terms[1:], terms[0])


class PerceptualLoss(nn.Module):
    """Compute :func:`perceptual_loss` with a fixed extractor.

    Args:
        extractor, layer_weights: as in :func:`perceptual_loss`. A module is frozen in place and stays in eval mode;
            ``VGG19Features`` and the knowledge banks add nothing to ``state_dict``.

    Example:
        >>> import torch
        >>> loss = PerceptualLoss(lambda picture: [picture])
        >>> loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(1.)
    """

    def __init__(self, extractor: FeatureExtractor, layer_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not callable(getattr(extractor, "extract_features", extractor)):
            raise TypeError(f"extractor must be callable, got {type(extractor).__name__}")
        self.extractor = extractor.requires_grad_(False).eval() if isinstance(extractor, nn.Module) else extractor
        self.layer_weights = None if layer_weights is None else tuple(layer_weights)

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Keep the extractor in eval mode in every ``mode``."""
        super().train(mode)
        if isinstance(self.extractor, nn.Module):
            self.extractor.eval()
        return self

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of ``student`` against ``teacher``, RGB pictures ``(B, 3, H, W)``."""
        return perceptual_loss(student, teacher, self.extractor, layer_weights=self.layer_weights)

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return f"layer_weights={self.layer_weights}"
