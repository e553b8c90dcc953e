"""What the tokenizer's training minimises: weights that fit what they weigh, and sums of both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.tokenizer import losses
from walt.tokenizer.bottleneck import Lfq, Vq
from walt.tokenizer.discriminator import Discriminator
from walt.tokenizer.objective import Logits, Objective

ADVERSARIAL = {'adversarial': 0.1, 'r1': 10.0, 'lecam': 0.001}
DISCRIMINATOR = Discriminator(channels=4, multipliers=(1,))


@pytest.fixture(scope='module')
def video():
    return jnp.asarray(np.random.default_rng(0).uniform(size=(2, 5, 8, 8, 3)), jnp.float32)


def distance(a_NHWC, b_NHWC):
    """Stands in for a feature network."""
    return jnp.abs(a_NHWC - b_NHWC).mean((1, 2, 3))


def test_every_term_is_weighed_on_its_side(tiny_tokenizer, video, random_parameters):
    weights = {'reconstruction': 5.0, 'perceptual': 0.3, 'scale_equivariance': 0.25, **ADVERSARIAL}
    objective = Objective(tiny_tokenizer.module, weights, perceptual=True, discriminator=DISCRIMINATOR)
    params, opposed = tiny_tokenizer.params, random_parameters(DISCRIMINATOR, video)
    averages = Logits(jnp.float32(0.4), jnp.float32(-0.2))

    @jax.jit
    def both(params, opposed):
        return objective(params, opposed, averages, distance, video, jax.random.split(jax.random.key(0), len(video)), 0)

    value, metrics = both(params, opposed)
    z = tiny_tokenizer.encode(params, video)
    fake = tiny_tokenizer.decode(params, z)
    halved = tiny_tokenizer.decode(params, losses.halve(z))
    real_B, fake_B = (DISCRIMINATOR.apply({'params': opposed}, x) for x in (video, fake))
    expected = {
        'reconstruction': losses.reconstruction(fake, video),
        'perceptual': np.abs(fake - video).mean(),
        'scale_equivariance': losses.reconstruction(halved, losses.halve(video)),
        'adversarial': losses.adversarial(fake_B),
        'discriminator': losses.discriminator(real_B, fake_B),
        'lecam': losses.lecam(real_B, fake_B, 0.4, -0.2),
        'logit_real': real_B.mean(),
        'logit_fake': fake_B.mean(),
        'latent_std': z.std(),
        'input_min': video.min(),
        'input_max': video.max(),
    }
    for name, quantity in expected.items():
        np.testing.assert_allclose(metrics[name], quantity, rtol=1e-3, err_msg=name)
    own = ('reconstruction', 'perceptual', 'scale_equivariance', 'adversarial')
    np.testing.assert_allclose(value.tokenizer, sum(weights[name] * metrics[name] for name in own), rtol=1e-5)
    other = metrics['discriminator'] + 10 * metrics['r1'] + 0.001 * metrics['lecam']
    np.testing.assert_allclose(value.discriminator, other, rtol=1e-5)


def largest(tree) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_a_frozen_encoder_and_its_codes_have_no_gradient(tiny_tokenizer, video, random_parameters):
    module = tiny_tokenizer.module.clone(bottleneck=Vq(codes=8))
    weights = {'reconstruction': 1.0, 'codebook': 1.0, 'commitment': 1.0, 'coverage': 1.0}
    objective = Objective(module, weights, freeze_encoder=True)
    params = random_parameters(module, video)
    gradient = jax.jit(jax.grad(lambda params: objective(params, None, None, None, video, None, 0)[0].tokenizer))(
        params
    )
    assert largest(gradient['encoder']) == largest(gradient['bottleneck']) == 0 < largest(gradient['decoder'])


def test_the_discriminator_pulls_at_the_tokenizer_through_its_reconstruction(tiny_tokenizer, video, random_parameters):
    """The adversarial term alone; its gradient is that of the logit of what the tokenizer makes."""
    weights = {'reconstruction': 0.0, 'adversarial': 1.0, 'r1': 0.0, 'lecam': 0.0}
    objective = Objective(tiny_tokenizer.module, weights, discriminator=DISCRIMINATOR)
    opposed = random_parameters(DISCRIMINATOR, video)

    @jax.jit
    @jax.grad
    def gradient(params):
        return objective(params, opposed, Logits.zero(), None, video, None, 0)[0].tokenizer

    @jax.jit
    @jax.grad
    def expected(params):
        fake, _ = tiny_tokenizer.module.apply({'params': params}, video)
        return jax.nn.softplus(-DISCRIMINATOR.apply({'params': opposed}, fake)).mean()

    found, wanted = gradient(tiny_tokenizer.params), expected(tiny_tokenizer.params)
    scale = largest(wanted)
    assert scale > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), found, wanted)


def test_the_weight_of_the_entropy_comes_down_from_three_times_to_once(tiny_tokenizer, video):
    module = tiny_tokenizer.module.clone(bottleneck=Lfq())
    objective = Objective(module, {'reconstruction': 0.0, 'commitment': 0.0, 'entropy': 0.1})

    @jax.jit
    def ratio(step):
        value, metrics = objective(tiny_tokenizer.params, None, None, None, video, None, step)
        return value.tokenizer / metrics['entropy']

    np.testing.assert_allclose([ratio(step) for step in (0, 1000, 2000, 9000)], [0.3, 0.2, 0.1, 0.1], rtol=1e-4)


@pytest.mark.parametrize(
    ('parts', 'weights', 'message'),
    [
        ({}, {}, r"no weight for \['reconstruction'\]"),
        ({}, {'reconstruction': 1.0, 'gan': 1.0}, r"nothing to weigh for \['gan'\]"),
        ({}, {'reconstruction': 1.0, 'perceptual': 0.1}, r"\['perceptual'\].*perceptual network off"),
        ({'perceptual': True}, {'reconstruction': 1.0}, r"no weight for \['perceptual'\].*perceptual network on"),
        ({}, {'reconstruction': 1.0, **ADVERSARIAL}, r"\['adversarial', 'lecam', 'r1'\].*discriminator off"),
        ({'discriminator': DISCRIMINATOR}, {'reconstruction': 1.0, 'adversarial': 1.0}, r"\['lecam', 'r1'\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_what_is_on(parts, weights, message, tiny_tokenizer):
    with pytest.raises(ValueError, match=message):
        Objective(tiny_tokenizer.module, weights, **parts)


def test_a_bottleneck_whose_terms_have_no_weight_is_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"no weight for \['codebook', 'commitment', 'coverage'\].*bottleneck Vq"):
        Objective(tiny_tokenizer.module.clone(bottleneck=Vq()), {'reconstruction': 1.0})
