"""WordLlama: a vector for each of Llama 2's 32,000 tokens, trained so that means of them tell meanings (MIT licence).

A table of 16 MB and no network, so it takes no time. An embedding knows its word and nothing of the words around it,
nor of its place among them: a set of embeddings says which words a prompt has, not in which order. Enough for captions
whose words alone tell them apart; for others take `walt.text.minilm`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from walt.text.encoder import Encoded
from walt.text.rows import Rows, tokenizer_file
from walt.weights import PackageFile, check_arrays, read_safetensors

_REQUIREMENTS = 'wordllama==0.4.0.post1'
TABLE = PackageFile(
    package='wordllama',
    path='wordllama/weights/l2_supercat_256.safetensors',
    sha256='64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5',
    requirements=_REQUIREMENTS,
)
TOKENIZER = PackageFile(
    package='wordllama',
    path='wordllama/tokenizers/l2_supercat_tokenizer_config.json',
    sha256='93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68',
    requirements=_REQUIREMENTS,
)


@dataclasses.dataclass(frozen=True, eq=False)
class WordLlama:
    """Rows of the table for <s> and the pieces of the words: a `walt.text.encoder.TextEncoder` of width 256.

    <s> stands first in every prompt, and alone in the empty one.

    Fields:
        length: S, 2 or more; one of them is <s>

    Raises FileNotFoundError where the package is not installed, ModuleNotFoundError where the libraries of the extra
    `text` are not, ValueError where a file is another one or where `length` is out of its range.
    """

    length: int = 32

    width: ClassVar[int] = 256

    _path: Path = dataclasses.field(init=False, repr=False)
    _rows: Rows = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, '_path', TABLE.find())
        object.__setattr__(self, '_rows', Rows(tokenizer_file(TOKENIZER.find()), self.length, end_mark=False))

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """See `walt.text.encoder.TextEncoder`."""
        ids_BS, mask_BS = self._rows(prompts)
        return Encoded(np.where(mask_BS[..., None], self._table[ids_BS], np.float32(0)), mask_BS)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        name = 'embedding.weight'
        return check_arrays(read_safetensors(self._path), {name: (32_000, self.width)}, self._path)[name]
