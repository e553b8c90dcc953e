"""Counts and the peak of a tokenizer's training step, beside those of the compiler."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from walt.planning.flops import flops
from walt.planning.memory import peak_bytes
from walt.planning.program import program
from walt.tokenizer.autoencoder import Tokenizer


@pytest.fixture(scope='module')
def step_of_a_tokenizer():
    """(value and gradient of the reconstruction's loss, parameters, video), in shapes; wide enough to be typical."""
    module = Tokenizer(
        channels=32,
        multipliers=(1, 2),
        blocks=(1, 0),
        middle_blocks=0,
        spatial_strides=(2,),
        temporal_strides=(2,),
        groups=8,
    )
    video_BTHWC = jax.ShapeDtypeStruct((1, 5, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), jnp.zeros(video_BTHWC.shape))))

    def loss(variables, video_BTHWC):
        reconstruction_BTHWC, _ = module.apply(variables, video_BTHWC)
        return jnp.square(reconstruction_BTHWC - video_BTHWC).mean()

    return jax.value_and_grad(loss), variables, video_BTHWC


def test_a_tokenizers_training_step_costs_what_xla_counts(step_of_a_tokenizer):
    """XLA counts elementwise operations too, which are few."""
    function, *args = step_of_a_tokenizer
    ours, on_a_tpu = (flops(program(function, *args, platform=platform)) for platform in ('cpu', 'tpu'))
    xlas = jax.jit(function).lower(*args).cost_analysis()['flops']
    assert ours <= xlas <= 1.03 * ours
    assert on_a_tpu == pytest.approx(ours, rel=0.02)


def test_the_peak_is_near_what_xla_reserves(step_of_a_tokenizer):
    """0.9 to 1.0 of it here; what other networks and a TPU do stands in the module's docstring."""
    function, *args = step_of_a_tokenizer
    reserved = jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert 0.6 * reserved <= peak_bytes(program(function, *args, platform='cpu')) <= 1.5 * reserved
