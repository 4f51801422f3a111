"""The base of the reconstruction networks: the bracket they take, their authors' weights, pretrained folders."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skt_components.files.weights import check_state_dict, read_state_dict, unwrap_state_dict
from skt_components.ops.checks import check_choice, check_count, check_positive, check_sides, check_tensor

Self = TypeVar("Self", bound="ReconstructionNetwork")
RAW_CHANNELS = 4


class ReconstructionNetwork(nn.Module):
    """Reconstruct linear HDR from an exposure bracket ``(B, N, C, H, W)``.

    The constructors of the networks share these arguments:

    - ``num_frames``: exposures N in the bracket.
    - ``in_channels``: channels C per exposure: 6 for sRGB, linear RGB and LDR RGB; 4 for packed RAW in [0, peak], to
      which the network adds a copy to the power of 1/2.2.
    - ``out_channels``: 3 for sRGB, 4 for packed RAW.
    - ``features``: width of the network.
    - ``reference``: index of the reference exposure; None for the middle one.
    - ``peak``: largest value of the output, and of packed RAW in the bracket: 1 for sRGB data, 16 for BracketIRE.
    - ``scale``: side of the output per side of the bracket, 1 or 4 (BracketIRE+).
    - ``checkpointing``: compute the large blocks again in the backward pass. Less memory, more time, same gradient.

    Args:
        config: the constructor's arguments by name (``locals()`` in its first line), saved beside the weights.
        **resolved: values that replace values of ``config``, such as defaults that depend on other arguments.

    Raises:
        ValueError: ``reference`` is not an index of the bracket, or a number is out of range.
    """

    fusion_taps: ClassVar[tuple[str, ...]] = ()
    """Layers whose outputs are the stages that the framework aligns."""

    last_layer: ClassVar[str] = ""
    """The convolution whose output, after an activation if there is one, is the picture."""

    official_options: ClassVar[dict[str, Any]] = {}
    """Constructor arguments of the published network that differ from the defaults."""

    size_multiple: int = 1
    """The sides of an exported network's bracket must be multiples of it; the network itself takes any size."""

    half_precision: ClassVar[tuple[str, ...]] = ("bfloat16", "float16")
    """Types of ``torch.autocast`` under which the output stays within one hundredth of float32's."""

    exact_tiles: ClassVar[bool] = False
    """True if tiled inference and the whole picture give the same result, up to rounding. Networks with windows,
    optical flow or statistics of the whole picture do not."""

    # The channels of the first and last layers in the order of the authors' network.
    _input_layers: ClassVar[tuple[str, ...]] = ()
    _output_layers: ClassVar[tuple[str, ...]] = ()
    _input_order: ClassVar[tuple[int, ...]] = ()
    _output_order: ClassVar[tuple[int, ...]] = ()

    def __init__(self, config: Mapping[str, Any], **resolved: Any) -> None:
        super().__init__()
        self.config = {name: value for name, value in config.items() if name not in ("self", "__class__")}
        options = {"reference": None, "peak": 1.0, "scale": 1, "checkpointing": False, **self.config, **resolved}
        self.features = check_count("features", options["features"], 1)
        self.num_frames = check_count("num_frames", options["num_frames"], 1)
        self.in_channels = check_count("in_channels", options["in_channels"], 1)
        reference = self.num_frames // 2 if options["reference"] is None else options["reference"]
        if not 0 <= reference < self.num_frames:
            raise ValueError(f"reference must be in [0, {self.num_frames}), got {reference}")
        check_positive("peak", options["peak"])
        check_choice("scale", options["scale"], (1, 4))
        self.reference: int = reference
        self.peak, self.scale, self.checkpointing = options["peak"], options["scale"], options["checkpointing"]

    @property
    def frame_channels(self) -> int:
        """Channels per exposure that reach the first layer."""
        return 2 * RAW_CHANNELS if self.in_channels == RAW_CHANNELS else self.in_channels

    @property
    def moving_frames(self) -> list[int]:
        """Indices of all frames except the reference."""
        return [frame for frame in range(self.num_frames) if frame != self.reference]

    def forward(self, bracket: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b o sh sw"]:
        """Return linear HDR in [0, peak], at ``scale`` times the size of the bracket.

        Raises:
            TypeError: the bracket is not a floating-point tensor.
            ValueError: the number of frames or channels is not the one of the constructor.
        """
        check_tensor("bracket", bracket, layout="(B, N, C, H, W)")
        if bracket.ndim != 5 or bracket.shape[1:3] != (self.num_frames, self.in_channels):
            raise ValueError(
                f"bracket must be (B, {self.num_frames}, {self.in_channels}, H, W), got {tuple(bracket.shape)}"
            )
        check_sides("bracket", bracket)
        return self._reconstruct(bracket)

    def frames(self, bracket: Tensor) -> list[Tensor]:
        """Return the exposures as the first layer takes them."""
        if self.in_channels == RAW_CHANNELS:
            linear = bracket / self.peak
            bracket = torch.cat([linear, display_encode(linear)], dim=2)
        return list(bracket.unbind(1))

    def make_fusion_module(self) -> nn.Module:
        """Return a new fusion module of this network's kind and size, for a stage of the SPGRM."""
        raise NotImplementedError

    def rescale_layers(self) -> None:
        """Rescale new random layers so that training can begin at a high learning rate.

        Networks that need no rescaling do nothing.
        """

    def _reconstruct(self, bracket: Tensor) -> Tensor:
        raise NotImplementedError

    # the authors' weights

    @classmethod
    def from_official(cls: type[Self], weights: str | os.PathLike[str] | Mapping[str, Any], **options: Any) -> Self:
        """Make the network and load the weights that its authors published, or that their code trained.

        Args:
            weights: a ``.pth``/``.pt``/``.safetensors`` file, read without running code in it, or a state dict, bare or
                under "state_dict". Masks and indices that follow from the architecture are ignored.
            **options: constructor arguments that differ from the published network's.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds anything but tensors, or keys or shapes do not fit; the message lists them.
        """
        network = cls(**{**cls.official_options, **options})
        source, state = official_state(weights)
        derived = network._derived_buffers()
        found = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        found = {name: tensor for name, tensor in found.items() if name not in derived}
        check_state_dict(source, found, network.state_dict())
        network.load_state_dict(network._reorder(found))
        return network

    def to_official(self) -> dict[str, Tensor]:
        """Return the state dict of the authors' network: their names, shapes, buffers and channel order."""
        return self._reorder(self.state_dict()) | self._derived_buffers()

    def _derived_buffers(self) -> dict[str, Tensor]:
        """Buffers of the authors' network that follow from its architecture."""
        return {}

    def _reorder(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Permute the channels of the first and last layers; each permutation is its own inverse."""
        state = dict(state)
        if self.in_channels == len(self._input_order):
            for layer in self._input_layers:
                state[f"{layer}.weight"] = state[f"{layer}.weight"][:, list(self._input_order)]
        for layer in self._output_layers:
            if len(state[f"{layer}.bias"]) == len(self._output_order):
                for kind in ("weight", "bias"):
                    state[f"{layer}.{kind}"] = state[f"{layer}.{kind}"][list(self._output_order)]
        return state

    # the Hugging Face hub

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``config.json`` in the layout of the Hugging Face hub.

        Raises:
            ImportError: huggingface_hub is not installed.
        """
        self._as_hub_model().save_pretrained(folder)

    @classmethod
    def from_pretrained(cls: type[Self], source: str | os.PathLike[str], **options: Any) -> Self:
        """Make the network that :meth:`save_pretrained` or :meth:`push_to_hub` wrote.

        Args:
            source: a folder, or a repository's name on the Hugging Face hub.
            **options: for ``huggingface_hub.PyTorchModelHubMixin.from_pretrained``, such as ``revision``.

        Raises:
            ImportError: huggingface_hub is not installed.
            ValueError: the weights do not fit this network.
        """
        loaded = _hub_class(cls).from_pretrained(os.fspath(source), **options)  # type: ignore[arg-type]
        network = cls(**loaded.config)
        network.load_state_dict(loaded.state_dict())
        return network.train(loaded.training)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload weights, config and a card to a repository of the Hugging Face hub; return the commit's address.

        Args:
            **options: for ``huggingface_hub.PyTorchModelHubMixin.push_to_hub``, such as ``private``, ``token``.

        Raises:
            ImportError: huggingface_hub is not installed.
        """
        return str(self._as_hub_model().push_to_hub(repository, **options))

    def _as_hub_model(self) -> Any:
        model = _hub_class(type(self))(**self.config)  # type: ignore[arg-type]
        model.load_state_dict(self.state_dict())
        return model


def official_state(weights: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Return the state dict of a file or mapping, unwrapped, and its name for error messages."""
    if isinstance(weights, Mapping):
        return "the state dict", unwrap_state_dict(weights, "the state dict")
    return os.fspath(weights), read_state_dict(weights)


def run_block(network: Any, block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a block, with activation checkpointing if ``network.checkpointing`` is set and the network trains."""
    if network.checkpointing and network.training and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def display_encode(linear: Tensor) -> Tensor:
    """Return ``max(linear, 0) ** (1 / 2.2)``, whose gradient is 0 instead of NaN at 0 and below."""
    positive = linear > 0
    return torch.where(positive, linear.where(positive, 1.0) ** (1 / 2.2), 0.0)


@functools.cache
def _hub_class(network: Any) -> Any:
    """Derive a class with huggingface_hub's mixin, which the network itself does not need."""
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError as error:
        raise ImportError('pretrained networks need huggingface_hub: pip install "skt-components[hub]"') from error

    return type(network.__name__, (PyTorchModelHubMixin, network), {"__module__": network.__module__})
