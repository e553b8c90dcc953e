"""The flags that tell a program of the other processes it runs with.

    --distributed=auto                                      on a TPU pod, under SLURM or Open MPI: JAX finds the others
    --coordinator=HOST:PORT --processes=N --process=I       anywhere else, on one machine too; I counts from 0

Without them a program is one process. On CPUs, `JAX_NUM_CPU_DEVICES` in the environment says how many devices each has.
"""

from collections.abc import Callable

from absl import flags

from walt.parallel.distributed import initialize


def processes_flags() -> Callable[[], None]:
    """Defines the flags; returns what joins the processes that they tell of, for the first line of `main`."""
    distributed = flags.DEFINE_enum('distributed', 'none', ('none', 'auto'), 'Whether JAX finds the other processes.')
    coordinator = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where it waits for the others.')
    processes = flags.DEFINE_integer('processes', None, 'How many processes there are.', lower_bound=1)
    process = flags.DEFINE_integer('process', None, 'Number of this process, counted from 0.', lower_bound=0)

    def join() -> None:
        initialize(
            auto=distributed.value == 'auto',
            coordinator=coordinator.value,
            processes=processes.value,
            process=process.value,
        )

    return join
