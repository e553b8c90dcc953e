"""WordLlama: a table of words."""

import numpy as np
import pytest

from walt.text import wordllama
from walt.text.wordllama import WordLlama


@pytest.fixture(scope='module')
def encoder():
    return WordLlama(16)


def test_close_meanings_are_close_and_others_are_not(encoder, mean_cosine):
    """Without <s>, as its authors take the mean."""
    assert mean_cosine(encoder, 'the cat walks', 'a kitten strolls', skip=1) == pytest.approx(0.555, abs=0.005)
    assert mean_cosine(encoder, 'the cat walks', 'a rocket starts', skip=1) == pytest.approx(-0.005, abs=0.005)


def test_an_embedding_knows_its_word_alone(encoder):
    (cat_SD, dog_SD), _ = encoder.encode(['a cat chases a dog', 'a dog chases a cat'])
    assert {row.tobytes() for row in cat_SD} == {row.tobytes() for row in dog_SD}
    assert (cat_SD != dog_SD).any()


def test_every_prompt_begins_with_the_mark_that_is_the_empty_one(encoder):
    embeddings_BSD, mask_BS = encoder.encode(['', 'a cat', 'walks'])
    np.testing.assert_array_equal(embeddings_BSD[:, 0], np.broadcast_to(embeddings_BSD[0, 0], (3, encoder.width)))
    assert mask_BS[0].tolist() == [True] + [False] * 15


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(wordllama, 'TABLE', wordllama.TABLE._replace(package='walt-has-no-such-package'))
    with pytest.raises(FileNotFoundError, match=r'pip install --no-deps wordllama==0\.4\.0\.post1'):
        WordLlama()
