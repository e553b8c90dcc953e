"""T5 through `walt.text.t5` on a model in a folder: the states that were stored, whatever transformers is installed."""

import foreign
import numpy as np
import pytest

from walt.text.t5 import T5


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    pytest.importorskip('torch', reason="optional: pip install -e '.[interop]'")
    pytest.importorskip('transformers', reason="optional: pip install -e '.[interop]'")
    pytest.importorskip('diffusers', reason="optional: pip install -e '.[interop]'")
    import make_goldens

    folder = tmp_path_factory.mktemp('t5')
    make_goldens.t5_folder(folder)
    return str(folder)


def test_states_of_prompts_together_are_the_stored_ones_of_each_alone(folder):
    golden = foreign.golden('t5')
    prompts = golden['prompts'].tolist()
    embeddings_BSD, mask_BS = T5(folder, length=8).encode(prompts)
    for row, prompt in enumerate(prompts):
        expected = golden[f'states{row}']
        words = len(prompt.split()) + 1
        assert mask_BS[row].tolist() == [True] * words + [False] * (8 - words)
        np.testing.assert_allclose(embeddings_BSD[row, :words], expected, atol=1e-4)
        assert (embeddings_BSD[row, words:] == 0).all()
        assert expected.std() > 0.3
