"""What a configuration runs, in shapes: its training step, and what is done with what it trains.

    configuration, mesh, rows  ->  Task: state, layout, step, batch, and phases such as `sample` and `decode`

Nothing is computed and no data is opened, so a task of any size is there in seconds. `costs` counts it, `pods` compiles
it for machines that are not there.
"""

from collections.abc import Mapping
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from walt.tasks.classifier import classifier_task
from walt.tasks.denoiser import denoiser_task
from walt.tasks.outline import Phase, Task
from walt.tasks.tokenizer import tokenizer_task

__all__ = ['Phase', 'Task', 'task']


def task(
    config: Mapping[str, Any],
    mesh: AbstractMesh | Mesh,
    rows: int,
    clips: int = 1,
    tokenizer_config: Mapping[str, Any] | None = None,
) -> Task:
    """
    Args:
        rows: clips of a training step.
        clips: that a phase works on.
        tokenizer_config: of the tokenizer that a denoiser is trained on: with it the step encodes, unless the latents
            are kept, and there is a phase `decode`.

    Raises:
        ValueError: as training would, on what does not fit together.
    """
    if 'tokenizer' in config:
        if tokenizer_config is not None:
            raise ValueError('a tokenizer configuration beside that of a denoiser only: this one is of a tokenizer')
        return tokenizer_task(config, mesh, rows, clips)
    if 'classifier' in config:
        return classifier_task(config, mesh, rows, clips)
    return denoiser_task(config, mesh, rows, clips, tokenizer_config)
