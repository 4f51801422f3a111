"""What the reconstruction networks share: the bracket they take, their authors' weights, their files."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skt_components.files.weights import check_state_dict, read_state_dict, unwrap_state_dict
from skt_components.ops.checks import check_count, check_positive, check_tensor

Self = TypeVar("Self", bound="ReconstructionNetwork")
RAW_CHANNELS = 4


class ReconstructionNetwork(nn.Module):
    """Base of the baselines: an exposure bracket ``(B, N, C, H, W)`` in, linear HDR out.

    Args:
        config: the constructor's arguments by name, as plain values, ``features``, the network's width, among them;
            saved beside the weights.
        num_frames: exposures N in the bracket.
        in_channels: channels per exposure. 6 for sRGB: linear RGB, then LDR RGB. 4 for packed RAW, which gets a copy to
            the power of 1/2.2 beside it, so that 8 channels reach the network.
        reference: index of the reference exposure; the middle one when None.
        peak: largest value of the output, and of packed RAW in the bracket.
        checkpointing: keep only the inputs of the large blocks while training and compute the rest again in the
            backward pass: less memory, more time, the same gradient.

    Raises:
        ValueError: ``reference`` is not an index of the bracket, or a number is out of range.
    """

    fusion_taps: ClassVar[tuple[str, ...]] = ()
    """Layers whose outputs are the stages that the framework aligns."""

    official_options: ClassVar[dict[str, Any]] = {}
    """Constructor options with which the network is the published one, where they are not the defaults."""

    size_multiple: int = 1
    """What an exported network's sides must be multiples of; the network itself takes any size."""

    _input_layers: ClassVar[tuple[str, ...]] = ()
    _output_layers: ClassVar[tuple[str, ...]] = ()
    _input_order: ClassVar[tuple[int, ...]] = ()  # where the authors' network has the channel that ours has here
    _output_order: ClassVar[tuple[int, ...]] = ()

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        num_frames: int,
        in_channels: int,
        reference: int | None = None,
        peak: float = 1.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = dict(config)
        self.features = check_count("features", config["features"], 1)
        self.num_frames = check_count("num_frames", num_frames, 1)
        self.in_channels = check_count("in_channels", in_channels, 1)
        reference = self.num_frames // 2 if reference is None else reference
        if not 0 <= reference < num_frames:
            raise ValueError(f"reference must be in [0, {num_frames}), got {reference}")
        check_positive("peak", peak)
        self.reference, self.peak, self.checkpointing = reference, peak, checkpointing

    @property
    def frame_channels(self) -> int:
        """Channels per exposure that reach the first layer."""
        return 2 * RAW_CHANNELS if self.in_channels == RAW_CHANNELS else self.in_channels

    def check_bracket(self, bracket: Tensor) -> None:
        """Raise unless the bracket is as the constructor said.

        Raises TypeError when it is no floating-point tensor, ValueError when it has other frames or channels.
        """
        check_tensor("bracket", bracket, layout="(B, N, C, H, W)")
        if bracket.ndim != 5 or bracket.shape[1:3] != (self.num_frames, self.in_channels):
            raise ValueError(
                f"bracket must be (B, {self.num_frames}, {self.in_channels}, H, W), got {tuple(bracket.shape)}"
            )

    def frames(self, bracket: Tensor) -> list[Tensor]:
        """Return the exposures as the first layer takes them.

        Raises what :meth:`check_bracket` does.
        """
        self.check_bracket(bracket)
        if self.in_channels == RAW_CHANNELS:
            linear = bracket / self.peak
            bracket = torch.cat([linear, display_encode(linear)], dim=2)
        return list(bracket.unbind(1))

    def run(self, block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Call a large block, with activation checkpointing if that is wanted."""
        return run_block(self, block, *inputs)

    def make_fusion_module(self) -> nn.Module:
        """Return a new fusion module of this network's kind and size, for a stage of the SPGRM."""
        raise NotImplementedError

    # the authors' weights

    @classmethod
    def from_official(cls: type[Self], weights: str | os.PathLike[str] | Mapping[str, Any], **options: Any) -> Self:
        """Make the network and load the weights its authors published (or that their code trained).

        The same pictures then give the same output: channels that the authors' network has in another order are
        put in ours.

        Args:
            weights: a ``.pth``/``.pt``/``.safetensors`` file, or a state dict, bare or under "state_dict", with or
                without the ``module.`` prefix of DataParallel. Files are read without running code in them. Masks and
                indices that follow from the architecture may be missing or of another size.
            **options: the constructor's, where they are not those of the published network.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds anything but tensors, or keys are missing, unexpected or of another shape; the
                message lists them.
        """
        network = cls(**{**cls.official_options, **options})
        if isinstance(weights, Mapping):
            source, found = "the state dict", unwrap_state_dict(weights, "the state dict")
        else:
            source, found = os.fspath(weights), read_state_dict(weights)
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
        derived = network._derived_buffers()
        found = {name: tensor for name, tensor in found.items() if name not in derived}
        own = network.state_dict()
        check_state_dict(source, found, own)
        network.load_state_dict(network._reorder(found))
        return network

    def to_official(self) -> dict[str, Tensor]:
        """Return the state dict as the authors' network has it: their names, shapes, buffers and channel order."""
        return self._reorder(self.state_dict()) | self._derived_buffers()

    def _derived_buffers(self) -> dict[str, Tensor]:
        """Buffers of the authors' network that follow from its architecture."""
        return {}

    def _reorder(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Swap the channels of the first and last layers; the same swap leads there and back."""
        state = dict(state)
        if self.in_channels == len(self._input_order):
            for layer in self._input_layers:
                state[f"{layer}.weight"] = state[f"{layer}.weight"][:, list(self._input_order)]
        for layer in self._output_layers:
            if len(state[f"{layer}.bias"]) == len(self._output_order):
                for kind in ("weight", "bias"):
                    state[f"{layer}.{kind}"] = state[f"{layer}.{kind}"][list(self._output_order)]
        return state

    # files

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` and ``config.json``, as the Hugging Face hub has them.

        Raises:
            ImportError: huggingface_hub is not installed.
        """
        self._as_hub_model().save_pretrained(folder)

    @classmethod
    def from_pretrained(cls: type[Self], source: str | os.PathLike[str], **options: Any) -> Self:
        """Make the network that :meth:`save_pretrained` or :meth:`push_to_hub` wrote.

        Args:
            source: a folder, or a repository's name on the Hugging Face hub.
            **options: those of ``huggingface_hub.PyTorchModelHubMixin.from_pretrained``, such as ``revision``.

        Raises:
            ImportError: huggingface_hub is not installed.
            ValueError: the weights are not those of this network.
        """
        loaded = _hub_class(cls).from_pretrained(os.fspath(source), **options)  # type: ignore[arg-type]
        network = cls(**loaded.config)
        network.load_state_dict(loaded.state_dict())
        return network.train(loaded.training)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload weights, config and a card to the Hugging Face hub; returns the commit's address.

        Args:
            repository: its name, such as ``"somebody/ahdrnet"``.
            **options: those of ``huggingface_hub.PyTorchModelHubMixin.push_to_hub``, such as ``private``, ``token``.

        Raises:
            ImportError: huggingface_hub is not installed.
        """
        return str(self._as_hub_model().push_to_hub(repository, **options))

    def _as_hub_model(self) -> Any:
        model = _hub_class(type(self))(**self.config)  # type: ignore[arg-type]
        model.load_state_dict(self.state_dict())
        return model


def run_block(owner: Any, block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a block of a network, with activation checkpointing if its owner trains and has it switched on."""
    if owner.checkpointing and owner.training and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def display_encode(linear: Tensor) -> Tensor:
    """Return ``max(linear, 0) ** (1 / 2.2)``, whose gradient is 0, not NaN, where nothing is left of the noise."""
    positive = linear > 0
    return torch.where(positive, linear.where(positive, 1.0) ** (1 / 2.2), 0.0)


@functools.cache
def _hub_class(network: Any) -> Any:
    """Return the class with huggingface_hub's mixin, which is not needed to use the network."""
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError as error:
        raise ImportError('pretrained networks need huggingface_hub: pip install "skt-components[hub]"') from error

    return type(network.__name__, (PyTorchModelHubMixin, network), {"__module__": network.__module__})
