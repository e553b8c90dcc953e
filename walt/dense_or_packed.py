"""What is done in one way for clips of one size and in another for packed rows.

DENSE     a row of a batch is a clip          `Walt`, `Dit`
PACKED    a row holds clips of any size       `PackedDenoiser`
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from walt import build
from walt.denoiser.aspect import change_aspect, change_rows
from walt.denoiser.conditions import Denoiser
from walt.denoiser.packed import PackedDenoiser
from walt.diffusion.loss import DenoisingLoss
from walt.diffusion.schedules import Schedule
from walt.generation.packed_stage import PackedStage
from walt.generation.stage import Stage
from walt.tokenizer.frozen import FrozenTokenizer, Pixels
from walt.training.compatibility import check_dense, check_packed, dense_keys, packed_keys
from walt.training.denoiser_step import make_denoiser_step, make_validation_loss
from walt.training.packed_step import make_packed_step, make_packed_validation_loss


@dataclasses.dataclass(frozen=True)
class Way:
    """
    Attributes:
        make_step, make_validation_loss: see `training.denoiser_step`.
        check: raises `ValueError` if denoiser, frozen tokenizer, source and null text do not fit each other.
        keys: (denoiser, source) -> what a batch has of the source's elements.
        order: options of `data.pipeline.batches`; packed rows have an order of their own, and no end.
        keeps_latents: whether training may encode its data once, before it begins.
        start: (params, source, target) -> parameters of one denoiser as parameters of another.
        stage: what samples.
        sampler: section `sampler` -> fields of `stage`.
    """

    make_step: Callable
    make_validation_loss: Callable
    check: Callable[..., None]
    keys: Callable[..., list[str]]
    order: Mapping[str, bool]
    keeps_latents: bool
    start: Callable[..., Any]
    stage: type[Stage] | type[PackedStage]
    sampler: Callable[[Mapping[str, Any]], dict[str, Any]]


DENSE = Way(
    make_step=make_denoiser_step,
    make_validation_loss=make_validation_loss,
    check=check_dense,
    keys=dense_keys,
    order={'shuffle': True, 'repeat': True},
    keeps_latents=True,
    start=change_aspect,
    stage=Stage,
    sampler=build.sampler,
)
PACKED = Way(
    make_step=make_packed_step,
    make_validation_loss=make_packed_validation_loss,
    check=check_packed,
    keys=packed_keys,
    order={'shuffle': False, 'repeat': False},
    keeps_latents=False,
    start=change_rows,
    stage=PackedStage,
    sampler=build.packed_sampler,
)


def way_of(denoiser: Denoiser | PackedDenoiser) -> Way:
    return PACKED if isinstance(denoiser, PackedDenoiser) else DENSE


def stage_of(
    denoiser: Denoiser | PackedDenoiser,
    params: Any,
    frozen: FrozenTokenizer | Pixels | None,
    schedule: Schedule,
    loss: DenoisingLoss,
    sampler: Mapping[str, Any],
    mesh: AbstractMesh | Mesh,
    **more: Any,
) -> Stage | PackedStage:
    """What samples a denoiser that was trained with this loss; `sampler` is the section, `more` other fields."""
    way = way_of(denoiser)
    return way.stage(
        denoiser=denoiser,
        params=params,
        frozen=frozen,
        schedule=schedule,
        parametrisation=loss.parametrisation,
        self_conditioning=loss.self_conditioning > 0,
        mesh=mesh,
        **way.sampler(sampler),
        **more,
    )
