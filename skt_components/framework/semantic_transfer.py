"""Semantic knowledge transfer: the whole framework around any HDR reconstruction network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from skt_components.banks.frozen import Frozen
from skt_components.banks.priors import KnowledgeBank, SemanticPriors, priors_from_labels
from skt_components.framework.checks import (
    STAGES,
    check_arguments,
    check_output,
    check_priors,
    check_ramp,
    compare_sensed,
    find_channels_last,
    find_taps,
    frozen,
    full,
    make_spgrm,
    try_network,
    try_teacher,
    warn_without_gradient,
)
from skt_components.framework.diagnosis import TermGradient, compare_gradients, region_distance
from skt_components.framework.loss_weights import LossWeights
from skt_components.losses.content import content_loss
from skt_components.losses.histogram import SemanticHistogramLoss
from skt_components.losses.reconstruction import MuL1Loss
from skt_components.models.registry import ForwardORM, call_network
from skt_components.modules.domain_transfer import DomainTransfer
from skt_components.modules.skam import SKAM
from skt_components.modules.taps import as_feature_map, eval_mode
from skt_components.ops.checks import check_choice, check_count, check_same_shape, check_tensor

PairLoss = Callable[[Tensor, Tensor], Tensor]
Described = Literal["tonemapped", "target"]
Compared = Literal["network", "rgb"]
_METADATA = ("white_balance", "color_matrix")


class StepOutput(NamedTuple):
    """What one training step gives."""

    orm_loss: Tensor
    """Eq. 14, the loss of the reconstruction network (and of the SKAMs)."""
    spgrm_loss: Tensor
    """Eq. 13, the loss of the teacher."""
    total: Tensor
    """Their sum: call ``backward`` on it."""
    terms: dict[str, Tensor]
    """The unweighted terms by name: org, content, color, alignment, spgrm; those with weight 0 are missing."""
    hdr: Tensor
    """H_in, the network's linear output."""
    tonemapped: Tensor
    """H_s = T(H_in)."""
    refined: Tensor
    """The teacher's picture; of RAW with ``teacher_domain="network"`` as rendered from its values at the sensor."""
    priors: SemanticPriors
    """What the knowledge bank said about ``tonemapped`` (or T(target)), with the caller's regions if there are any."""
    stages: tuple[Tensor, ...]
    """The network's tapped stages, as they left it."""


class SemanticKnowledgeTransfer(nn.Module):
    """Train any HDR network with semantic knowledge transfer; at inference use the network alone.

    The network is not changed: no layer is added to it, and its state dict keeps its keys. Network and teacher (the
    SPGRM with its pyramid) learn jointly: L_spg, L_content and L_color train both, L_org the network alone, L_feat the
    network and the SKAMs, and nothing trains the bank. With ``joint=False, detach_teacher=True`` L_spg trains the
    teacher alone, and all other losses the network.

    Args:
        orm: the reconstruction network, any ``nn.Module``.
        knowledge_bank: a frozen bank, see :class:`KnowledgeBank`; it is put into eval mode, stays there, and is
            part of no state dict.
        taps: names of the network's three stages that are aligned with the teacher's; the network's own
            ``fusion_taps`` when None. ``suggest_taps`` lists candidates.
        orm_loss: L_org, called as ``orm_loss(hdr, target)``; L1 after mu-law when None. If it has weights, they
            are frozen and stay out of every state dict.
        domain: "srgb", "raw", or a :class:`DomainTransfer` with options of its own.
        weights: weights of the terms; ``LossWeights.recommended(joint)`` when None. May be replaced between steps.
        forward_orm: how to call the network, ``forward_orm(orm, bracket) -> hdr``; ``orm(bracket)`` when None.
        spgrm: the teacher; an :class:`SPGRM` built of the network's own kind of fusion module, if it has
            ``make_fusion_module``, when None.
        perceptual: the feature term of eq. 5, such as a ``PerceptualLoss``; needed when its weight is not 0. If it
            is a module it is frozen and kept out of the state dict, as the bank is.
        color_loss: L_color, called as ``SemanticHistogramLoss`` is; that with its defaults when None.
        latent_channels: width of the SKAMs' latent space; the width of the network's stage when None.
        mask_ratio: share of the latent that the SKAMs take from the teacher.
        joint: let L_spg through the teacher's input into the network.
        detach_teacher: keep L_content and L_color, and L_feat too, from training the teacher. With ``joint=False`` it
            makes a teacher that L_spg alone trains and that refines what it is given. ``joint=False`` without it is
            allowed: then L_content and L_color train the teacher too, on a constant picture of the network.
        detach_features: keep L_feat from training the teacher, for which the easiest way to make its features match
            is to make them small.
        priors_of: the picture that the bank describes. "tonemapped" is the paper's: the network's own output, whose
            regions and features move while it learns. "target" is the tone-mapped ground truth: the same in every
            epoch, so it can be kept on disk, and right from the first step, but the teacher then gets features of
            the answer along with the student's picture and has less to learn from the picture itself.
        teacher_stride: the ``stride`` of the :class:`SPGRM` that is made. None makes its stages half as large as the
            bracket: 2 for sRGB, 4 for RAW, whose picture is twice as large; 1 is the paper's, at many times the work.
        teacher_domain: where L_spg compares. "rgb" is eq. 13 as it stands. "network" undoes the demosaicing first, and
            L_spg measures of RAW what L_org does: the values that the sensor has. The same for sRGB.
        sample: a bracket ``(B, N, C, H, W)`` to read the stages' channels from, once; a small random one in the
            shape of the domain when None.

    Raises:
        TypeError: an argument is of another kind, or a loss cannot be called as it must be.
        ValueError: taps are missing or are not three, a tapped layer does not exist, the sample does not fit the
            network, ``perceptual`` is missing while its weight is not 0, ``teacher_stride`` is no whole number >= 1,
            or the bank's channels and strides are not those of four maps, coarse to fine.
        RuntimeError: a tapped layer does not run, or gives no tensor.

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
        taps: Sequence[str] | None = None,
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
        priors_of: Described = "tonemapped",
        teacher_stride: int | None = None,
        teacher_domain: Compared = "network",
        sample: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_choice("priors_of", priors_of, get_args(Described))
        check_choice("teacher_domain", teacher_domain, get_args(Compared))
        functions = {
            "orm_loss": orm_loss,
            "perceptual": perceptual,
            "color_loss": color_loss,
            "forward_orm": forward_orm,
        }
        check_arguments(orm, knowledge_bank, weights, sample, functions)
        if teacher_stride is not None:
            check_count("teacher_stride", teacher_stride, 1)
        self.weights = weights if weights is not None else LossWeights.recommended(joint)
        self.perceptual = frozen(perceptual)
        self._check_weights()
        self.orm = orm
        self.forward_orm = call_network if forward_orm is None else forward_orm
        self.taps = find_taps(orm, taps)
        self.transfer = domain if isinstance(domain, DomainTransfer) else DomainTransfer(domain)
        self.bank = Frozen(knowledge_bank)  # type: ignore[arg-type]
        default = MuL1Loss(self.transfer.mu, self.transfer.peak)
        self.orm_loss = frozen(default if orm_loss is None else orm_loss)
        self.color_loss = frozen(SemanticHistogramLoss() if color_loss is None else color_loss)
        self.joint, self.detach_teacher, self.detach_features = joint, detach_teacher, detach_features
        self.priors_of, self.teacher_domain = priors_of, teacher_domain
        student, hdr, scale = self._try_network(sample)
        self.spgrm = spgrm if spgrm is not None else make_spgrm(orm, knowledge_bank, teacher_stride or 2 * scale)
        self.teacher_taps = find_taps(self.spgrm, None)
        teacher = try_teacher(self.spgrm, self.teacher_taps, self._tonemap(hdr), knowledge_bank)
        latent = student if latent_channels is None else [latent_channels] * STAGES
        self.skams = nn.ModuleList(SKAM(*widths, mask_ratio) for widths in zip(student, teacher, latent, strict=True))

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
    ) -> StepOutput:
        """Return the losses and pictures of one step.

        Args:
            bracket: input exposures, as the network takes them.
            target: linear ground truth in the network's output domain.
            labels: regions to use instead of the bank's, ``(B, H, W)`` integers for the tone-mapped picture (twice
                the target's size for packed raw); outside [0, ``num_regions``) they mean "no region".
            num_regions: how many regions ``labels`` can name.
            generator: source of the SKAMs' random masks, or one for each sample, so that a batch and its parts get the
                same masks.
            ramp: what the weights of content, color and alignment are multiplied with in ``orm_loss``, from 0 to 1, and
                what L_spg does to the network if it is ``joint``; at 0 these terms are computed still, and every
                parameter has a gradient.
            metadata: of RAW data, such as ``HDRSample.metadata``: ``white_balance`` (B, 3) and ``color_matrix``
                (B, 3, 3), with which output and target are rendered for the bank, the teacher and all losses but L_org.
                None, or an empty one, is the paper's: demosaicing and mu-law alone.

        Raises:
            TypeError: an argument, or what the network returns, is not a floating-point tensor; or the bank returns
                no :class:`SemanticPriors`.
            ValueError: shapes do not fit, the batch is empty, or ``ramp`` is outside [0, 1]; the message names them.
        """
        self._check_weights()
        check_ramp(ramp)
        check_tensor("bracket", bracket, ndim=5, layout="(B, N, C, H, W)")
        if not bracket.numel():
            raise ValueError(f"bracket must hold at least one sample (B, N, C, H, W), got shape {tuple(bracket.shape)}")
        check_tensor("target", target, ndim=4, layout="(B, C, H, W)")
        if unknown := set(metadata or {}) - set(_METADATA):
            raise ValueError(f"metadata can hold {' and '.join(_METADATA)}, got {', '.join(sorted(map(str, unknown)))}")
        with self.taps.capture(self.orm) as student_stages:
            hdr = check_output(self.forward_orm(self.orm, bracket))
        check_same_shape("the network's output", hdr, "target", target)
        tonemapped = self._tonemap(hdr, metadata)
        truth = self._tonemap(target, metadata)
        priors = self._describe(truth if self.priors_of == "target" else tonemapped, labels, num_regions)
        with self.teacher_taps.capture(self.spgrm) as teacher_stages:
            refined = full(self.spgrm(self._given(tonemapped, ramp), priors.features))
        if self.teacher_domain == "rgb" or self.transfer.domain == "srgb":
            of_teacher = (refined - truth).abs().mean()
        else:
            refined, of_teacher = compare_sensed(self.transfer, refined, target, metadata)
        terms = {"org": full(self.orm_loss(hdr, target))}
        terms |= self._transfer_terms(tonemapped, refined, priors)
        if self.weights.alignment_weight > 0:
            size = (bracket.shape[-2], bracket.shape[-1])
            layouts = zip(student_stages, self.channels_last, strict=True)
            stages = [as_feature_map(stage, size, last) for stage, last in layouts]
            warn_without_gradient(self.taps.layers, stages, hdr)
            terms["alignment"] = self._alignment(stages, teacher_stages, generator)
        orm_loss = sum((ramp * w * terms[name] for name, w in self._active_weights(terms)), terms["org"])
        terms["spgrm"], tapped = of_teacher, tuple(student_stages)
        return StepOutput(orm_loss, of_teacher, orm_loss + of_teacher, terms, hdr, tonemapped, refined, priors, tapped)

    @torch.no_grad()
    def reconstruct(
        self,
        bracket: Float[Tensor, "b n c h w"],
        *,
        orm: nn.Module | None = None,
        metadata: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the network's picture and the teacher's, both linear, without any loss or gradient.

        Args:
            bracket: input exposures.
            orm: what to run in the network's place, such as a moving average of it.
            metadata: of RAW data, as ``forward`` takes it.
        """
        hdr = check_output(self.forward_orm(self.orm if orm is None else orm, bracket))
        tonemapped = self._tonemap(hdr, metadata)
        refined = full(self.spgrm(tonemapped, self._ask_bank(tonemapped).features))
        return hdr, self.transfer.inverse(refined, **(metadata or {}))

    def compare_gradients(
        self, output: StepOutput, ramp: float = 1.0, scale: float = 1.0
    ) -> dict[str, dict[str, TermGradient]]:
        """Return how strongly each weighted term pulls, and whether it pulls where L_org does.

        Call it before ``backward``; it costs one backward pass per term. A healthy run has the transfer terms below
        ``org``, and none against it for long.

        Args:
            output: of the step.
            ramp: that of the step.
            scale: of a gradient scaler, which keeps small gradients of fp16 from becoming 0.

        Returns:
            place -> term -> :class:`TermGradient`. Places are "parameters" (the network's), "picture" (its linear
            output) and "stage 1" to "stage 3" (the tapped ones); those without a gradient are missing. A network with
            reentrant activation checkpointing needs ``checkpoint(..., use_reentrant=False)`` for it.
        """
        check_ramp(ramp)
        weighted = {name: ramp * weight * output.terms[name] for name, weight in self._active_weights(output.terms)}
        if self.joint:
            weighted["spgrm"] = output.terms["spgrm"]
        places: dict[str, list[Tensor]] = {"parameters": list(self.orm.parameters()), "picture": [output.hdr]}
        places |= {f"stage {number}": [stage] for number, stage in enumerate(output.stages, 1)}
        return compare_gradients({"org": output.terms["org"], **weighted}, places, scale)

    @torch.no_grad()
    def region_distance(
        self,
        hdr: Float[Tensor, "b c h w"],
        target: Float[Tensor, "b c h w"],
        metadata: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, " b"]:
        """Return how far the colours of linear pictures are off, averaged over the target's regions.

        See :func:`region_distance`.
        """
        truth = self._tonemap(target, metadata)
        priors = self._ask_bank(truth)
        return region_distance(self._tonemap(hdr, metadata), truth, priors).sum(1) / priors.valid.sum(1).clamp_min(1)

    def _ask_bank(self, picture: Tensor) -> SemanticPriors:
        return check_priors(self.bank(picture), cast(KnowledgeBank, self.bank.network).channels)

    def _describe(self, picture: Tensor, labels: Tensor | None, num_regions: int | None) -> SemanticPriors:
        if (labels is None) != (num_regions is None):
            raise ValueError(
                "labels and num_regions go together, got "
                + ("num_regions alone" if labels is None else "labels alone; their largest is not looked up")
            )
        with torch.no_grad():
            priors = self._ask_bank(picture.detach())
        if labels is None or num_regions is None:
            return priors
        own = priors_from_labels(priors.features, labels, num_regions)
        size = (len(picture), *picture.shape[-2:])
        if tuple(labels.shape) != size or labels.device != picture.device:
            raise ValueError(
                f"labels must be (B, H, W) = {size} on {picture.device}, as the tone-mapped picture, "
                f"got {tuple(labels.shape)} on {labels.device}"
            )
        return own

    def _given(self, tonemapped: Tensor, ramp: float) -> Tensor:
        """What the teacher refines: the picture, with as much of its gradient as the transfer terms have."""
        if self.joint and ramp == 1:
            return tonemapped
        constant = tonemapped.detach()
        return constant + ramp * (tonemapped - constant) if self.joint and ramp > 0 else constant

    def _transfer_terms(self, student: Tensor, refined: Tensor, priors: SemanticPriors) -> dict[str, Tensor]:
        teacher = refined.detach() if self.detach_teacher else refined
        terms = {}
        if self.weights.content_weight > 0:
            terms["content"] = content_loss(
                student, teacher, perceptual=self.perceptual, perceptual_weight=self.weights.perceptual_weight
            )
        if self.weights.color_weight > 0:
            regions: dict[str, Any] = {"masks": priors.masks}
            if priors.labels is not None:
                regions = {"labels": priors.labels, "num_regions": priors.valid.shape[1]}
            terms["color"] = self.color_loss(student, teacher, valid=priors.valid, **regions)
        return terms

    def _alignment(
        self,
        student: list[Tensor],
        teacher: list[Tensor],
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Tensor:
        detach, triples = self.detach_teacher or self.detach_features, zip(self.skams, student, teacher, strict=True)
        return torch.stack([m(s, t, generator=generator, detach_teacher=detach).loss for m, s, t in triples]).mean()

    def _active_weights(self, terms: dict[str, Tensor]) -> list[tuple[str, float]]:
        weights = {
            "content": self.weights.content_weight,
            "color": self.weights.color_weight,
            "alignment": self.weights.alignment_weight,
        }
        return [(name, weight) for name, weight in weights.items() if name in terms]

    def _check_weights(self) -> None:
        if self.weights.perceptual_weight > 0 and self.weights.content_weight > 0 and self.perceptual is None:
            raise ValueError(
                f"weights.perceptual_weight is {self.weights.perceptual_weight:g} but perceptual is None: pass "
                "perceptual=PerceptualLoss(VGG19Features(weights=FILE)), or set the weight to 0"
            )

    def _tonemap(self, hdr: Tensor, metadata: Mapping[str, Tensor] | None = None) -> Tensor:
        # The mu-law's slope of 587 at 0 leaves half precision nothing to say about dark pixels.
        with torch.autocast(hdr.device.type, enabled=False):
            return self.transfer(full(hdr), **(metadata or {}))

    def _try_network(self, sample: Tensor | None) -> tuple[list[int], Tensor, int]:
        """Run the network once, in eval mode and without gradient: stages' widths, output, and the picture's scale."""
        parameter = next(self.orm.parameters(), torch.empty(0))
        if sample is None:
            shape = (1, 5, 4, 64, 64) if self.transfer.domain == "raw" else (1, 3, 6, 64, 64)
            sample = torch.zeros(shape)
        sample = sample[:1].to(parameter.device, parameter.dtype)

        def run(bracket: Tensor) -> tuple[object, list[Tensor]]:
            with torch.no_grad(), eval_mode(self.orm), self.taps.capture(self.orm) as stages:
                hdr = try_network(self.forward_orm, self.orm, bracket)
            return hdr, stages

        output, student = run(sample)
        hdr, size = check_output(output), (sample.shape[-2], sample.shape[-1])
        self.channels_last = find_channels_last(run, sample, student, self.taps.layers)
        maps = [as_feature_map(stage, size, last) for stage, last in zip(student, self.channels_last, strict=True)]
        return [stage.shape[1] for stage in maps], hdr, max(round(self._tonemap(hdr).shape[-1] / size[-1]), 1)
