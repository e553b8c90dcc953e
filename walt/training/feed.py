"""What this process reads of the data, by global batch size."""

import grain
import jax

from walt.data.pipeline import batches


def process_batches(source, batch_size: int, **options) -> grain.IterDataset:
    """This process's rows of batches of `batch_size` rows over all processes; options as `data.pipeline.batches`."""
    processes = jax.process_count()
    if batch_size % processes:
        raise ValueError(f'batch_size {batch_size} is not divisible by {processes} processes')
    return batches(
        source, batch_size // processes, process_index=jax.process_index(), process_count=processes, **options
    )
