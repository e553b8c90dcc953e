"""What the proof trains: scikit-learn's digits in motion, and networks of a few thousand numbers.

--config=tests/proofs/digits.py:tokenizer, or :denoiser; `tests` must be on PYTHONPATH.
"""

import ml_collections
from tiny import denoiser_config, tokenizer_config


def get_config(task: str) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict({'tokenizer': tokenizer_config, 'denoiser': denoiser_config}[task]())
    config.batch_size = 8
    config.data.clips = 40
    config.log_every = config.checkpoint_every = 1
    config.validate_every = 1_000_000
    return config
