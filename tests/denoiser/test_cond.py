"""What a denoiser is told: which entries there are, and where each of them reaches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.denoiser.walt import Walt

EVERYTHING = dict(classes=10, text_shape=(3, 5), pooled_text=True, frame_prediction=True, upsample=2, images=True)


@pytest.fixture(scope='module')
def everything(tiny_denoiser):
    return tiny_denoiser(**EVERYTHING)


def test_each_field_has_its_entries():
    sizes = dict(latent_shape=(2, 4, 4, 3), spatiotemporal_window=(2, 2))
    assert Walt(**sizes, classes=10, text_shape=(3, 5), frame_prediction=True, upsample=2).conditions == {
        'estimate': (2, 4, 4, 3),
        'label': (),
        'text': (3, 5),
        'text_mask': (3,),
        'frames': (2, 4, 4, 3),
        'frames_mask': (2,),
        'low': (2, 2, 2, 3),
        'low_t': (),
    }
    stacks = {'estimate': (2, 4, 4, 3), 'label': (2,), 'text': (2, 3, 5), 'text_mask': (2, 3), 'image': ()}
    assert Walt(**sizes, classes=10, text_shape=(3, 5), images=True).conditions == stacks


@pytest.mark.parametrize('images', [False, True], ids=['clips', 'images'])
def test_the_conditions_of_every_combination_of_fields_are_what_a_call_takes(images, random_inputs):
    choices = [{'classes': 10}, {'text_shape': (3, 5)}, {'frame_prediction': True}, {'upsample': 2}]
    for chosen in itertools.product([False, True], repeat=len(choices)):
        fields = {key: value for take, field in zip(chosen, choices) if take for key, value in field.items()}
        sizes = dict(latent_shape=(2, 4, 4, 3), width=8, depth=2, heads=2, spatiotemporal_window=(2, 2))
        module = Walt(**sizes, images=images, **fields)
        prediction, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), *random_inputs(module))
        assert prediction.shape == (2, 2, 4, 4, 3)


def test_an_entry_too_few_too_many_or_of_another_shape_is_named_with_both_shapes(everything):
    module, (z, t_B, cond) = everything.module, everything.inputs

    def call(cond):
        return module.apply({'params': everything.params}, z, t_B, cond)

    for name, value in cond.items():
        shape = ''.join(f'\\{sign}' if sign in '()' else sign for sign in str(value.shape[1:]))
        with pytest.raises(ValueError, match=rf'(?m)denoiser: {name}: absent, expected {shape}$'):
            call({key: other for key, other in cond.items() if key != name})
        with pytest.raises(ValueError, match=rf'(?m)denoiser: {name}: \((\d, )*7,?\), expected {shape}$'):
            call(cond | {name: jnp.zeros((*value.shape, 7))})
    with pytest.raises(ValueError, match=r'(?m)denoiser: lable: \(2,\), expected absent$'):
        call(cond | {'lable': cond['label']})
    with pytest.raises(ValueError, match=r'label: absent, expected .*; low_t: absent, expected'):
        call({key: value for key, value in cond.items() if key not in ('label', 'low_t')})


def test_everything_that_conditions_changes_the_prediction_of_every_row(everything):
    z, t_B, cond = everything.inputs
    prediction = everything.apply(everything.params, z, t_B, cond)
    assert set(cond) == set(everything.module.conditions)
    changes = {
        'label': cond['label'] + 1,  # of class 9 this makes the null class
        'text_mask': ~cond['text_mask'],
        'frames_mask': 1 - cond['frames_mask'],
        'image': ~cond['image'],
    }
    others = {name: (z, t_B, cond | {name: changes.get(name, cond[name] + 0.1)}) for name in cond}
    others |= {'z': (z + 1, t_B, cond), 't': (z, t_B + 0.05, cond)}
    others['null class'] = (z, t_B, cond | {'label': jnp.full_like(cond['label'], 10)})
    for name, other in others.items():
        changed_B = np.abs(everything.apply(everything.params, *other) - prediction).max((1, 2, 3, 4))
        assert (changed_B > 1e-4).all(), name


def test_rows_of_a_batch_do_not_meet(everything):
    """Neither their latents nor anything that they are told, texts among it."""
    z, t_B, cond = everything.inputs
    together = everything.apply(everything.params, z, t_B, cond)
    other = jax.tree.map(lambda rows: rows.at[0].set(rows[1]), (z, t_B, cond))
    np.testing.assert_array_equal(everything.apply(everything.params, *other)[1], together[1])


def test_masked_tokens_of_a_text_have_no_influence(everything):
    z, t_B, cond = everything.inputs
    hidden = ~cond['text_mask'][..., None]
    assert hidden.any()
    other = cond | {'text': jnp.where(hidden, 100.0, cond['text'])}
    expected = everything.apply(everything.params, z, t_B, cond)
    np.testing.assert_allclose(everything.apply(everything.params, z, t_B, other), expected, atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'reached'),
    [
        ('estimate', lambda t, h, w: (t == 1) & (h == 1) & (w == 5)),
        ('frames', lambda t, h, w: (t == 1) & (h == 1) & (w == 5)),
        ('frames_mask', lambda t: t == 1),
        ('low', lambda t, h, w: (t == 1) & (h <= 1) & (w >= 1)),
    ],
    ids=['estimate', 'frames', 'frames_mask', 'low'],
)
def test_what_stands_beside_the_latents_stands_at_its_own_place_and_frame(name, reached, tiny_denoiser):
    """Of layers that change nothing, latent (1, 1, 5) of 2x8x8 sees itself, and the 3x3 low ones around (1, 0, 2)."""
    tiny = tiny_denoiser(latent_shape=(2, 8, 8, 3), frame_prediction=True, upsample=2, rank=0)
    still = {'modulation': jax.tree.map(jnp.zeros_like, tiny.params['modulation'])}
    z, t_B, cond = tiny.inputs

    def token(value):
        return tiny.apply(tiny.params | still, z, t_B, cond | {name: value})[0, 1, 1, 5] @ jnp.arange(3.0)

    gradient = np.abs(jax.grad(token)(cond[name])[0])
    gradient = gradient if name == 'frames_mask' else gradient.max(-1)
    np.testing.assert_array_equal(gradient > 0, reached(*np.indices(gradient.shape)))
