"""T5's encoder (arXiv:1910.10683) through the library transformers, on PyTorch. W.A.L.T takes T5-XL (section 5.3).

Prompts are encoded once and kept, so PyTorch is needed where data is encoded and prompts are read, not in training.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from walt.text.encoder import Encoded
from walt.text.rows import Rows, by_rows

_INSTALL = "T5 needs transformers and torch: pip install -e '.[t5]'"


@dataclasses.dataclass(frozen=True, eq=False)
class T5:
    """Last hidden states of the pieces and </s>: a `walt.text.encoder.TextEncoder`, float32 whatever the file holds.

    `width` is the model's own, from its configuration. Weights are read with the first prompts.

    Fields:
        model: a folder, or a name that transformers fetches, such as 'google/t5-v1_1-xl'
        length: S, 2 or more; one of them is </s>

    Raises ModuleNotFoundError, with the command that installs it, where transformers or torch is not installed; OSError
    where there is no such model; ValueError where it is no T5 or where `length` is out of its range.
    """

    model: str
    length: int = 64

    width: int = dataclasses.field(init=False)
    _rows: Rows = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        try:
            import torch  # noqa: F401 - missing torch would be noticed only when weights are read
            from transformers import AutoConfig, AutoTokenizer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_INSTALL) from error
        config = AutoConfig.from_pretrained(self.model)
        if config.model_type not in ('t5', 'mt5', 'umt5'):
            raise ValueError(f'{self.model} is a {config.model_type!r}, expected a T5')
        tokenizer = AutoTokenizer.from_pretrained(self.model)

        def split(text):
            return tokenizer(text, verbose=False)['input_ids']

        object.__setattr__(self, 'width', config.d_model)
        object.__setattr__(self, '_rows', Rows(split, self.length, end_mark=True))

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """See `walt.text.encoder.TextEncoder`."""
        ids_BS, mask_BS = self._rows(prompts)
        return Encoded(by_rows(self._network, ids_BS, mask_BS), mask_BS)

    @functools.cached_property
    def _network(self):
        import torch
        from transformers import T5EncoderModel

        network = T5EncoderModel.from_pretrained(self.model).float().eval()

        def states(ids_BS, mask_BS):
            with torch.inference_mode():
                found = network(input_ids=torch.tensor(ids_BS).long(), attention_mask=torch.tensor(mask_BS).long())
            return np.where(mask_BS[..., None], found.last_hidden_state.numpy(), np.float32(0))

        return states
