"""The models of the paper have the parameters that it says, and no more parts than their fields ask for."""

import math

import jax
import numpy as np
import pytest
from flax import linen as nn

from walt.denoiser.walt import Walt

VIDEO = dict(latent_shape=(5, 16, 16, 8), classes=101)
TEXT = dict(latent_shape=(5, 16, 16, 8), text_shape=(64, 2048), frame_prediction=True)
WIDE = dict(spatiotemporal_window=(8, 14), upsample=2)  # 9:16, made of latents of half the height and width
XL = dict(depth=28, width=1152)
SEPARATE = dict(separate_adaln=True, rank=0)

# Fields, and parameters in millions (tables 1, 2, 3d, 5 and 8 of the paper, and our audit of them).
MODELS = {
    'L, rank 2': (VIDEO, 313.2),
    'L, rank 4': (VIDEO | {'rank': 4}, 313.6),
    'L, rank 16': (VIDEO | {'rank': 16}, 315.6),
    'L, rank 64': (VIDEO | {'rank': 64}, 323.9),
    'L, rank 256': (VIDEO | {'rank': 256}, 356.9),
    'L, separate': (VIDEO | SEPARATE, 457.7),
    'XL, rank 2': (VIDEO | XL, 460.0),
    'ImageNet': (
        dict(latent_shape=(1, 32, 32, 8), classes=1000, spatial_window=(16, 16), spatiotemporal_window=(32, 32))
        | SEPARATE,
        459.8,
    ),
    'text to video, L': (TEXT | {'images': True}, 416.0),
    'text to video, L, pooled text': (TEXT | {'pooled_text': True}, 419.1),
    'text to video, base': (TEXT | dict(depth=52, width=1792, hidden=9216), 3090),
    'text to video, 2x': (TEXT | WIDE | dict(latent_shape=(5, 32, 56, 8), patch=2, depth=40, width=1408), 1300),
    'text to video, 2x 2x': (TEXT | WIDE | dict(latent_shape=(5, 64, 112, 8), patch=4), 419),
}


def parameters(module, random_inputs):
    return nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *random_inputs(module, rows=1)))['params']


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(('fields', 'millions'), MODELS.values(), ids=MODELS.keys())
def test_parameter_counts_of_the_paper(fields, millions, random_inputs):
    np.testing.assert_allclose(count(parameters(Walt(**fields), random_inputs)) / 1e6, millions, rtol=0.003)


def test_each_layer_has_a_bias_for_every_offset_within_its_window(random_inputs):
    """31^2 offsets in 1x16x16 and 9 x 15^2 in 5x8x8, for 16 heads in each of 12 blocks; none where positions turn."""
    blocks = parameters(Walt(**VIDEO), random_inputs)['blocks']
    tables = {name: blocks[name]['relative_position']['table'].shape for name in ('spatial', 'spatiotemporal')}
    assert tables == {'spatial': (12, 31 * 31, 16), 'spatiotemporal': (12, 9 * 15 * 15, 16)}
    turning = parameters(Walt(**VIDEO, rope=True), random_inputs)['blocks']
    assert not any('relative_position' in layer for layer in turning.values())


def test_a_rank_costs_seven_widths_a_layer(tiny_denoiser):
    assert count(tiny_denoiser(depth=4, rank=3).params) - count(tiny_denoiser(depth=4, rank=0).params) == 3 * 7 * 8 * 4


def test_separate_modulations_stand_in_every_layer_and_nowhere_else(tiny_denoiser):
    params, shared = tiny_denoiser(**SEPARATE).params, tiny_denoiser(rank=0).params
    assert 'modulation' not in params and 'modulation' in shared
    for name in ('spatial', 'spatiotemporal'):
        assert params['blocks'][name]['modulation']['linear']['kernel'].shape == (1, 8, 6, 8)
        assert not {'modulation', 'lora'} & set(shared['blocks'][name])


def test_hidden_is_the_width_inside_the_mlp_and_four_times_the_models_where_it_is_not_given(tiny_denoiser):
    for hidden, expected in [(0, 32), (12, 12)]:
        for layer in tiny_denoiser(hidden=hidden).params['blocks'].values():
            assert layer['mlp']['up']['kernel'].shape == (1, 8, expected)
