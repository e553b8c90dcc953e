"""Packed rows against padded ones at equal compute: pictures of mixed sizes, the same network, the same positions.

python -m tests.benchmarks.packing [--seconds=240]

Data and network of configs/navit_classifier.py without token dropping. A padded row is one picture, and as long as the
longest; a step has as many positions in both arms, as nearly as whole rows make it. First the arms take turns, step by
step, and the median processor time of each is printed with what it trained on; then each is trained for so many
seconds of processor time, half a minute by turns, and read on the same held-out pictures. Processor time, not the
clock's, so that what else the machine does counts less. Ten minutes of processor time.
"""

import argparse
import dataclasses
import itertools
import statistics
import time

import jax
import numpy as np

from configs import navit_classifier
from walt import build
from walt.data.packing import Packed
from walt.parallel.mesh import make_mesh
from walt.training.classifier_step import make_classifier_step, make_classifier_validation
from walt.training.feed import process_batches
from walt.training.state import create

KEYS = ('tokens', 'segment', 'place', 'size', 'label')
ROUNDS, TURN = 30, 30.0


def rows_by_arm(config: dict, split: str) -> dict[str, Packed]:
    packed = build.source(config['data'] | {'dropping': {'name': 'keep'}}, split)
    longest = int(max(packed.kept_tokens(epoch).max() for epoch in range(3)))
    return {'packed': packed, 'padded': dataclasses.replace(packed, length=longest, most=1)}


@dataclasses.dataclass
class Arm:
    """A network in training on its rows; `spent` is processor time."""

    rows: Packed
    batch_size: int
    config: dict

    def __post_init__(self):
        mesh, module = make_mesh(), build.classifier(self.config)
        optimizer = build.optimizer(self.config['optimizer'], self.config['steps'])
        self.state, _ = create(build.init_classifier(module), optimizer, mesh, jax.random.key(0), ema_decay=0.99)
        self._step = jax.jit(make_classifier_step(module, None, optimizer, 0.99), donate_argnums=0)
        read = process_batches(self.rows, mesh, self.batch_size, keys=KEYS, shuffle=False, repeat=False, threads=0)
        self._batches, self.spent, self.steps = iter(read), 0.0, 0

    def step(self) -> tuple[float, dict[str, float]]:
        """Processor seconds of a step with its data, and its metrics."""
        start = time.process_time()
        self.state, metrics = self._step(self.state, None, next(self._batches), jax.random.key(self.steps))
        metrics = jax.device_get(metrics)
        seconds = time.process_time() - start
        self.spent, self.steps = self.spent + seconds, self.steps + 1
        return seconds, metrics


def main(seconds: float) -> None:
    config = navit_classifier.get_config().to_dict()
    config['optimizer'] |= {'final_fraction': 1.0}  # The arms take different numbers of steps.
    positions = config['batch_size'] * config['data']['length']
    by_arm = rows_by_arm(config, 'train')
    arms = {name: Arm(rows, round(positions / rows.length), config) for name, rows in by_arm.items()}

    taken = {name: [] for name in arms}
    for _, (name, arm) in itertools.product(range(1 + ROUNDS), arms.items()):
        taken[name].append(arm.step())
    print('arm      rows x positions  filled  pictures a step  ms a step  tokens a second')
    rates = {}
    for name, arm in arms.items():
        some = taken[name][1:]  # The first compiles.
        ms = 1000 * statistics.median(seconds for seconds, _ in some)
        mean = {
            key: np.mean([metrics[key] for _, metrics in some]) for key in ('filled', 'clips_a_row', 'tokens_a_row')
        }
        rates[name] = mean['tokens_a_row'] * arm.batch_size / ms * 1000
        shape = f'{arm.batch_size} x {arm.rows.length}'
        print(
            f'{name:8} {shape:>16}  {mean["filled"]:6.3f}  {mean["clips_a_row"] * arm.batch_size:15.1f}  {ms:9.0f}  '
            f'{rates[name]:15.0f}'
        )
    print(f'packed trains on {rates["packed"] / rates["padded"]:.2f} times as many tokens a second')
    if not seconds:
        return

    module = build.classifier(config)
    examine = jax.jit(make_classifier_validation(module, None))
    held_out = rows_by_arm(config, 'validation')['packed']
    batches = process_batches(held_out, make_mesh(), 16, keys=KEYS, shuffle=False, repeat=False)
    batches = list(itertools.islice(iter(batches), 20))
    arms = {name: Arm(rows, round(positions / rows.length), config) for name, rows in by_arm.items()}
    for arm in arms.values():
        arm.step()
        arm.spent = 0.0
    print('processor seconds, then of each arm: steps, held-out accuracy')
    for until in np.arange(TURN, seconds + 1, TURN):
        told = []
        for name, arm in arms.items():
            while arm.spent < until:
                arm.step()
            sums = [jax.device_get(examine(arm.state.ema, batch, jax.random.key(0))) for batch in batches]
            right, clips = (sum(one[key] for one in sums) for key in ('right', 'clips'))
            told.append(f'{name} {arm.steps:5} {right / clips:.3f}')
        print(f'{until:5.0f}   ' + '   '.join(told), flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=240.0, help='processor time for each arm; 0 only takes times')
    main(parser.parse_args().seconds)
