"""Networks as torch.export programs and ONNX files."""

from __future__ import annotations

import math
import os
import re
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from skt_components.files.atomic import atomic_write
from skt_components.models.network import ReconstructionNetwork
from skt_components.models.registry import ForwardORM
from skt_components.modules.taps import eval_mode
from skt_components.ops.checks import check_picture

_INPUT, _OUTPUT = "bracket", "hdr"


def export_program(
    network: nn.Module,
    bracket: Tensor | None = None,
    *,
    dynamic: bool = True,
    forward_orm: ForwardORM | None = None,
) -> torch.export.ExportedProgram:
    """Trace the network with ``torch.export``; ``torch.export.save`` writes the result.

    Args:
        network: any network; it is traced in eval mode and not changed.
        bracket: an input ``(B, N, C, H, W)``; None for random ones, with networks of this library only.
        dynamic: True: the program takes any batch size, and any sides that are multiples of the network's
            ``size_multiple`` and at least twice as large. If the network has no ``size_multiple``, the smallest
            multiple that can be traced is used. False: the program takes only the shape of the bracket.
        forward_orm: function that calls the network, ``forward_orm(network, bracket) -> hdr``. None:
            ``network(bracket)``.

    Raises:
        TypeError: the network does not return a picture.
        ValueError: the sides are not multiples of ``size_multiple``, your own network has no bracket, or it cannot be
            traced for any size.

    Example:
        >>> from skt_components import AHDRNet
        >>> program = export_program(AHDRNet(features=8, num_layers=2, growth=4))
        >>> program.module()(torch.rand(1, 3, 6, 24, 40)).shape
        torch.Size([1, 3, 24, 40])
    """
    return _trace(network, _example(network, bracket), dynamic, forward_orm)[0]


def export_onnx(
    network: nn.Module,
    path: str | os.PathLike[str],
    bracket: Tensor | None = None,
    *,
    dynamic: bool = True,
    forward_orm: ForwardORM | None = None,
    opset: int = 20,
    tolerance: float = 1e-4,
) -> float:
    """Write an ONNX file and compare it with PyTorch in onnxruntime. Return the largest relative difference.

    Args:
        path: the ``.onnx`` file. It is replaced if it exists. Its folder must exist.
        network, bracket, dynamic, forward_orm: as for :func:`export_program`; if dynamic, a second size is compared
            too.
        opset: version of ONNX's operators.
        tolerance: largest accepted difference, relative to the output's largest value.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        TypeError: as for :func:`export_program`.
        ValueError: as for :func:`export_program`, or the outputs differ; nothing is written then.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):  # before the export, which takes seconds
        _import(package)
    bracket, network_call = _example(network, bracket), _Caller(network, forward_orm)
    with eval_mode(network), torch.no_grad():
        network_call(bracket)  # imports optional packages, so that ONNX's exporter knows their operators
        traced, multiple = _trace(network, bracket, dynamic, forward_orm)
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=opset,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            verbose=False,
        )
        assert program is not None
        with atomic_write(path) as temporary:
            program.save(temporary, external_data=False)
            side = multiple * max(3, -(-24 // multiple))
            other = torch.rand(1, *bracket.shape[1:-2], side, side).to(bracket)
            errors = [_difference(temporary, network_call, x) for x in ([bracket, other] if dynamic else [bracket])]
            if max(errors) > tolerance:
                raise ValueError(
                    f"{path} was not written: onnxruntime differs from PyTorch by {max(errors):.2g} of the largest "
                    f"value, tolerance {tolerance:g}"
                )
    return max(errors)


class _Caller(nn.Module):
    """A network as ``forward_orm`` calls it, whose output is checked to be a picture."""

    def __init__(self, network: nn.Module, forward_orm: ForwardORM | None) -> None:
        super().__init__()
        self.network, self.forward_orm = network, forward_orm

    def forward(self, bracket: Tensor) -> Tensor:
        hdr = self.network(bracket) if self.forward_orm is None else self.forward_orm(self.network, bracket)
        check_picture(hdr)
        return hdr


def _trace(
    network: nn.Module, bracket: Tensor, dynamic: bool, forward_orm: ForwardORM | None
) -> tuple[torch.export.ExportedProgram, int]:
    """Return the program, and the number that the sides of its input must be multiples of."""
    given = getattr(network, "size_multiple", None)
    multiple = int(given or 1)
    caller = network if forward_orm is None else _Caller(network, forward_orm)
    with eval_mode(network), torch.no_grad():
        _Caller(network, forward_orm)(bracket)  # raises for an output that is no picture
        if not dynamic:
            return torch.export.export(caller, (bracket,)), multiple
        if len(bracket) == 1:  # torch.export takes a size of 1 as fixed
            bracket = torch.cat([bracket] * 2)
        while True:
            try:
                return torch.export.export(caller, (bracket,), dynamic_shapes=_shapes(multiple)), multiple
            except torch._dynamo.exc.UserError as error:
                # The message proposes other dimensions: "height = 2*_height", or "height = 64" for one size alone.
                factors = [int(factor) for factor in re.findall(r"= (\d+)\*_", str(error))]
                fixed = re.search(r"^\s*(batch|height|width) = \d+\s*$", str(error), re.MULTILINE)
                larger = multiple * math.lcm(*factors or [2])
                if given or fixed or any(side % larger or side < 2 * larger for side in bracket.shape[-2:]):
                    raise ValueError(
                        f"{type(network).__name__} cannot be exported for any batch and all sides that are multiples "
                        f"of {multiple}. Pass dynamic=False to export the shape of the bracket alone. Or set "
                        "network.size_multiple, if the sides must be multiples of another number. PyTorch says: "
                        + " ".join(str(error).split())
                    ) from error
                multiple = larger


def _example(network: nn.Module, bracket: Tensor | None) -> Tensor:
    multiple = int(getattr(network, "size_multiple", 1))
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


def _shapes(multiple: int) -> tuple[dict[int, Any]]:
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
