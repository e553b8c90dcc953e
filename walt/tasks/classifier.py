"""The task of a classifier of packed rows: its step, and `forward`."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from walt import build
from walt.batches import packed_batch
from walt.navit.classifier import Classifier
from walt.parallel.rules import batch_sharding
from walt.tasks.outline import Phase, Task, abstract_state
from walt.training.classifier_step import make_classifier_step
from walt.training.state import create


def classifier_task(config: Mapping[str, Any], mesh: AbstractMesh | Mesh, rows: int, clips: int) -> Task:
    """Rows are packed rows; a phase works on `clips` of them too."""
    build.check_keys(config, build.CLASSIFIER_KEYS)
    module, noising = build.classifier(config), build.noising(config['noising'])
    optimizer = build.optimizer(config['optimizer'], config['steps'])
    length, most = config['data']['length'], config['data']['most']

    def new(key):
        return create(build.init_classifier(module), optimizer, mesh, key, ema_decay=config['ema_decay'])

    state, layout = abstract_state(new)

    def forward(params, rows):
        return Classifier(module, params).logits(rows)

    return Task(
        kind='classifier',
        sizes={'tokens': length, 'clips': most},
        new=new,
        state=state,
        layout=layout,
        step=make_classifier_step(module, noising, optimizer, config['ema_decay'], config['accumulation']),
        frozen=None,
        frozen_layout=None,
        batch=packed_batch(module, length, most, rows),
        phases={
            'forward': Phase(
                forward,
                (state.params, packed_batch(module, length, most, clips)),
                (layout.params, batch_sharding(mesh)),
            )
        },
        notes=['clips, batch_size and rows are packed rows; `clips` is how many a row may hold'],
    )
