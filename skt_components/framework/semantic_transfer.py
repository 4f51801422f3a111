"""Semantic knowledge transfer: the whole framework around any HDR reconstruction network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from skt_components.banks.frozen import Frozen
from skt_components.banks.priors import KnowledgeBank, SemanticPriors, priors_from_labels
from skt_components.framework.baseline import PairLoss
from skt_components.framework.checks import (
    cast_for,
    check_arguments,
    check_output,
    check_priors,
    check_step,
    warn_without_gradient,
)
from skt_components.framework.diagnosis import TermGradient, compare_gradients, region_distance
from skt_components.framework.loss_weights import LossWeights
from skt_components.framework.probe import (
    find_network_taps,
    find_teacher_taps,
    fit_inputs,
    make_spgrm,
    probe_network,
    probe_teacher,
)
from skt_components.losses.content import content_loss
from skt_components.losses.histogram import SemanticHistogramLoss
from skt_components.losses.reconstruction import MuL1Loss, mu_l1_loss
from skt_components.models.network import ReconstructionNetwork
from skt_components.models.registry import ForwardORM, call_network
from skt_components.modules.domain_transfer import DomainTransfer
from skt_components.modules.skam import SKAM
from skt_components.modules.stage_layout import as_feature_map
from skt_components.modules.taps import unwrap
from skt_components.ops.checks import (
    at_least_float32,
    check_choice,
    check_count,
    check_fraction,
    check_same_shape,
    float_dtype,
    no_autocast,
    warn_caller,
)

_MOST_LATENT_CHANNELS = 64  # as wide as the stages of the published networks
PriorsSource = Literal["tonemapped", "target"]
TeacherDomain = Literal["network", "rgb"]


class StepOutput(NamedTuple):
    """Losses, pictures and features of one training step."""

    total: Tensor
    """Sum of the two losses below: call ``backward`` on it. It is first because many loops take ``output[0]``."""
    orm_loss: Tensor
    """Eq. 14, the loss of the reconstruction network (and of the SKAMs)."""
    spgrm_loss: Tensor
    """Eq. 13, the loss of the teacher."""
    terms: dict[str, Tensor]
    """The unweighted terms by name: org, content, color, alignment, spgrm. A term with weight 0 is missing."""
    hdr: Tensor
    """H_in, the network's linear output."""
    tonemapped: Tensor
    """H_s = T(H_in)."""
    refined: Tensor
    """The teacher's picture. For RAW with ``teacher_domain="network"`` it is rendered from its values at the sensor."""
    priors: SemanticPriors
    """The bank's features and regions of ``tonemapped`` (or of T(target)), or the caller's regions if given."""
    stages: tuple[Tensor, ...]
    """The outputs of the network's three tapped layers, unchanged."""


class SemanticKnowledgeTransfer(nn.Module):
    """Train any HDR network with semantic knowledge transfer; at inference use the network alone.

    The network is not changed: no layer is added, and its state dict keeps its keys. By default the network and the
    teacher (the SPGRM with its pyramid) learn jointly. L_spg, L_content and L_color train both. L_org trains the
    network. L_feat trains the network and the SKAMs. No loss trains the bank. With ``joint=False, detach_teacher=True``
    L_spg trains only the teacher, and all other losses train the network.

    Args:
        orm: the reconstruction network, any ``nn.Module``.
        knowledge_bank: a bank, see :class:`KnowledgeBank`. It is frozen in place, stays in eval mode, and is in no
            state dict.
        taps: names of the network's three layers whose outputs are aligned with the teacher's stages;
            ``suggest_taps`` lists candidates. "auto" chooses three layers and prints them: it sorts the outermost
            layers with weights by order of execution, and takes the last of each third. None takes the network's
            ``fusion_taps`` if it has them, else "auto".
        orm_loss: L_org, called as ``orm_loss(hdr, target)``. None: L1 after the mu-law. If it has weights, they are
            frozen and in no state dict.
        domain: "srgb", "raw", or a :class:`DomainTransfer` with other options.
        weights: weights of the terms. None: ``LossWeights.recommended(joint)``. You may replace them between steps.
        forward_orm: function that calls the network, ``forward_orm(orm, bracket, **inputs) -> hdr``. ``inputs`` are the
            further keyword arguments of ``forward``. None: ``orm(bracket, **inputs)``.
        spgrm: the teacher. None: an :class:`SPGRM`, with the fusion modules of the network if it has
            ``make_fusion_module``.
        perceptual: the feature term of eq. 5, such as a ``PerceptualLoss``. It is required if its weight is not 0. Its
            own weights are frozen and in no state dict.
        color_loss: L_color, called like ``SemanticHistogramLoss``. None: ``SemanticHistogramLoss()``.
        latent_channels: width of the SKAMs' latent space. None: the width of the network's stage, at most 64.
        mask_ratio: share of the latent that the SKAMs take from the teacher, in [0, 1].
        joint: pass gradients of the teacher's losses through its input into the network.
        detach_teacher: do not train the teacher with L_content, L_color and L_feat. With ``joint=False`` only L_spg
            trains it, on constant pictures. You may use ``joint=False`` without ``detach_teacher``. Then L_content and
            L_color also train the teacher, on constant pictures of the network.
        detach_features: do not train the teacher with L_feat. Otherwise the teacher can lower this loss by making its
            features small.
        priors_of: the picture that the bank describes. "tonemapped" is the choice of the paper: the output of the
            network. Its regions and features change while the network learns. "target" is the tone-mapped ground truth.
            Its priors are right from the first step and equal in every epoch, so they can be cached. But then the
            teacher gets features of the ground truth and learns less from the picture.
        teacher_stride: ``stride`` of the default :class:`SPGRM`. None makes its stages half as large as the bracket:
            2 for sRGB, 4 for RAW, whose picture is twice as large. 1 is the value of the paper, at many times the work.
        teacher_domain: domain in which L_spg compares. "rgb" is eq. 13 literally. "network" first undoes the
            demosaicing. Then for RAW, L_spg compares the values of the sensor, as L_org does. For sRGB there is no
            difference.
        limit_alignment: limit L_feat for any scale of the stages. A stage is divided by its root mean square if that is
            above 1, and its loss is scaled to at most L_org. None: True, except for a network of this library with its
            ``fusion_taps``.
        sample: a bracket ``(B, N, C, H, W)``. The network runs on it once, to find the channels of its stages. None:
            zeros of 64x64 in the shape of the domain. If the shape of a stage is ambiguous, the network runs again, on
            two brackets of half the height.
        sample_inputs: further inputs of ``forward_orm`` for the sample, such as ``{"exposure_times": times}``.

    Raises:
        TypeError: an argument has the wrong kind, or a loss cannot be called as required.
        ValueError: there are not three taps, a tapped layer does not exist, its output cannot be a stage, the sample
            does not fit the network, ``perceptual`` is missing while its weight is not 0, ``teacher_stride`` is not a
            whole number >= 1, or the bank's channels and strides are not four levels, coarse to fine.
        RuntimeError: a tapped layer does not run, or returns no tensor.

    Example:
        >>> framework = SemanticKnowledgeTransfer(network, bank)  # doctest: +SKIP
        >>> framework(bracket, target).total.backward()  # doctest: +SKIP

    Reference:
        Eqs. 1-14 of the paper.
    """

    def __init__(
        self,
        orm: nn.Module,
        knowledge_bank: KnowledgeBank,
        *,
        taps: Sequence[str] | str | None = None,
        orm_loss: PairLoss | None = None,
        domain: str | DomainTransfer = "srgb",
        weights: LossWeights | None = None,
        forward_orm: ForwardORM | None = None,
        spgrm: nn.Module | None = None,
        perceptual: PairLoss | None = None,
        color_loss: nn.Module | None = None,
        latent_channels: int | None = None,
        mask_ratio: float = 0.5,
        joint: bool = True,
        detach_teacher: bool = False,
        detach_features: bool = True,
        priors_of: PriorsSource = "tonemapped",
        teacher_stride: int | None = None,
        teacher_domain: TeacherDomain = "network",
        limit_alignment: bool | None = None,
        sample: Tensor | None = None,
        sample_inputs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("priors_of", priors_of, get_args(PriorsSource))
        check_choice("teacher_domain", teacher_domain, get_args(TeacherDomain))
        losses = {"orm_loss": orm_loss, "perceptual": perceptual, "color_loss": color_loss}
        check_arguments(orm, knowledge_bank, weights, sample, **losses, forward_orm=forward_orm)
        if teacher_stride is not None:
            check_count("teacher_stride", teacher_stride, 1)
        self.weights = weights if weights is not None else LossWeights.recommended(joint)
        self.perceptual = _freeze_weights(perceptual)
        self._check_perceptual()
        self.orm = orm
        self.forward_orm = call_network if forward_orm is None else forward_orm
        self.transfer = domain if isinstance(domain, DomainTransfer) else DomainTransfer(domain)
        self.bank = Frozen(knowledge_bank)  # type: ignore[arg-type]
        default = MuL1Loss(self.transfer.mu, self.transfer.peak)
        self.orm_loss = _freeze_weights(default if orm_loss is None else orm_loss)
        self.color_loss = _freeze_weights(SemanticHistogramLoss() if color_loss is None else color_loss)
        self.joint, self.detach_teacher, self.detach_features = joint, detach_teacher, detach_features
        self.priors_of, self.teacher_domain = priors_of, teacher_domain

        if sample is None:
            sample = torch.zeros((1, 5, 4, 64, 64) if self.transfer.domain == "raw" else (1, 3, 6, 64, 64))
        forward = fit_inputs(self.forward_orm, sample, sample_inputs or {})
        self.taps = find_network_taps(orm, taps, sample, forward)
        hdr, student, self.layouts = probe_network(orm, forward, self.taps, sample)
        tonemapped = self._tonemap(hdr)
        scale = max(round(tonemapped.shape[-1] / sample.shape[-1]), 1)
        self.spgrm = spgrm if spgrm is not None else make_spgrm(orm, knowledge_bank, teacher_stride or 2 * scale)
        self.teacher_taps = find_teacher_taps(self.spgrm)
        teacher = probe_teacher(self.spgrm, self.teacher_taps, tonemapped, knowledge_bank)
        latent = [
            min(width, _MOST_LATENT_CHANNELS) if latent_channels is None else latent_channels for width in student
        ]
        self.skams = nn.ModuleList(SKAM(*widths, mask_ratio) for widths in zip(student, teacher, latent, strict=True))
        network = unwrap(orm)
        known = isinstance(network, ReconstructionNetwork) and self.taps.layers == tuple(network.fusion_taps)
        self.limit_alignment = not known if limit_alignment is None else limit_alignment

    def forward(
        self,
        bracket: Float[Tensor, "b n c h w"],
        target: Float[Tensor, "b _c _h _w"],
        *,
        labels: Integer[Tensor, "b _hs _ws"] | None = None,
        num_regions: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        ramp: float = 1.0,
        metadata: Mapping[str, Tensor] | None = None,
        **inputs: Any,
    ) -> StepOutput:
        """Return the losses and pictures of one step.

        Args:
            bracket: input exposures for the network.
            target: linear ground truth in the network's output domain.
            labels: regions that replace the bank's, ``(B, H, W)`` integers. They have the size of the tone-mapped
                picture (twice the target's size for packed RAW). Values outside [0, ``num_regions``) mean "no region".
            num_regions: number of regions in ``labels``; required with ``labels``.
            generator: random generator for the masks of the SKAMs, or one for each sample. With one for each sample, a
                batch and its parts get the same masks.
            ramp: factor in [0, 1] of the weights of content, color and alignment in ``orm_loss``. With ``joint`` it is
                also a factor of the gradient of L_spg in the network. At 0 these terms are still computed, and every
                parameter has a gradient.
            metadata: metadata of RAW data, such as ``HDRSample.metadata``: ``white_balance`` (B, 3) and
                ``color_matrix`` (B, 3, 3). Output and target are rendered with it for the bank, the teacher and all
                losses except L_org. None or an empty mapping means demosaicing and mu-law alone, as in the paper.
            **inputs: further inputs of the network, such as exposure times or noise levels, passed to ``forward_orm``.

        Raises:
            TypeError: an argument or the network's output is not a floating-point tensor, or the bank does not return
                :class:`SemanticPriors`.
            ValueError: shapes do not fit, the batch is empty, or ``ramp`` is outside [0, 1].
        """
        self._check_perceptual()
        check_fraction("ramp", ramp)
        check_step(bracket, target, metadata)
        target = at_least_float32(target)

        # Eq. 1: the network, and T
        with self.taps.capture(self.orm) as student_stages:
            hdr = self._run_network(self.orm, bracket, inputs)
        check_same_shape("the network's output", hdr, "target", target)
        tonemapped, tonemapped_target = self._tonemap(hdr, metadata), self._tonemap(target, metadata)

        # Eq. 2: the knowledge bank
        described = tonemapped_target if self.priors_of == "target" else tonemapped
        priors = self._describe(described, labels, num_regions)

        # Eqs. 3 and 4: the teacher; eq. 13, which for RAW also decides what of its picture the network learns from
        teacher_input = _scale_gradient(tonemapped, ramp if self.joint else 0.0)
        with self.teacher_taps.capture(self.spgrm) as teacher_stages:
            refined = self._refine(teacher_input, priors.features)
        if self.teacher_domain == "rgb" or self.transfer.domain == "srgb":
            spgrm_loss = (refined - tonemapped_target).abs().mean()
        else:
            refined, spgrm_loss = self._compare_at_sensor(refined, target, metadata)

        weights, terms = self.weights, {"org": at_least_float32(self.orm_loss(hdr, target))}
        teacher = refined.detach() if self.detach_teacher else refined
        if weights.content_weight > 0:  # eq. 5
            terms["content"] = content_loss(
                tonemapped, teacher, perceptual=self.perceptual, perceptual_weight=weights.perceptual_weight
            )
        if weights.color_weight > 0:  # eqs. 6 to 10
            regions: dict[str, Any] = {"masks": priors.masks}
            if priors.labels is not None:  # cheaper than masks
                regions = {"labels": priors.labels, "num_regions": priors.valid.shape[1]}
            terms["color"] = self.color_loss(tonemapped, teacher, valid=priors.valid, **regions)
        if weights.alignment_weight > 0:  # eqs. 11 and 12
            size = (bracket.shape[-2], bracket.shape[-1])
            student_maps = self._map_stages(student_stages, size)
            warn_without_gradient(self.taps.layers, student_maps, hdr)
            if self.limit_alignment:
                student_maps = [stage / _root_mean_square(stage).clamp_min(1) for stage in student_maps]
            detach = self.detach_teacher or self.detach_features
            triples = zip(self.skams, student_maps, teacher_stages, strict=True)
            losses = torch.stack(
                [skam(*cast_for(skam, s, t), generator=generator, detach_teacher=detach).loss for skam, s, t in triples]
            )
            terms["alignment"] = (_limit(losses, terms["org"]) if self.limit_alignment else losses).mean()

        # Eq. 14
        orm_loss = sum(self._weight(terms, ramp).values(), terms["org"])
        terms["spgrm"], tapped, total = spgrm_loss, tuple(student_stages), orm_loss + spgrm_loss
        return StepOutput(total, orm_loss, spgrm_loss, terms, hdr, tonemapped, refined, priors, tapped)

    @torch.no_grad()
    def reconstruct(
        self,
        bracket: Float[Tensor, "b n c h w"],
        *,
        orm: nn.Module | None = None,
        metadata: Mapping[str, Tensor] | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return the network's picture and the teacher's, both linear, without losses and gradients.

        Args:
            bracket: input exposures.
            orm: a network to run instead, such as a moving average of the trained one.
            metadata: metadata of RAW data, as in ``forward``.
            **inputs: further inputs of the network, as in ``forward``.
        """
        hdr = self._run_network(self.orm if orm is None else orm, bracket, inputs)
        tonemapped = self._tonemap(hdr, metadata)
        refined = self._refine(tonemapped, self._query_bank(tonemapped).features)
        return hdr, self.transfer.inverse(refined, **(metadata or {}))

    def compare_gradients(
        self, output: StepOutput, ramp: float = 1.0, scale: float = 1.0
    ) -> dict[str, dict[str, TermGradient]]:
        """Return the norm of each weighted term's gradient, and its angle to the gradient of L_org.

        Call it before ``backward``. It costs one backward pass per term. In a good run the norms of the transfer terms
        are below the norm of ``org``, and no cosine stays negative.

        Args:
            output: what ``forward`` returned for this step.
            ramp: the ``ramp`` of this step.
            scale: scale of the gradient scaler, so that small fp16 gradients do not become 0.

        Returns:
            place -> term -> :class:`TermGradient`. Places are "parameters" (the network's), "picture" (its linear
            output) and "stage 1" to "stage 3" (its tapped stages). Places without a gradient are missing. A network
            with activation checkpointing needs ``checkpoint(..., use_reentrant=False)``.
        """
        check_fraction("ramp", ramp)
        weighted = {"org": output.terms["org"], **self._weight(output.terms, ramp)}
        if self.joint:
            weighted["spgrm"] = output.terms["spgrm"]
        places: dict[str, list[Tensor]] = {"parameters": list(self.orm.parameters()), "picture": [output.hdr]}
        places |= {f"stage {number}": [stage] for number, stage in enumerate(output.stages, 1)}
        return compare_gradients(weighted, places, scale)

    @torch.no_grad()
    def region_distance(
        self,
        hdr: Float[Tensor, "b c h w"],
        target: Float[Tensor, "b c h w"],
        metadata: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, " b"]:
        """Return the color error of linear pictures, averaged over the target's regions.

        See :func:`region_distance`.
        """
        tonemapped_target = self._tonemap(target, metadata)
        priors = self._query_bank(tonemapped_target)
        distances = region_distance(self._tonemap(hdr, metadata), tonemapped_target, priors)
        return distances.sum(1) / priors.valid.sum(1).clamp_min(1)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # beside the version of each module, not among the tensors
            destination._metadata[prefix[:-1]]["taps"] = list(self.taps.layers)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        taps = list(self.taps.layers)
        if local_metadata.get("taps", taps) != taps:
            warn_caller(f"the state was trained with taps={local_metadata['taps']}, the framework has taps={taps}")

    def _run_network(self, orm: nn.Module, bracket: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        return check_output(self.forward_orm(orm, *cast_for(orm, bracket), **inputs))

    def _refine(self, picture: Tensor, features: Sequence[Tensor]) -> Tensor:
        picture, *features = cast_for(self.spgrm, picture, *features)
        return at_least_float32(self.spgrm(picture, features))

    def _tonemap(self, hdr: Tensor, metadata: Mapping[str, Tensor] | None = None) -> Tensor:
        # In half precision the mu-law's slope of 587 at 0 would leave no detail in dark pixels.
        with no_autocast(hdr):
            return self.transfer(at_least_float32(hdr), **(metadata or {}))

    def _query_bank(self, picture: Tensor) -> SemanticPriors:
        bank = self.bank.network
        return check_priors(self.bank(*cast_for(bank, picture)), cast(KnowledgeBank, bank).channels)

    def _describe(self, picture: Tensor, labels: Tensor | None, num_regions: int | None) -> SemanticPriors:
        """Return the bank's features of a picture with its regions, or with the caller's if there are labels."""
        if labels is None and num_regions is not None:
            raise ValueError("labels is required with num_regions")
        if labels is not None and num_regions is None:
            raise ValueError("num_regions is required with labels")
        with torch.no_grad():
            priors = self._query_bank(picture.detach())
        if labels is None or num_regions is None:
            return priors
        priors = priors_from_labels(priors.features, labels, num_regions)
        size = (len(picture), *picture.shape[-2:])
        if tuple(labels.shape) != size or labels.device != picture.device:
            raise ValueError(
                f"labels must be (B, H, W) = {size} on {picture.device}, as the tone-mapped picture, "
                f"got {tuple(labels.shape)} on {labels.device}"
            )
        return priors

    def _compare_at_sensor(
        self, refined: Tensor, target: Tensor, metadata: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the teacher's picture rendered from its values under the color filters, and eq. 13 of these values.

        Two thirds of its RGB values lie between the filters: no loss trains them, so the network must not learn
        from them.
        """
        with no_autocast(refined):
            packed = self.transfer.inverse(refined, **(metadata or {}))
            loss = mu_l1_loss(packed, at_least_float32(target), mu=self.transfer.mu, peak=self.transfer.peak)
            return self.transfer(packed, **(metadata or {})), loss

    def _map_stages(self, stages: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Return the network's stages as maps (B, C, H, W)."""
        maps = []
        for layer, stage, layout in zip(self.taps.layers, stages, self.layouts, strict=True):
            try:
                maps.append(as_feature_map(stage, size, layout))
            except ValueError as error:
                raise ValueError(f"tap {layer!r}: {error}") from None
        return maps

    def _weight(self, terms: Mapping[str, Tensor], ramp: float) -> dict[str, Tensor]:
        """Return the transfer terms of eq. 14, multiplied by their weights and ``ramp``."""
        weights = {
            "content": self.weights.content_weight,
            "color": self.weights.color_weight,
            "alignment": self.weights.alignment_weight,
        }
        return {name: ramp * weight * terms[name] for name, weight in weights.items() if name in terms}

    def _check_perceptual(self) -> None:
        if self.weights.perceptual_weight > 0 and self.weights.content_weight > 0 and self.perceptual is None:
            raise ValueError(
                f"weights.perceptual_weight is {self.weights.perceptual_weight:g} but perceptual is None: pass "
                "perceptual=PerceptualLoss(VGG19Features(weights=FILE)), or set the weight to 0"
            )


def _freeze_weights(loss: Any) -> Any:
    """Keep the weights of a loss, such as a VGG inside L_org, from being trained and saved."""
    return Frozen(loss) if isinstance(loss, nn.Module) and loss.state_dict() else loss


def _root_mean_square(x: Tensor) -> Tensor:
    return x.detach().to(float_dtype(x)).square().mean().sqrt().to(x.dtype)


def _limit(losses: Tensor, most: Tensor) -> Tensor:
    """Multiply each loss by a constant so that it is at most ``most``; smaller ones are unchanged."""
    with torch.no_grad():
        factors = (most / losses.clamp_min(torch.finfo(losses.dtype).tiny)).clamp(max=1)
    return factors * losses


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x`` with its gradient multiplied by ``factor`` in [0, 1]."""
    if factor == 1:
        return x
    constant = x.detach()
    return constant + factor * (x - constant) if factor > 0 else constant
