"""Pretrained networks of this library by name, and weights to start from."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import nn

from skt_components.models.network import ReconstructionNetwork
from skt_components.models.registry import load_model, load_weights
from skt_components.ops.checks import check_choice

_FOLDER = Path(__file__).parents[1] / "pretrained"
_OF_TRAINING = {"checkpointing", "drop_path"}  # options that change no weight and no output


def pretrained_names() -> list[str]:
    """Return the names that :func:`load_pretrained` takes.

    Example:
        >>> "ahdrnet-small" in pretrained_names()
        True
    """
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def load_pretrained(name: str) -> ReconstructionNetwork:
    """Load a pretrained network of this library, on the CPU in eval mode.

    docs/pretrained.md describes the networks: training data, scores of network, reference exposure and merge, limits
    and license.

    Args:
        name: one of :func:`pretrained_names`.

    Raises:
        ValueError: there is no such network; the message lists the names.
        ImportError: safetensors is not installed.

    Example:
        >>> load_pretrained("ahdrnet-small").num_frames
        3
    """
    check_choice("name", name, pretrained_names())
    return load_model(_FOLDER / f"{name}.safetensors")


def pretrained_file(name: str | os.PathLike[str]) -> Path:
    """Return the file of a pretrained network for its name, unless there is a file of that name; other paths as given.

    Example:
        >>> pretrained_file("ahdrnet-small").name, pretrained_file("mine.safetensors").name
        ('ahdrnet-small.safetensors', 'mine.safetensors')
    """
    path = Path(name)
    return _FOLDER / f"{path}.safetensors" if not path.is_file() and os.fspath(name) in pretrained_names() else path


def load_initial_weights(source: str | os.PathLike[str], network: nn.Module, *, official: bool = False) -> None:
    """Load initial weights into a network: all of them, or none after an error.

    Args:
        source: one of :func:`pretrained_names`, or a file of weights.
        network: one of this library or of your own.
        official: True if the file comes from the authors of the network, whose channels have another order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights are for another network; the message lists the differences.

    Example:
        >>> from skt_components.models import NETWORKS
        >>> load_initial_weights("ahdrnet-small", NETWORKS["ahdrnet-small"]())
    """
    name = os.fspath(source)
    if name in pretrained_names():
        trained = load_pretrained(name)
        if type(network) is not type(trained):
            raise ValueError(f"init={name} is a {type(trained).__name__}, the network is a {type(network).__name__}")
        made = json.loads(json.dumps(network.config))  # lists, as in the file
        for option in sorted(made.keys() - _OF_TRAINING):
            if made[option] != trained.config[option]:
                raise ValueError(
                    f"init={name} has {option}={trained.config[option]}, the network has {option}={made[option]}"
                )
        network.load_state_dict(trained.state_dict())
    elif not Path(name).is_file():
        raise FileNotFoundError(f"init={name} is neither a file nor one of {', '.join(pretrained_names())}")
    elif official:
        if not isinstance(network, ReconstructionNetwork):
            raise ValueError(f"init_official is for networks of this library, got {type(network).__name__}")
        network.load_state_dict(type(network).from_official(name, **network.config).state_dict())
    else:
        load_weights(name, network)
