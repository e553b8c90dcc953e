"""What does not fit each other is refused with both values, and a batch has what the denoiser has a use for."""

import pytest
from tiny import Letters

from configs import digits_packed
from walt import build
from walt.data.joint import Joint
from walt.data.moving_digits import MovingDigits
from walt.data.packing import Packed
from walt.denoiser.conditions import NullText
from walt.denoiser.walt import Walt
from walt.diffusion.schedules import DiscreteLinear
from walt.tokenizer.frozen import FrozenTokenizer, LatentNorm, Pixels
from walt.training.compatibility import check_dense, check_given, check_packed, dense_keys
from walt.training.conditions import Conditioning

CLIPS = MovingDigits('train', frames=5, size=16, digit_size=10, clips=4)
PICTURES = MovingDigits('train', frames=1, size=16, digit_size=10, clips=4)
JOINT = Joint(CLIPS, PICTURES, frames=2)
TEXT, IMAGES = {'text_shape': (3, 4)}, {'images': True}


class Only:
    """A source whose elements have some fields."""

    num_classes = 10

    def __init__(self, source, *names):
        self.element = {name: source[0][name] for name in names}

    def __getitem__(self, index):
        return self.element


def check(small_tokenizer, source, encoder, **fields):
    null_text = encoder and NullText(*(value[0] for value in encoder.encode([''])))
    frozen = FrozenTokenizer(small_tokenizer.module, {}, LatentNorm.identity(3))
    denoiser = Walt(**dict(latent_shape=(2, 4, 4, 3), width=8, depth=2, heads=2, spatiotemporal_window=(2, 2)) | fields)
    check_dense(denoiser, frozen, source, null_text)


@pytest.mark.parametrize(
    ('source', 'encoder', 'fields', 'message'),
    [
        (CLIPS, None, {'latent_shape': (2, 8, 8, 3)}, r'have latents of \(2, 4, 4, 3\), .* is \(2, 8, 8, 3\)'),
        (CLIPS, None, {'classes': 9}, 'the data has 10 classes, but denoiser.classes is 9'),
        (CLIPS, Letters(), {'text_shape': (3, 5)}, r'embedded as \(3, 4\), denoiser.text_shape is \(3, 5\)'),
        (CLIPS, Letters(), {}, r'embedded as \(3, 4\), denoiser.text_shape is \(\)'),
        (CLIPS, None, TEXT, r'embedded as \(\), denoiser.text_shape is \(3, 4\)'),
        (
            Only(CLIPS, 'video', 'label'),
            Letters(),
            TEXT,
            r"needs \['caption'\] of the data, .* have \['label', 'video'\]",
        ),
        (CLIPS, None, IMAGES, r"needs \['images'\] of the data"),
        (Only(JOINT, 'video', 'images'), None, IMAGES | {'classes': 10}, r"needs \['label', 'images_label'\]"),
        (Only(JOINT, 'video', 'caption', 'images'), Letters(), IMAGES | TEXT, r"needs \['images_caption'\]"),
        (Joint(CLIPS, PICTURES), None, IMAGES, 'stacks of 5 pictures beside clips of 2 latent frames'),
    ],
    ids=[
        'latents',
        'classes',
        'longer_text',
        'no_text',
        'text',
        'caption',
        'images',
        'label',
        'images_caption',
        'stacks',
    ],
)
def test_data_encoder_and_denoiser_that_do_not_fit_are_refused_with_both(
    source, encoder, fields, message, small_tokenizer
):
    with pytest.raises(ValueError, match=message):
        check(small_tokenizer, source, encoder, **fields)


def test_data_encoder_and_denoiser_that_fit_are_not_refused(small_tokenizer):
    check(small_tokenizer, CLIPS, None)
    check(small_tokenizer, JOINT, Letters(), classes=10, **TEXT, **IMAGES)
    check(small_tokenizer, Only(JOINT, 'video', 'images'), None, **IMAGES)


def test_one_frame_at_least_is_left_to_predict():
    conditioning = Conditioning(DiscreteLinear(), given_frames=(1, 2))
    for frames, prediction in [(3, True), (2, False)]:
        check_given(Walt((frames, 8, 8, 3), frame_prediction=prediction), conditioning)
    with pytest.raises(ValueError, match='go up to 2, and a clip has 2 latent frames'):
        check_given(Walt((2, 8, 8, 3), frame_prediction=True), conditioning)


def test_a_batch_has_all_that_the_denoiser_has_a_use_for_and_nothing_else():
    def keys(source, **fields):
        return dense_keys(Walt(latent_shape=(2, 16, 16, 3), **fields), source)

    assert keys(JOINT) == ['video']
    assert keys(CLIPS, classes=10, **IMAGES) == ['video', 'label']
    assert set(keys(JOINT, classes=10, **IMAGES)) == {'video', 'label', 'images', 'images_label'}
    assert set(keys(JOINT, **TEXT, **IMAGES)) == {'video', 'caption', 'images', 'images_caption'}
    assert keys([{'z': 0, 'video': 0, 'label': 0, 'low': 0}], upsample=2) == ['z', 'low']


@pytest.mark.parametrize(
    ('section', 'changes', 'told'),
    [
        ('data', {'length': 64}, 'length: 64 of the data, 128 of the denoiser'),
        ('data', {'most': 3}, 'most: 3 of the data, 12 of the denoiser'),
        ('denoiser', {'classes': 9}, 'classes: 10 of the data, 9 of the denoiser'),
        ('denoiser', {'patch': 2}, r'patch: \(1, 4, 4\) of the data, \(1, 2, 2\) of the denoiser'),
        ('denoiser', {'position': 'learned', 'extent': (1, 2, 2)}, r'positions are learned as far as \(1, 2, 2\)'),
    ],
)
def test_data_that_do_not_fit_the_denoiser_are_refused_with_both_values(section, changes, told):
    config = digits_packed.get_config('smoke').to_dict()
    config[section] = config[section] | changes
    source = build.source(config['data'], 'train')
    denoiser = build.denoiser(config['denoiser'], 'float32')
    with pytest.raises(ValueError, match=told):
        check_packed(denoiser, Pixels(), source, None)


def test_pixels_latents_and_tokenizers_go_together(small_tokenizer):
    config = digits_packed.get_config('smoke').to_dict()
    denoiser, source = build.denoiser(config['denoiser'], 'float32'), build.source(config['data'], 'train')
    assert isinstance(source, Packed)
    with pytest.raises(ValueError, match="data are pixels, and tokenizer_dir is 'none' for pixels alone"):
        check_packed(denoiser, small_tokenizer, source, None)
    with pytest.raises(ValueError, match="takes data named 'packed', not MixedDigits"):
        check_packed(denoiser, Pixels(), source.source, None)
    with pytest.raises(ValueError, match='only denoisers of packed rows take pixels'):
        check_dense(Walt((1, 8, 8, 3)), Pixels(), source.source, None)
