"""The names that weights are read and written under, and the networks that each is of."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from walt.interop import autoencoder_kl, dit
from walt.interop.table import Arrays, Table

OWN = 'walt'
"""`walt.interop.own`, for every network of ours; the others are `FORMATS`."""


def _as_it_is(arrays: Arrays, source) -> Arrays:
    return arrays


@dataclasses.dataclass(frozen=True)
class Format:
    """
    Attributes:
        part: 'tokenizer' or 'denoiser': the section of a configuration that says the network.
        network: the `name` of that section.
        table: of the module.
        newer: arrays of older files -> with the names of today.
    """

    part: str
    network: str
    table: Callable[[Any], Table]
    newer: Callable[[Arrays, Any], Arrays] = _as_it_is

    def check(self, config: Mapping[str, Any]) -> None:
        """Raises `ValueError` if a configuration is of another network, naming both."""
        name = config.get(self.part, {}).get('name')
        if name != self.network:
            there = {part: config[part]['name'] for part in ('tokenizer', 'denoiser') if part in config}
            raise ValueError(f'these weights are of a {self.part} {self.network!r}, the configuration of {there}')


FORMATS = {
    'dit': Format('denoiser', 'dit', dit.original),
    'dit_diffusers': Format('denoiser', 'dit', dit.diffusers),
    'autoencoder_kl': Format('tokenizer', 'autoencoder_kl', autoencoder_kl.table, autoencoder_kl.newer),
}
