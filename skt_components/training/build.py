"""Data, network, bank, losses and optimizer of a run, built from its options."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import default_collate

from skt_components.banks.priors import KnowledgeBank
from skt_components.banks.registry import make_knowledge_bank
from skt_components.banks.vgg import VGG19Features
from skt_components.data.dataset import SampleDataset
from skt_components.data.mixing import MixedSamples, SamplePool
from skt_components.data.registry import find_dataset
from skt_components.framework import ReconstructionLoss
from skt_components.losses import PerceptualLoss
from skt_components.models.initialization import initialize_from_samples
from skt_components.models.network import ReconstructionNetwork
from skt_components.models.pretrained import load_initial_weights
from skt_components.models.registry import ForwardORM, bracket_options, load_network
from skt_components.simulation import Camera, HDRFolder, RawCamera, SyntheticScenes
from skt_components.training.config import TrainConfig

_FITTED_SAMPLES = 32
_STEPS_PER_EPOCH = 100  # of simulated data and random crops, which have no length of their own


class RunData(NamedTuple):
    """The data of a run."""

    training: SampleDataset
    """Crops."""
    validation: SampleDataset
    """A fixed list of pictures."""


def build_data(config: TrainConfig, processes: int = 1) -> RunData:
    """Open the data set that the options name.

    Args:
        config: the options.
        processes: number of processes that train together.

    Raises:
        FileNotFoundError: a folder or file of the data set is missing.
        ValueError: a file is broken, or too small for the crops; the brackets do not have three exposures.
    """
    per_epoch = _STEPS_PER_EPOCH * config.batch_size * config.accumulate * processes
    if config.root is None or config.data == "hdr-folder":
        return _simulated_data(config, per_epoch)
    train: dict[str, Any] = {"crop": config.crop, "seed": config.seed, "samples_per_epoch": per_epoch}
    validation: dict[str, Any] = {"crop": config.val_crop, "samples_per_epoch": config.val_samples}
    if config.domain == "srgb":
        validation["samples_per_epoch"] = None  # one crop of every test scene
    dataset = find_dataset(config.data)
    if config.domain == "srgb" and dataset.layout.frames_shape[0] != 3:
        count = dataset.layout.frames_shape[0]
        raise ValueError(f"data must have 3 exposures, the number that the networks take, {config.data} has {count}")
    published = partial(dataset, config.root)
    return RunData(
        published(split="train", augment="dihedral", **train),
        published(split="test", **validation),
    )


def _simulated_data(config: TrainConfig, per_epoch: int) -> RunData:
    """Make brackets of procedural scenes or photographs, or a mixture of both."""
    cameras: list[Any] = [Camera((1.0, ratio, ratio**2)) for ratio in config.exposure_ratios]
    usual: Any = Camera()
    if config.domain == "raw":
        cameras = [usual := RawCamera(scale=config.scale)]
    parts: list[SampleDataset] = []
    shares: list[float] = []
    if config.root is None or config.procedural_share:
        parts += [SyntheticScenes(per_epoch, config.crop, seed=config.seed, camera=camera) for camera in cameras]
        shares += [1.0 if config.root is None else config.procedural_share] * len(cameras)
    if config.root is None:
        validation: SampleDataset = SyntheticScenes(config.val_samples, config.val_crop, split="val", camera=usual)
    else:
        folder: Any = partial(HDRFolder, config.root, val_fraction=0.2, val_names=config.val_names or None)
        crops = partial(folder, crop=config.crop, seed=config.seed, samples_per_epoch=per_epoch)
        photographs = [crops(camera=camera, vary_colors=config.vary_colors) for camera in cameras]
        parts += photographs
        shares += [1 - config.procedural_share] * len(cameras)
        held_out = folder(split="val", camera=usual, crop=config.val_crop, samples_per_epoch=config.val_samples)
        for data in (photographs[0], held_out):
            data.check_pictures()
        validation = held_out
    training = parts[0] if len(parts) == 1 else MixedSamples(parts, shares, seed=config.seed)
    return RunData(SamplePool(training, config.pool) if config.pool else training, validation)


def build_network(config: TrainConfig) -> tuple[nn.Module, ForwardORM]:
    """Make the network with the seed's weights, and the function that calls it."""
    options = bracket_options(config.domain, scale=config.scale)
    if config.checkpointing:
        options["checkpointing"] = True
    return load_network(config.orm, **options)


def start_network(config: TrainConfig, network: nn.Module, data: SampleDataset) -> None:
    """Set the initial weights of a network: load the file of ``init``, or fit the last layer to training samples.

    A dry run fits nothing. With ``freeze_orm`` the weights then stay as they are.

    Args:
        config: its ``init``, ``init_official``, ``start``, ``freeze_orm`` and ``dry_run``.
        network: a new network. Without ``init``, a network from other code keeps its own weights.
        data: training samples, for the fit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights are for another network.
    """
    if config.init is not None:
        load_initial_weights(config.init, network, official=config.init_official)
    elif _is_fitted(config) and isinstance(network, ReconstructionNetwork):
        samples = default_collate([data[(0, index % len(data))] for index in range(_FITTED_SAMPLES)])
        initialize_from_samples(network, samples.bracket, samples.target)
    if config.freeze_orm:
        network.requires_grad_(False)


def _is_fitted(config: TrainConfig) -> bool:
    return config.start == "fitted" and not config.dry_run and ":" not in config.orm


def build_bank(config: TrainConfig) -> KnowledgeBank:
    """Make the knowledge bank; see :func:`make_knowledge_bank` for the errors."""
    bank: Any = make_knowledge_bank(
        config.knowledge_bank,
        weights=config.weights,
        regions=config.region_source,
        num_regions=config.regions,
        layers=config.bank_taps,
        download=config.download,
    )
    return bank


def build_losses(config: TrainConfig, bank: KnowledgeBank) -> tuple[ReconstructionLoss, PerceptualLoss | None]:
    """Make L_org, and the perceptual loss of eq. 5 if the options name features for it."""
    perceptual = None
    if config.perceptual is not None:
        features: Any = bank if config.perceptual == "bank" else VGG19Features(weights=config.perceptual)
        perceptual = PerceptualLoss(features)
    weight = config.org_perceptual_weight
    org_loss = ReconstructionLoss(
        config.domain, rms_weight=config.org_rms_weight, perceptual=perceptual, perceptual_weight=weight
    )
    return org_loss, perceptual


def framework_options(config: TrainConfig) -> dict[str, Any]:
    """Return the keyword arguments of :class:`SemanticKnowledgeTransfer` that the options decide."""
    no_terms = config.bare and config.perceptual is None  # a bare run has no features for the weights of the paper
    return {
        "taps": "auto" if config.taps == ("auto",) else config.taps or None,
        "domain": config.domain,
        "weights": None if no_terms else config.term_weights,
        "joint": config.joint,
        "detach_teacher": config.detach_teacher or not config.joint,
        "detach_features": config.detach_features,
        "priors_of": config.priors_of,
        "teacher_domain": config.teacher_domain,
        "teacher_stride": config.teacher_stride,
    }


def build_optimizer(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Make Adam or AdamW for all trained parameters, which it updates in one kernel."""
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return kind(parameters, lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True)


def build_average(config: TrainConfig, network: nn.Module) -> AveragedModel | None:
    """Make the moving average of a network's parameters, or None without ``ema_decay``; buffers are copied."""
    if not config.ema_decay:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
