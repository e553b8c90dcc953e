"""Packed rows guided by a classifier: clips of a mixture, where denoiser and classifier are known exactly.

A clip has a class, and its tokens are normal numbers around the mean of the class, each by itself: what a token tells
about the class is for all tokens of its clip, and for no others.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt import tokens
from walt.denoiser.packed import PackedDenoiser, time_of_clips
from walt.diffusion.packed_loss import to_tokens
from walt.diffusion.prediction import target, to_z0_eps
from walt.diffusion.schedules import DiscreteLinear
from walt.diffusion.steppers import Ddim, ancestral
from walt.generation.packed_stage import PackedStage
from walt.parallel.mesh import make_mesh
from walt.tokenizer.frozen import Pixels

SCHEDULE = DiscreteLinear(zero_terminal_snr=False)
MEANS = jnp.array([[1.0, 0.0, 0.0], [-0.5, 0.9, 0.2], [-0.5, -0.9, 0.4]])
SHARES = jnp.array([0.6, 0.3, 0.1])
STD, DDIM = 1.0, Ddim()
SHAPES = [(1, 1, 2), (1, 2, 3), (2, 1, 1), (1, 2, 2), (1, 3, 1)]
LABELS = [2, 0, 1, -1, 2]


def log_joint(z_BLC, t_BE, rows):
    """log p(z_t of a clip, class), (B, E, classes), and E[z0 | z_t, class] of its tokens, (B, L, classes, C)."""
    alpha, sigma = (to_tokens(x_BE, rows['segment'])[..., None, None] for x_BE in SCHEDULE.alpha_sigma(t_BE))
    spread = alpha**2 * STD**2 + sigma**2
    off_BLKC = z_BLC[:, :, None] - alpha * MEANS
    log_BLK = -(jnp.square(off_BLKC) / (2 * spread)).sum(-1)
    member_BLE = rows['segment'][..., None] == jnp.arange(1, rows['size'].shape[1] + 1)
    of_clips = jnp.einsum('BLE,BLK->BEK', member_BLE.astype(jnp.float32), log_BLK)
    return jnp.log(SHARES) + of_clips, MEANS + alpha * STD**2 / spread * off_BLKC


def log_prob(rows, t_BE):
    log_BEK = jax.nn.log_softmax(log_joint(rows['tokens'], t_BE, rows)[0])
    known_BE = rows['size'].all(-1) & (rows['label'] < 3)
    of_label_BE = jnp.take_along_axis(log_BEK, jnp.where(known_BE, rows['label'], 0)[..., None], axis=-1)[..., 0]
    return jnp.where(known_BE, of_label_BE, 0)


class Exact(PackedDenoiser):
    """Predicts v of the class, or of the mixture where there is none."""

    def apply(self, variables, z_BLC, t, cond):
        t_BE = time_of_clips(t, cond['segment'], self.most)
        log_BEK, z0_BLKC = log_joint(z_BLC, t_BE, cond)
        sure_BEK = jnp.where(jnp.arange(3) == cond['label'][..., None], 1.0, 0.0)
        share_BEK = jnp.where(cond['label'][..., None] < 3, sure_BEK, jax.nn.softmax(log_BEK))
        share_BLK = jax.vmap(lambda share_EK, segment_L: share_EK[segment_L - 1])(share_BEK, cond['segment'])
        z0_BLC = (share_BLK[..., None] * z0_BLKC).sum(2)
        level = tuple(to_tokens(x_BE, cond['segment'])[..., None] for x_BE in SCHEDULE.alpha_sigma(t_BE))
        _, eps_BLC = to_z0_eps('z0', z0_BLC, z_BLC, *level)
        return target('v', z0_BLC, eps_BLC, *level)


def sampled(guidance, classifier_guidance, labels=LABELS, stepper=DDIM):
    module = Exact(16, 4, 3, (2, 4, 4), classes=3, layers=((0, 0, 0),), width=8, depth=1, heads=1,
                   self_condition=False)  # fmt: skip
    classifier = jax.tree_util.Partial(log_prob) if classifier_guidance else None
    stage = PackedStage(module, {}, Pixels(), SCHEDULE, 'v', False, stepper, 8, guidance, make_mesh(), None, classifier,
                        classifier_guidance)  # fmt: skip
    grids = [stage.grid(shape) for shape in SHAPES]
    rows = [stage._row(row, grids, labels) for row in stage.rows(grids)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    made = {}
    for row in tokens.rows_of(batch | {'tokens': stage.latents(batch, seed=0)}):
        for clip in tokens.unpack(row):
            made[int(clip['index'])] = clip['tokens']
    return [made[number] for number in range(len(SHAPES))]


@pytest.fixture(scope='module')
def of_classes():
    """From the denoiser that is told the class."""
    return sampled(guidance=1.0, classifier_guidance=0.0)


@pytest.mark.parametrize(('guidance', 'by_classifier'), [(0.0, 1.0), (0.3, 0.7), (-1.0, 2.0)])
def test_the_exact_classifier_samples_the_class_alone_and_beside_the_other_guidance(
    of_classes, guidance, by_classifier
):
    """Bayes' rule: guidance w goes w of the way from the mixture to the class, and the classifier its scale."""
    for number, (made, exact) in enumerate(zip(sampled(guidance, by_classifier), of_classes)):
        np.testing.assert_allclose(made, exact, atol=2e-4, err_msg=str(number))


def test_also_where_steps_draw_noise():
    noisy = ancestral()
    for made, exact in zip(sampled(0.0, 1.0, stepper=noisy), sampled(1.0, 0.0, stepper=noisy)):
        np.testing.assert_allclose(made, exact, atol=2e-4)


def test_a_clip_without_a_label_is_left_to_the_mixture(of_classes):
    """And others are not: the tests above would hold if classes made no difference."""
    mixture, guided = sampled(0.0, 0.0), sampled(0.0, 3.0)
    apart = [np.abs(one - other).max() for one, other in zip(guided, mixture)]
    assert apart[3] < 1e-6 and min(apart[:3] + apart[4:]) > 0.05
    assert np.abs(of_classes[0] - mixture[0]).max() > 0.05


def test_labels_of_neighbours_change_nothing():
    one, other = sampled(0.0, 2.0), sampled(0.0, 2.0, labels=[0, *LABELS[1:]])
    apart = [np.abs(a - b).max() for a, b in zip(one, other)]
    assert apart[0] > 0.05 and max(apart[1:]) < 1e-6


def test_a_classifier_and_its_scale_go_together():
    module = PackedDenoiser(16, 4, 3, (1, 4, 4))
    told = (module, {}, Pixels(), SCHEDULE, 'v', False, DDIM, 8, 1.0, make_mesh(), None)
    with pytest.raises(ValueError, match=r'classifier_guidance is 2\.0, and there is no classifier'):
        PackedStage(*told, None, 2.0)
    with pytest.raises(ValueError, match=r'classifier_guidance is 0\.0, and there is a classifier'):
        PackedStage(*told, log_prob)
