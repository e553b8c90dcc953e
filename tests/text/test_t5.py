"""T5 through transformers, on a tiny random model that the test makes. Skipped where PyTorch is not installed."""

import logging
import sys

import numpy as np
import pytest

from walt.text.t5 import T5


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A T5 of width 16 whose words are those of a few captions."""
    torch = pytest.importorskip('torch', reason="optional: pip install -e '.[t5]'")
    transformers = pytest.importorskip('transformers', reason="optional: pip install -e '.[t5]'")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = str(tmp_path_factory.mktemp('t5'))
    vocabulary = ('<pad>', '</s>', '<unk>', 'a', 'cat', 'kitten', 'walks', 'strolls')
    words = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token='</s>', pad_token='<pad>', unk_token='<unk>', model_max_length=5
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(words), d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj='gated-gelu'
    )
    transformers.T5EncoderModel(config).bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def encoder(folder):
    return T5(folder, length=8)


def test_states_are_those_of_the_model(folder, encoder):
    import torch
    from transformers import T5EncoderModel

    assert (encoder.length, encoder.width) == (8, 16)
    embeddings_BSD, mask_BS = encoder.encode(['a cat walks'])
    ids = torch.tensor([[3, 4, 6, 1]])
    with torch.no_grad():
        expected = T5EncoderModel.from_pretrained(folder).float()(input_ids=ids).last_hidden_state[0].numpy()
    np.testing.assert_allclose(embeddings_BSD[0, :4], expected, atol=1e-5)
    assert embeddings_BSD.dtype == np.float32 and mask_BS.tolist() == [[True] * 4 + [False] * 4]
    assert (embeddings_BSD[0, 4:] == 0).all()


def test_a_prompt_has_the_same_values_in_every_batch(encoder):
    prompts = ['a cat walks', '', 'a kitten', 'strolls'] * 5
    together = encoder.encode(prompts)
    assert together.mask_BS.sum(axis=1).tolist() == [4, 1, 3, 2] * 5
    for row in range(4):
        alone = encoder.encode([prompts[row]]).embeddings_BSD[0]
        np.testing.assert_array_equal(alone, together.embeddings_BSD[row])
        np.testing.assert_allclose(alone, together.embeddings_BSD[row + 16], atol=1e-6)


def test_a_prompt_that_is_cut_ends_with_the_mark_and_is_named(folder, caplog):
    encoder = T5(folder, length=3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            cut = encoder.encode(['a cat strolls walks']).embeddings_BSD
    np.testing.assert_allclose(cut, encoder.encode(['a cat']).embeddings_BSD, atol=1e-6)
    said = [record.getMessage() for record in caplog.records if 'is cut to' in record.getMessage()]
    assert said == ["a prompt of 5 tokens is cut to 3: 'a cat strolls walks'"]


def test_another_kind_of_model_is_refused(tmp_path):
    transformers = pytest.importorskip('transformers', reason="optional: pip install -e '.[t5]'")
    pytest.importorskip('torch', reason="optional: pip install -e '.[t5]'")
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'bert', expected a T5"):
        T5(str(tmp_path))


@pytest.mark.parametrize('missing', ['torch', 'transformers'])
def test_without_its_libraries_it_is_said_what_to_install(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[t5\]'"):
        T5('google/t5-v1_1-xl')
