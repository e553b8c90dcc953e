"""Rows that are stacks of pictures: each picture is as if it were alone, and clips beside them do not notice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

BY_PICTURE = ('label', 'text', 'text_mask', 'estimate')


@pytest.fixture(scope='module')
def joint(tiny_denoiser):
    """With labels and texts, three frames or pictures a row."""
    return tiny_denoiser(latent_shape=(3, 4, 4, 3), images=True, classes=10, text_shape=(4, 5), pooled_text=True)


def as_images(inputs, image_B):
    z, t_B, cond = inputs
    return z, t_B, cond | {'image': jnp.array(image_B)}


def by_picture(change, inputs):
    """`inputs` with `change` applied to everything that belongs to a frame or picture, arrays (B, T, ...)."""
    z, t_B, cond = inputs
    return change(z), t_B, cond | {name: change(cond[name]) for name in BY_PICTURE if name in cond}


def test_pictures_in_another_order_have_their_predictions_in_that_order(joint):
    order = np.array([2, 0, 1])
    for image, equal in [(True, True), (False, False)]:
        inputs = as_images(joint.inputs, [image, image])
        prediction = joint.apply(joint.params, *inputs)
        permuted = joint.apply(joint.params, *by_picture(lambda x: x[:, order], inputs))
        assert np.allclose(permuted, prediction[:, order], atol=1e-5) == equal


def test_a_picture_is_the_same_in_a_stack_of_others(joint, random_inputs):
    """Neither the latents nor label, text and estimate of the other pictures have an influence; in a clip they do."""
    one = as_images(joint.inputs, [False, True])
    _, _, cond = others = random_inputs(joint.module, seed=4)
    other = {'z': others[0]} | {name: cond[name] for name in BY_PICTURE} | {'text_mask': ~cond['text_mask']}
    mine = {'z': one[0]} | {name: one[2][name] for name in BY_PICTURE}
    prediction = joint.apply(joint.params, *one)
    for name in other:
        mixed = mine | {name: other[name].at[:, 1].set(mine[name][:, 1])}
        z = mixed.pop('z')
        changed = joint.apply(joint.params, z, one[1], one[2] | mixed)
        np.testing.assert_allclose(changed[1, 1], prediction[1, 1], atol=1e-6, err_msg=name)
        assert np.abs(changed[1, 0] - prediction[1, 0]).max() > 1e-3, name
        assert np.abs(changed[0, 1] - prediction[0, 1]).max() > 1e-3 or name == 'label', name


def test_a_clip_is_the_same_beside_a_stack_of_pictures(joint):
    clips, mixed = (joint.apply(joint.params, *as_images(joint.inputs, rows)) for rows in ([False] * 2, [False, True]))
    np.testing.assert_array_equal(mixed[0], clips[0])
    assert np.abs(mixed[1] - clips[1]).max() > 1e-2


def test_a_clip_is_as_in_a_denoiser_without_images(tiny_denoiser):
    """Where there is no text: to texts, a denoiser with images attends in other windows."""
    with_images, plain = (
        tiny_denoiser(latent_shape=(3, 4, 4, 3), classes=10, images=images) for images in (True, False)
    )
    z, t_B, cond = plain.inputs
    expected = plain.apply(plain.params, z, t_B, cond)
    cond = cond | {'label': jnp.repeat(cond['label'][:, None], 3, axis=1), 'image': jnp.zeros(2, bool)}
    np.testing.assert_allclose(with_images.apply(plain.params, z, t_B, cond), expected, atol=1e-5)


@pytest.mark.parametrize(
    ('layer', 'images', 'window'),
    [
        ('spatial', True, lambda t, h, w: t == 1),
        ('spatiotemporal', True, lambda t, h, w: t == 1),
        ('spatiotemporal', False, lambda t, h, w: (h < 2) & (w >= 2)),
    ],
    ids=['spatial', 'spatiotemporal', 'spatiotemporal without images'],
)
def test_text_is_attended_to_in_spatial_windows_in_every_layer_of_a_joint_model(layer, images, window, tiny_denoiser):
    """All that mixes here is the text's attention of one layer: gates are shut, and the other layer's is silent."""
    tiny = tiny_denoiser(latent_shape=(3, 4, 4, 3), images=images, text_shape=(4, 5), rank=0)
    blocks = {
        name: of_layer
        if name == layer
        else of_layer | {'text': of_layer['text'] | {'out': jax.tree.map(jnp.zeros_like, of_layer['text']['out'])}}
        for name, of_layer in tiny.params['blocks'].items()
    }
    shut = {'modulation': jax.tree.map(jnp.zeros_like, tiny.params['modulation']), 'blocks': blocks}

    def token(z):
        return tiny.apply(tiny.params | shut, z, *tiny.inputs[1:])[0, 1, 0, 3] @ jnp.arange(3.0)

    gradient_THW = np.abs(jax.grad(token)(tiny.inputs[0])[0]).max(-1)
    np.testing.assert_array_equal(gradient_THW > 0, window(*np.indices((3, 4, 4))))


@pytest.mark.parametrize('skip_images', [False, True])
def test_skipped_pictures_owe_nothing_to_the_spatiotemporal_layers(skip_images, tiny_denoiser):
    fields = dict(latent_shape=(3, 4, 4, 3), images=True, classes=10, text_shape=(4, 5), pooled_text=True)
    tiny = tiny_denoiser(**fields, skip_images=skip_images)
    inputs, blocks = as_images(tiny.inputs, [False, True]), tiny.params['blocks']
    other = {'blocks': blocks | {'spatiotemporal': jax.tree.map(lambda leaf: -leaf, blocks['spatiotemporal'])}}
    moved = np.abs(tiny.apply(tiny.params | other, *inputs) - tiny.apply(tiny.params, *inputs)).max((1, 2, 3, 4))
    assert moved[0] > 1e-2 and (moved[1] == 0 if skip_images else moved[1] > 1e-2)
