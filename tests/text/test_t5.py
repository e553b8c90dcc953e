"""T5 from a folder as others publish it: which files are read, and what is refused."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from interop import foreign

from walt.text.t5 import T5
from walt.weights import write_safetensors

PROMPTS = ['a cat walks', '', 'a kitten strolls']


@pytest.fixture(scope='module')
def expected(t5_folder):
    return T5(t5_folder('t5'), length=8).encode(PROMPTS)


@pytest.fixture
def folder(tmp_path):
    """A model without weights."""
    return foreign.t5_folder(tmp_path / 'model', 't5')


def split_in_two(arrays, folder, pattern, write):
    """Two files and their index."""
    names = sorted(arrays)
    where = {name: pattern.format(1 + number % 2) for number, name in enumerate(names)}
    for part in set(where.values()):
        write(folder / part, {name: arrays[name] for name in names if where[name] == part})
    index = f'{pattern.split("-")[0]}.{pattern.split(".")[-1]}.index.json'
    (folder / index).write_text(json.dumps({'weight_map': where}))


@pytest.mark.parametrize('kind', ['one state dict', 'parts of safetensors', 'parts of state dicts'])
def test_weights_are_read_from_files_of_all_published_kinds(kind, folder, expected, write_torch):
    arrays = foreign.t5_weights('t5')
    if kind == 'one state dict':
        write_torch(folder / 'pytorch_model.bin', arrays)
    elif kind == 'parts of safetensors':
        split_in_two(
            arrays, folder, 'model-0000{}-of-00002.safetensors', lambda path, part: write_safetensors(path, part, {})
        )
    else:
        split_in_two(arrays, folder, 'pytorch_model-0000{}-of-00002.bin', write_torch)
    found = T5(str(folder), length=8).encode(PROMPTS)
    np.testing.assert_array_equal(found.embeddings_BSD, expected.embeddings_BSD)
    np.testing.assert_array_equal(found.mask_BS, expected.mask_BS)


def test_states_are_those_of_transformers_and_0_after_the_mark(expected):
    states = foreign.golden('t5')['states0']
    np.testing.assert_allclose(expected.embeddings_BSD[0, :4], states, atol=1e-4)
    assert (
        expected.mask_BS.sum(axis=1).tolist() == [4, 1, 4] and (expected.embeddings_BSD[~expected.mask_BS] == 0).all()
    )


def test_a_model_that_is_no_folder_is_fetched_by_its_name_weights_last(t5_folder, monkeypatch, expected):
    asked = []

    def snapshot_download(model, allow_patterns):
        asked.append((model, allow_patterns))
        return t5_folder('t5')

    monkeypatch.setitem(sys.modules, 'huggingface_hub', SimpleNamespace(snapshot_download=snapshot_download))
    encoder = T5('someone/t5', length=8)
    assert asked == [('someone/t5', ['config.json', 'tokenizer.json', 'spiece.model'])]
    np.testing.assert_array_equal(encoder.encode(PROMPTS).embeddings_BSD, expected.embeddings_BSD)
    assert asked[1:] == [('someone/t5', ['model*.safetensors', 'model.safetensors.index.json'])]


def test_a_vocabulary_of_sentencepiece_is_read_where_there_is_no_tokenizer_json(folder):
    """Pieces are those of the library, and then </s>."""
    sentencepiece = pytest.importorskip('sentencepiece', reason="optional: pip install -e '.[t5]'")
    (folder / 'tokenizer.json').unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['a cat walks', 'a kitten strolls', 'cats walk'] * 20),
        model_prefix=str(folder / 'spiece'),
        vocab_size=16,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    arrays = foreign.t5_weights('t5')
    for name in ('shared.weight', 'encoder.embed_tokens.weight'):
        arrays[name] = np.resize(arrays['shared.weight'], (16, 16))
    write_safetensors(folder / 'model.safetensors', arrays, {})
    config = foreign.T5_CONFIGS['t5'] | {'vocab_size': 16}
    (folder / 'config.json').write_text(json.dumps(config))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / 'spiece.model'))
    mask_BS = T5(str(folder), length=24).encode(PROMPTS).mask_BS
    assert mask_BS.sum(axis=1).tolist() == [1 + len(pieces.encode(prompt)) for prompt in PROMPTS]


def test_without_a_library_it_is_said_what_to_install(folder, monkeypatch):
    for library in ('sentencepiece', 'huggingface_hub'):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=r"someone/t5 is no folder; .* pip install -e '\.\[t5\]'"):
        T5('someone/t5')
    (folder / 'tokenizer.json').rename(folder / 'spiece.model')
    with pytest.raises(ModuleNotFoundError, match=r"needs sentencepiece: pip install -e '\.\[t5\]'"):
        T5(str(folder))


def test_files_that_are_missing_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"model has none of \['model.safetensors', 'pytorch_model.bin'\]"):
        T5(str(folder)).encode(PROMPTS)
    (folder / 'tokenizer.json').unlink()
    with pytest.raises(FileNotFoundError, match=r"model has none of \['tokenizer.json', 'spiece.model'\]"):
        T5(str(folder))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model_type': 'bert'}, "is a 'bert', expected a T5"),
        ({'feed_forward_proj': 'gated-silu'}, "has feed_forward_proj 'gated-silu', known are ['gated-gelu', 'relu']"),
        ({'eos_token_id': 2}, 'ends prompts with [1], expected </s>, 2'),
    ],
    ids=str,
)
def test_what_is_not_this_network_is_refused(change, message, folder):
    (folder / 'config.json').write_text(json.dumps(foreign.T5_CONFIGS['t5'] | change))
    with pytest.raises(ValueError, match=re.escape(message)):
        T5(str(folder))


def test_weights_of_another_network_are_refused_with_the_first_prompts(folder, t5_folder):
    shutil.copy(f'{t5_folder("t5_relu")}/model.safetensors', folder)
    with pytest.raises(ValueError, match=r'not expected: encoder\.block\.0\.layer\.1\.DenseReluDense\.wi\.weight'):
        T5(str(folder)).encode(PROMPTS)
