"""What every text encoder promises."""

import logging

import numpy as np
import pytest

PROMPTS = ['a cat walks', '', 'the digit three moving left and up', 'a kitten strolls over the lawn', 'A CAT, walks!']


def test_shapes_are_known_before_anything_is_encoded(make):
    for length in (5, 9):
        encoder = make(length)
        shape = (len(PROMPTS), encoder.length, encoder.width)
        embeddings_BSD, mask_BS = encoder.encode(PROMPTS)
        assert encoder.length == length
        assert embeddings_BSD.shape == shape and embeddings_BSD.dtype == np.float32
        assert mask_BS.shape == shape[:2] and mask_BS.dtype == bool


def test_padded_places_are_zero_and_masked_out_and_come_last(encoder):
    embeddings_BSD, mask_BS = encoder.encode(PROMPTS)
    assert (embeddings_BSD[~mask_BS] == 0).all() and not mask_BS.all()
    assert (np.abs(embeddings_BSD[mask_BS]).max(axis=-1) > 0).all()
    assert (np.diff(mask_BS.astype(int), axis=1) <= 0).all()


def test_the_empty_prompt_has_an_embedding_of_its_own(encoder):
    embeddings_BSD, mask_BS = encoder.encode(['', 'a cat walks'])
    assert 1 <= mask_BS[0].sum() < mask_BS[1].sum()
    assert np.isfinite(embeddings_BSD).all() and np.linalg.norm(embeddings_BSD[0]) > 1
    assert np.abs(embeddings_BSD[0] - embeddings_BSD[1]).max() > 0.1


def test_a_prompt_has_the_same_values_in_every_batch(encoder):
    many = [f'{prompt} {number}' for number in range(7) for prompt in PROMPTS]
    together = encoder.encode(many)
    for row in (0, 15, 16, 31, 34):
        alone = encoder.encode([many[row]])
        np.testing.assert_array_equal(alone.embeddings_BSD[0], together.embeddings_BSD[row])
        np.testing.assert_array_equal(alone.mask_BS[0], together.mask_BS[row])
    backwards = encoder.encode(many[::-1])
    np.testing.assert_array_equal(backwards.embeddings_BSD[::-1], together.embeddings_BSD)


def test_the_number_of_places_does_not_change_a_prompt_that_fits(make):
    short, long = (make(length).encode(['a cat walks']) for length in (6, 24))
    np.testing.assert_array_equal(short.mask_BS[0], long.mask_BS[0, :6])
    np.testing.assert_allclose(short.embeddings_BSD[0], long.embeddings_BSD[0, :6], atol=1e-5)


def test_a_prompt_that_is_cut_is_named_in_the_log_once(make, caplog):
    encoder = make(5)
    with caplog.at_level(logging.WARNING):
        encoder.encode(['short', 'one two three four five six', 'seven eight nine ten eleven'])
        encoder.encode(['one two three four five six'])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all('is cut to 5' in message for message in said)
    assert "'one two three four five six'" in said[0] and "'seven eight nine ten eleven'" in said[1]


def test_a_cut_prompt_fills_all_places(make):
    encoded = make(5).encode(['one two three four five six', 'one two three four five seven'])
    assert encoded.mask_BS.all()
    np.testing.assert_array_equal(*encoded.embeddings_BSD)


def test_text_of_numpy_is_text(encoder):
    """Batches of captions are arrays of NumPy's strings."""
    expected = encoder.encode(PROMPTS)
    np.testing.assert_array_equal(encoder.encode(np.array(PROMPTS)).embeddings_BSD, expected.embeddings_BSD)


@pytest.mark.parametrize(
    ('prompts', 'message'),
    [
        ('a cat walks', "sequence of prompts, got 'a cat walks'"),
        ([], r'sequence of prompts, got \[\]'),
        (['a cat', b'walks'], "text, got b'walks' at place 1"),
        ([None], 'text, got None at place 0'),
    ],
    ids=str,
)
def test_what_is_no_list_of_prompts_is_refused(encoder, prompts, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode(prompts)


def test_a_length_without_a_place_for_a_word_is_refused(make):
    with pytest.raises(ValueError, match=r'length must be more than the [12] mark\(s\) of an empty prompt, got 1'):
        make(1)
