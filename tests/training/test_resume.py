"""Real training, interrupted and continued, is the training that was never interrupted, to the last bit."""

import json
import shutil

import jax
import numpy as np
import pytest


@pytest.fixture(scope='module', params=['tokenizer', 'denoiser'])
def continued(request, trained, tmp_path_factory):
    """(workdir, state) of four unbroken steps, and of two steps that went on for two more in another place."""
    task = request.param
    unbroken = trained.folder / task
    workdir = shutil.copytree(unbroken, tmp_path_factory.mktemp('continued') / task)
    shutil.rmtree(workdir / 'checkpoints' / '4')
    state = trained.train[task](workdir)
    return (unbroken, trained.state[task]), (workdir, state)


def test_parameters_average_and_optimizer_are_bitwise_the_same(continued):
    (_, unbroken), (_, state) = continued
    assert state.step == unbroken.step == 4
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), twin in zip(leaves, jax.tree.leaves(unbroken), strict=True):
        np.testing.assert_array_equal(leaf, twin, err_msg=jax.tree_util.keystr(path))


def test_training_moved_the_parameters_after_the_interruption(continued):
    """Or the test above would compare nothing."""
    (_, unbroken), _ = continued
    moved = jax.tree.map(lambda params, ema: float(np.abs(params - ema).max()), unbroken.params, unbroken.ema)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_the_data_goes_on_where_it_was(continued):
    """The losses of steps 3 and 4 are the same."""
    (unbroken, _), (workdir, _) = continued

    def metrics(folder):
        rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != 'train/steps_per_second'} for row in rows]

    assert [row['step'] for row in metrics(workdir)] == [2, 2, 4, 4]  # training and validation, each step once
    assert metrics(workdir) == metrics(unbroken)
