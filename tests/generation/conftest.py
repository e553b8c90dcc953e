"""Stages of every kind: `build_stage(**fields)`."""

import pytest
from tiny import Letters

from walt.denoiser.conditions import NullText
from walt.denoiser.walt import Walt
from walt.diffusion.schedules import DiscreteLinear
from walt.diffusion.steppers import Ddim
from walt.generation.stage import Stage
from walt.parallel.mesh import make_mesh
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm

SAMPLING = dict(self_conditioning=True, stepper=Ddim(0.0), steps=2, guidance=1.5)


@pytest.fixture(scope='session')
def frozen(small_tokenizer):
    return FrozenTokenizer(small_tokenizer.module, small_tokenizer.params, LatentNorm.identity(3))


@pytest.fixture(scope='session')
def build_stage(frozen):
    """build_stage(kind=Stage, params=None, frozen=frozen, sampling={}, **fields of the denoiser) -> a stage."""
    tokenizer = frozen

    def build_stage(kind=Stage, params=None, frozen=tokenizer, sampling=None, **fields) -> Stage:
        fields = dict(latent_shape=(2, 4, 4, 3), width=8, depth=2, heads=2, spatiotemporal_window=(2, 2)) | fields
        denoiser = Walt(**fields)
        text = {}
        if denoiser.text_shape:
            embeddings, mask = Letters().encode([''])
            text = dict(encode_text=Letters().encode, null_text=NullText(embeddings[0], mask[0]))
        keys = dict(denoiser=denoiser, params=params, frozen=frozen, schedule=DiscreteLinear(), parametrisation='v')
        return kind(**keys, **SAMPLING, mesh=make_mesh(), **text | (sampling or {}))

    return build_stage
