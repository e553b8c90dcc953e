"""Packed rows against padded ones at equal compute: pictures of mixed sizes, the same network, the same positions.

python -m tests.benchmarks.packing [--seconds=120] [--learning_rates=2.5e-4,5e-4,1e-3,2e-3]

Data and network of configs/navit_classifier.py without token dropping. A padded row is one picture, and as long as the
longest; a step has as many positions in both arms, as nearly as whole rows make it. First the arms take turns, step by
step, and the median processor time of each is printed with what it trained on; then each is trained for so many
seconds of processor time, half a minute by turns, and read on the same held-out pictures: from the start with every
learning rate, since a step of fewer pictures may want another, and what counts is the best that each arm can do.
Processor time, not the clock's, so that what else the machine does counts less. Twenty minutes of it.
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
    learning_rate: float

    def __post_init__(self):
        mesh, module = make_mesh(), build.classifier(self.config)
        # The arms take different numbers of steps, so the rate stays what it is.
        section = self.config['optimizer'] | {'learning_rate': self.learning_rate, 'final_fraction': 1.0}
        optimizer = build.optimizer(section, self.config['steps'])
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


def new_arms(config: dict, learning_rate: float) -> dict[str, Arm]:
    positions = config['batch_size'] * config['data']['length']
    return {
        name: Arm(rows, round(positions / rows.length), config, learning_rate)
        for name, rows in rows_by_arm(config, 'train').items()
    }


def take_times(config: dict) -> None:
    arms = new_arms(config, config['optimizer']['learning_rate'])
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
    print(f'packed trains on {rates["packed"] / rates["padded"]:.2f} times as many tokens a second', flush=True)


def train(config: dict, seconds: float, learning_rates: list[float]) -> None:
    module = build.classifier(config)
    examine = jax.jit(make_classifier_validation(module, None))
    held_out = rows_by_arm(config, 'validation')['packed']
    batches = process_batches(held_out, make_mesh(), 16, keys=KEYS, shuffle=False, repeat=False)
    batches = list(itertools.islice(iter(batches), 20))

    def accuracy(arm: Arm) -> float:
        sums = [jax.device_get(examine(arm.state.ema, batch, jax.random.key(0))) for batch in batches]
        right, clips = (sum(one[key] for one in sums) for key in ('right', 'clips'))
        return float(right / clips)

    found = {}
    print('learning rate, processor seconds, then of each arm: steps, held-out accuracy')
    for rate in learning_rates:
        arms = new_arms(config, rate)
        for arm in arms.values():
            arm.step()  # Compiles.
            arm.spent = 0.0
        for until in np.arange(TURN, seconds + 1, TURN):
            for name, arm in arms.items():
                while arm.spent < until:
                    arm.step()
                found[name, rate] = accuracy(arm)
            told = [f'{name} {arm.steps:5} {found[name, rate]:.3f}' for name, arm in arms.items()]
            print(f'{rate:8.1e} {until:5.0f}   ' + '   '.join(told), flush=True)
    for name in arms:
        best = max(learning_rates, key=lambda rate: found[name, rate])
        print(f'{name}: {found[name, best]:.3f} at its best rate, {best:.1e}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=120.0, help='for each arm and rate; 0 only takes times')
    parser.add_argument('--learning_rates', default='2.5e-4,5e-4,1e-3,2e-3', help='of which each arm has its best')
    args = parser.parse_args()
    if 0 < args.seconds < TURN:
        parser.error(f'a turn is {TURN:g} seconds, longer than --seconds={args.seconds:g}')
    config = navit_classifier.get_config().to_dict()
    take_times(config)
    if args.seconds:
        train(config, args.seconds, [float(rate) for rate in args.learning_rates.split(',')])
