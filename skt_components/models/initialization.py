"""Initial weights from which a network begins with a picture: its last layer is solved for."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from skt_components.models.network import ReconstructionNetwork
from skt_components.models.registry import ForwardORM, call_network
from skt_components.ops.checks import check_positive

_RIDGE = 1e-6  # of the mean diagonal of the normal equations
_DARKEST, _BRIGHTEST = 1e-4, 1 - 1e-3  # outputs between which the sigmoid is inverted


@torch.no_grad()
def fit_last_layer(
    network: nn.Module,
    bracket: Float[Tensor, "b n c h w"],
    target: Float[Tensor, "b o sh sw"],
    *,
    layer: str,
    sigmoid: bool = True,
    peak: float = 1.0,
    mu: float = 5000.0,
    forward: ForwardORM = call_network,
) -> None:
    """Solve for the last convolution of a network, so that its output is as close to the target as possible.

    With random weights, the first output of a network is gray. It needs hundreds of steps to learn a picture that is
    already in the reference exposure. But its random features contain this picture. This function finds the weights of
    the last layer by weighted least squares with a small ridge penalty. It minimizes a first-order approximation of the
    squared error after the mu-law. All other weights stay unchanged. A few dozen training samples are enough.

    Args:
        network: a network whose last layer is a convolution of stride 1, then nothing or ``peak * sigmoid``.
        bracket: ``(B, N, C, H, W)`` training samples, as ``forward`` takes them.
        target: ``(B, O, s H, s W)`` linear radiance in [0, peak].
        layer: name of the convolution, as in ``network.named_modules()``.
        sigmoid: True if the output is ``peak * sigmoid(convolution)``, False if it is the convolution's.
        peak: largest value of the target.
        mu: compression of the mu-law.
        forward: function ``forward(network, bracket) -> hdr``.

    Raises:
        ValueError: the layer does not exist, is not a convolution of stride 1 with one group, or does not make the
            picture.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Flatten(1, 2), nn.Conv2d(18, 3, 1))
        >>> bracket = torch.rand(2, 3, 6, 8, 8)
        >>> fit_last_layer(network, bracket, bracket[:, 1, :3], layer="1", sigmoid=False)
        >>> torch.allclose(network(bracket), bracket[:, 1, :3], atol=0.01)
        True
    """
    check_positive("peak", peak)
    check_positive("mu", mu)
    convolution = dict(network.named_modules()).get(layer)
    if not isinstance(convolution, nn.Conv2d) or set(convolution.stride) != {1} or convolution.groups != 1:
        raise ValueError(f"layer must name a convolution of stride 1 in one group, got {layer!r}: {convolution}")
    outputs = target.shape[1]
    normal, right = torch.zeros(()), torch.zeros(())
    training = network.training
    network.eval()
    try:
        for one, wanted in zip(bracket.split(1), target.split(1), strict=True):
            inputs = _last_input(network, convolution, layer, one, wanted, forward)
            rows = _patches(convolution, inputs)[0, :, : wanted.shape[-2], : wanted.shape[-1]].flatten(1).T.double()
            values, slopes = _linearize(wanted[0].flatten(1).double(), peak, mu, sigmoid)
            weighted = rows * slopes[:, :, None] ** 2  # (O, H W, K)
            normal = normal + weighted.transpose(1, 2) @ rows
            right = right + weighted.transpose(1, 2) @ values[:, :, None]
    finally:
        network.train(training)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += _RIDGE * diagonal.mean(1, keepdim=True)
    solution = torch.linalg.solve(normal, right)[:, :, 0].to(convolution.weight)
    count = convolution.weight[0].numel()
    convolution.weight.copy_(solution[:, :count].view(outputs, *convolution.weight.shape[1:]))
    if convolution.bias is not None:
        convolution.bias.copy_(solution[:, count])


def initialize_from_samples(
    network: ReconstructionNetwork, bracket: Float[Tensor, "b n c h w"], target: Float[Tensor, "b o sh sw"]
) -> None:
    """Prepare the random weights of a network of this library for training.

    First rescale some layers, which allows a higher learning rate (:meth:`ReconstructionNetwork.rescale_layers`). Then
    apply :func:`fit_last_layer`.

    Args:
        network: a new network.
        bracket, target: a few dozen training samples.

    Raises:
        ValueError: the samples are not for this network.

    Example:
        >>> from skt_components import AHDRNet, psnr_mu
        >>> from skt_components.simulation import SyntheticScenes
        >>> sample = torch.utils.data.default_collate([SyntheticScenes(8, 32)[i] for i in range(8)])
        >>> network = AHDRNet(features=8, num_layers=2, growth=4)
        >>> before = psnr_mu(network(sample.bracket), sample.target).mean()
        >>> initialize_from_samples(network, sample.bracket, sample.target)
        >>> bool(psnr_mu(network(sample.bracket), sample.target).mean() > before + 10)
        True
    """
    network.rescale_layers()
    sigmoid = getattr(network, "activation", "sigmoid") is not None
    fit_last_layer(network, bracket, target, layer=network.last_layer, sigmoid=sigmoid, peak=network.peak)


def _last_input(
    network: nn.Module, convolution: nn.Conv2d, layer: str, bracket: Tensor, target: Tensor, forward: ForwardORM
) -> Tensor:
    """Return the input of the last convolution for one sample."""
    inputs: list[Tensor] = []
    hook = convolution.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        output = forward(network, bracket)
    finally:
        hook.remove()
    if not inputs or output.shape != target.shape or output.shape[1] != convolution.out_channels:
        raise ValueError(f"layer must make the picture {tuple(target.shape)}, got {tuple(output.shape)} from {layer!r}")
    return inputs[-1]


def _linearize(radiance: Tensor, peak: float, mu: float, sigmoid: bool) -> tuple[Tensor, Tensor]:
    """Return the convolution's output for a radiance in [0, peak], and the slope of the mu-law over that output."""
    wanted = radiance / peak
    if not sigmoid:
        return radiance, mu / (1 + mu * wanted.clamp_min(0))
    wanted = wanted.clamp(_DARKEST, _BRIGHTEST)
    return torch.logit(wanted), mu / (1 + mu * wanted) * wanted * (1 - wanted)


def _patches(convolution: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Return (B, C * kernel [+ 1], H, W): what each output pixel is a linear function of."""
    if isinstance(convolution.padding, str):
        raise ValueError(f"layer must have numbers as its padding, got {convolution.padding!r}")
    height, width = (
        side + 2 * pad - dilation * (kernel - 1)
        for side, pad, dilation, kernel in zip(
            inputs.shape[-2:], convolution.padding, convolution.dilation, convolution.kernel_size, strict=True
        )
    )
    unfolded = F.unfold(
        inputs.float(), convolution.kernel_size, dilation=convolution.dilation, padding=convolution.padding
    )
    patches = unfolded.unflatten(2, (height, width))
    if convolution.bias is None:
        return patches
    return torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
