"""Tiny configurations, and programs as modules, for tests that train or run something whole."""

import dataclasses
import importlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from configs import quickstart_denoiser, quickstart_tokenizer
from walt.text.encoder import Encoded

_FLAGS = {}


def binary(name: str):
    """The module of a program. Programs share names of flags, so each one's are taken away when it is imported."""
    module = importlib.import_module(f'walt.{name}')
    for flag in list(flags.FLAGS):
        if flags.FLAGS.find_module_defining_flag(flag).startswith('walt.'):
            _FLAGS.setdefault(name, {})[flag] = flags.FLAGS[flag]
            delattr(flags.FLAGS, flag)
    return module


def run_here(name: str, *argv: str) -> None:
    """python -m walt.NAME ARGV, in this process: without the seconds that imports take."""
    module = binary(name)
    for flag, definition in _FLAGS[name].items():
        flags.FLAGS[flag] = definition
    try:
        flags.FLAGS([name, *argv])
        module.main([name])
    finally:
        flags.FLAGS.unparse_flags()
        for flag, definition in _FLAGS[name].items():
            definition.unparse()
            delattr(flags.FLAGS, flag)


@dataclasses.dataclass(frozen=True)
class Letters:
    """A text encoder without weights: what a prompt is embedded as is drawn from its letters."""

    length: int = 3
    width: int = 4

    def encode(self, prompts: Sequence[str]) -> Encoded:
        seeds = [list(prompt.encode()) for prompt in prompts]
        text_BSE = np.stack([np.random.default_rng(seed).normal(size=(self.length, self.width)) for seed in seeds])
        words_B = np.array([[1 + len(prompt.split())] for prompt in prompts])
        mask_BS = np.arange(self.length) < words_B
        return Encoded(np.where(mask_BS[..., None], text_BSE, 0).astype(np.float32), mask_BS)


DATA = {'name': 'moving_digits', 'frames': 5, 'size': 16, 'digit_size': 10, 'clips': 16}


def tokenizer_config() -> dict:
    """The smoke mode of the quickstart on smaller clips and a smaller network: four steps, saved at 2 and 4."""
    config = quickstart_tokenizer.get_config('smoke').to_dict()
    config |= {'batch_size': 4, 'data': DATA, 'latent_norm_batches': 1}
    config['tokenizer'] |= {
        'channels': 4,
        'multipliers': (1, 2),
        'blocks': (0, 0),
        'spatial_strides': (4,),
        'temporal_strides': (4,),
        'latent_channels': 3,
        'groups': 2,
    }
    return config


def denoiser_config() -> dict:
    config = quickstart_denoiser.get_config('smoke').to_dict()
    config |= {'batch_size': 4, 'data': DATA}
    config['denoiser'] |= {
        'latent_shape': (2, 4, 4, 3),
        'width': 8,
        'depth': 2,
        'heads': 2,
        'patch': 1,
        'spatiotemporal_window': (2, 2),
        'rank': 2,
    }
    config['sampler'] |= {'steps': 3}
    return config


TEXT = {'name': 'letters', 'length': 3, 'width': 4}


def conditioned_config() -> dict:
    """Clips beside pictures, with captions, some with their first frame given."""
    config = denoiser_config()
    pictures = DATA | {'frames': 1, 'seed': 1}
    config |= {'cache_latents': False, 'text': TEXT}
    config['data'] = {'name': 'joint', 'clips': DATA, 'pictures': pictures, 'frames': 2, 'stacks': 1}
    config['denoiser'] |= {'classes': 0, 'text_shape': (3, 4), 'pooled_text': True}
    config['denoiser'] |= {'images': True, 'frame_prediction': True}
    config['conditioning'] |= {'dropout': 0.5, 'given_frames': (1,), 'given_noise': 0.2}
    config['optimizer'] |= {'warmup_steps': 0}
    return config


def finer_config() -> dict:
    """Super-resolution of those clips, without pictures."""
    config = conditioned_config()
    config['data'] = DATA | {'size': 32, 'digit_size': 20}
    config['denoiser'] |= {'latent_shape': (2, 8, 8, 3), 'upsample': 2, 'images': False}
    return config
