"""The one interface of text encoders. S conditioning tokens of width D are known before anything is encoded:

encoder = build.text_encoder(dict(name='wordllama', length=16))
encoder.length, encoder.width                                  # S, D: of these the denoiser is built
encoder.encode(['a cat walks', ''])                            # Encoded, (2, S, D) and (2, S)
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Encoded(NamedTuple):
    """Prompts, encoded.

    embeddings_BSD  float32; 0 where the mask is off
    mask_BS         bool; on where there is a token. At least one is on in every row, also in that of the empty prompt,
                    which is the null text of classifier-free guidance
    """

    embeddings_BSD: np.ndarray
    mask_BS: np.ndarray


class TextEncoder(Protocol):
    """A frozen text encoder.

    length  S, embeddings of a prompt. Longer prompts are cut, and a warning says so once for each prompt
    width   D, of an embedding
    """

    length: int
    width: int

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Encodes prompts, each by itself: the values do not depend on the others.

        Raises:
            ValueError: if there is no prompt, or if one is no text.
        """
