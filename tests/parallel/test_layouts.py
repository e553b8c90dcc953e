"""The usual layouts of eight devices compute what one device does, and send what they are meant to send."""

import pytest
from test_many_devices import run

# Of a training step: the collectives that there are at all.
SENT = {
    'tokenizer': {
        'ddp': {'all-reduce data'},
        'fsdp': {'all-reduce fsdp', 'all-gather fsdp'},
        # Rows of a frame are split by both axes: borders of convolutions, and sums of norms and gradients over rows.
        # Kernels are stored in parts along both of their channel axes.
        'fsdp_tp': {
            'all-reduce fsdp',
            'all-gather fsdp',
            'all-gather tensor',
            'collective-permute tensor',
            'all-reduce tensor',
        },
        'fsdp_context': {'all-reduce fsdp', 'all-gather fsdp', 'collective-permute context', 'all-reduce context'},
    },
    'denoiser, 3 frames': {
        'ddp': {'all-reduce data'},
        'fsdp': {'all-reduce fsdp', 'all-gather fsdp'},
        # What leaves heads and the MLP is summed; a gather of the few vectors of AdaLN.
        'fsdp_tp': {'all-reduce fsdp', 'all-gather fsdp', 'all-reduce tensor', 'all-gather tensor'},
        # Keys and values of spatial windows, and the way back of their gradients.
        'fsdp_context': {
            'all-reduce fsdp',
            'all-gather fsdp',
            'all-reduce context',
            'all-gather context',
            'all-to-all context',
        },
    },
    # Two devices divide two frames, which move whole.
    'denoiser, 2 frames': {
        'fsdp_context': {'all-reduce fsdp', 'all-gather fsdp', 'all-reduce context', 'all-to-all context'},
    },
}
# Bytes below which a collective is of no activations and of no parameters but vectors.
FEW = 4096


# The slow tests have the rest.
@pytest.fixture(
    scope='module',
    params=[['fsdp_context'], pytest.param(['ddp', 'fsdp', 'fsdp_tp'], marks=pytest.mark.slow)],
    ids=' '.join,
)
def figures(request):
    return run('layouts.py', *request.param)


def of_each(figures):
    return [(task, name, of) for task, layouts in figures.items() for name, of in layouts.items()]


def test_losses_and_gradients_are_those_of_one_device(figures):
    for task, name, of in of_each(figures):
        assert of['loss'] < 1e-5 and of['gradients'] < 1e-5, (task, name, of)


def test_samples_latents_and_pixels_are_those_of_one_device(figures):
    compared = [(task, name, of['used']) for task, name, of in of_each(figures) if 'used' in of]
    assert len(compared) in (2, 6)
    for task, name, difference in compared:
        assert difference < 1e-5, (task, name, difference)


def test_nothing_is_sent_that_the_layout_does_not_mean(figures):
    for task, name, of in of_each(figures):
        sent = {kind for kind, size in of['collectives'].items() if size > FEW}
        assert sent - SENT[task][name] == set(), (task, name, of['collectives'])


def test_parameters_stored_in_parts_are_gathered_once_for_each_pass_and_activations_never(figures):
    """A denoiser's are used in three passes (two forward, one backward), a tokenizer's in two."""
    for task, passes in (('tokenizer', 2), ('denoiser, 3 frames', 3)):
        of = figures[task].get('fsdp_context') or figures[task]['fsdp']
        gathered = of['collectives']['all-gather fsdp']
        assert 0.5 * of['parameters'] < gathered < passes * of['parameters'], (task, of)
        assert of['collectives']['all-reduce fsdp'] < 1.2 * of['parameters'], (task, of)
    for task, name, of in of_each(figures):
        if name != 'fsdp_tp':  # gathers parts of them
            assert of['no parameters'] == [], (task, name, of)


def test_devices_that_share_a_clip_gather_the_keys_and_values_of_spatial_windows_and_nothing_larger(figures):
    """Both forward passes gather k and v, float32 (2 rows, 3 frames, tokens, 16 channels), of 16 tokens, and again of
    these with two of a text; the backward pass has them."""
    if 'fsdp_context' not in figures['denoiser, 3 frames']:
        pytest.skip('no devices share a clip')
    sent = figures['denoiser, 3 frames']['fsdp_context']['collectives']['all-gather context']
    keys_and_values = 2 * (2 * 3 * (16 + 18) * 16) * 4
    assert 2 * keys_and_values <= sent <= 2 * keys_and_values + FEW, sent


@pytest.mark.slow
def test_all_axes_at_once_compute_what_one_device_does():
    compared = of_each(run('layouts.py', 'all'))
    assert [name for _, name, _ in compared] == ['all', 'all']
    for task, name, of in compared:
        assert max(of['loss'], of['gradients'], of.get('used', 0)) < 1e-5, (task, name, of)


@pytest.mark.slow
def test_pictures_beside_clips_are_trained_on_as_on_one_device():
    compared = of_each(run('layouts.py', 'joint', 'fsdp_context', 'all'))
    assert [name for _, name, _ in compared] == ['fsdp_context', 'all']
    for task, name, of in compared:
        assert max(of['loss'], of['gradients']) < 1e-5, (task, name, of)
    # Stacks of pictures lie with their clips. The gradient of [window, text] moves a border, as a window and a text do
    # not divide alike.
    of_context = compared[0][2]
    sent = {kind for kind, size in of_context['collectives'].items() if size > FEW}
    assert sent - SENT['denoiser, 3 frames']['fsdp_context'] <= {'collective-permute context'}, sent
    assert of_context['no parameters'] == []


@pytest.mark.slow
def test_convolutions_of_frames_of_any_size_compute_what_one_device_does():
    for case, errors in run('convolutions.py').items():
        assert max(errors) < 1e-5, (case, errors)
