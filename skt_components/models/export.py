"""Networks as torch.export programs and ONNX files."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from skt_components.files.atomic import atomic_write
from skt_components.models.network import ReconstructionNetwork
from skt_components.modules.taps import eval_mode

_INPUT, _OUTPUT = "bracket", "hdr"


def export_program(
    network: nn.Module, bracket: Tensor | None = None, *, dynamic: bool = True
) -> torch.export.ExportedProgram:
    """Trace the network with ``torch.export``; ``torch.export.save`` writes the result.

    Args:
        network: any network; it is traced in eval mode and not changed.
        bracket: an input ``(B, N, C, H, W)``; None for random ones, with networks of this library only.
        dynamic: let the program take any batch size and any sides that are multiples of the network's
            ``size_multiple`` (1 if it has none), at least twice that; otherwise the bracket's shape only.

    Raises:
        ValueError: the sides are not multiples of ``size_multiple``, or your own network has no bracket.

    Example:
        >>> from skt_components import AHDRNet
        >>> program = export_program(AHDRNet(features=8, num_layers=2, growth=4))
        >>> program.module()(torch.rand(1, 3, 6, 24, 40)).shape
        torch.Size([1, 3, 24, 40])
    """
    bracket = _example(network, bracket)
    with eval_mode(network), torch.no_grad():
        return torch.export.export(network, (bracket,), dynamic_shapes=_shapes(network, dynamic))


def export_onnx(
    network: nn.Module,
    path: str | os.PathLike[str],
    bracket: Tensor | None = None,
    *,
    dynamic: bool = True,
    opset: int = 20,
    tolerance: float = 1e-4,
) -> float:
    """Write an ONNX file whose output agrees with PyTorch's in onnxruntime; return the largest relative difference.

    Args:
        path: the ``.onnx`` file; it is replaced if it exists, its folder must exist.
        network, bracket, dynamic: as for :func:`export_program`; if dynamic, a second size is compared too.
        opset: version of ONNX's operators.
        tolerance: largest accepted difference, relative to the output's largest value.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: as for :func:`export_program`, or the outputs differ; nothing is written then.
    """
    for package in ("onnx", "onnxscript"):
        _import(package)
    bracket = _example(network, bracket)
    with eval_mode(network), torch.no_grad():
        network(bracket)  # imports optional packages, so that ONNX's exporter knows their operators
        program = torch.onnx.export(
            network,
            (bracket,),
            dynamo=True,
            dynamic_shapes=_shapes(network, dynamic),
            opset_version=opset,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            verbose=False,
        )
        assert program is not None
        with atomic_write(path) as temporary:
            program.save(temporary, external_data=False)
            side = _multiple(network) * max(3, -(-24 // _multiple(network)))
            other = torch.rand(1, *bracket.shape[1:-2], side, side).to(bracket)
            errors = [_difference(temporary, network, x) for x in ([bracket, other] if dynamic else [bracket])]
            if max(errors) > tolerance:
                raise ValueError(
                    f"{path} was not written: onnxruntime differs from PyTorch by {max(errors):.2g} of the largest "
                    f"value, tolerance {tolerance:g}"
                )
    return max(errors)


def _multiple(network: nn.Module) -> int:
    return int(getattr(network, "size_multiple", 1))


def _example(network: nn.Module, bracket: Tensor | None) -> Tensor:
    multiple = _multiple(network)
    if bracket is None:
        if not isinstance(network, ReconstructionNetwork):
            raise ValueError(f"bracket must be given for {type(network).__name__}, which is not of this library")
        parameter = next(network.parameters())
        side = multiple * max(2, -(-32 // multiple))
        bracket = torch.rand(2, network.num_frames, network.in_channels, side, side + multiple).to(parameter)
    if any(side % multiple or side < 2 * multiple for side in bracket.shape[-2:]):
        raise ValueError(
            f"bracket must have sides that are multiples of {multiple}, {2 * multiple} at least, "
            f"got {tuple(bracket.shape)}"
        )
    return bracket


def _shapes(network: nn.Module, dynamic: bool) -> tuple[dict[int, Any]] | None:
    if not dynamic:
        return None
    multiple = _multiple(network)
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    return ({0: torch.export.Dim("batch", min=1), 3: multiple * height, 4: multiple * width},)


def _difference(path: os.PathLike[str], network: nn.Module, bracket: Tensor) -> float:
    """Largest difference of the file's output from the network's, relative to the largest value."""
    session = _import("onnxruntime").InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {_INPUT: bracket.cpu().numpy()})[0])
    wanted = network(bracket).cpu()
    return float((found - wanted).abs().max() / wanted.abs().max())


def _import(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f'exporting to ONNX needs {package}: pip install "skt-components[onnx]"') from error
