"""Writes the averaged parameters of a run as a safetensors file, under our names or those of another project.

python -m walt.export_weights --workdir=runs/dit --out=dit.safetensors
python -m walt.export_weights --workdir=runs/dit --out=dit.safetensors --format=dit_diffusers

With `--format=walt`, the default, the file has every parameter by its path and what was measured beside them, of any
tokenizer or denoiser, and `walt.import_weights --format=walt` makes a run of it again. A denoiser's tokenizer is a run
by itself, WORKDIR/tokenizer. The header of the file has the configuration and the step. Other projects' files have no
place for a tokenizer's latent norm: it is in the header (`latent_mean`, `latent_std`). `docs/weights.md` has the names.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from walt import restore
from walt.interop import own
from walt.interop.formats import FORMATS, OWN
from walt.parallel.mesh import make_mesh
from walt.training.checkpoints import saved_config
from walt.weights import write_safetensors

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run.', required=True)
OUT = flags.DEFINE_string('out', None, 'The file to write; its name ends in .safetensors.', required=True)
FORMAT = flags.DEFINE_enum('format', OWN, [OWN, *FORMATS], 'Whose names the weights get.')
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to write; the newest by default.')
DECAY = flags.DEFINE_float('decay', None, 'Which average of the parameters, of a run that kept several; the first.')


def export_weights(
    workdir: str, out: str, names: str = OWN, step: int | None = None, decay: float | None = None
) -> Mapping[str, np.ndarray]:
    """Writes `out` and returns its arrays.

    Raises:
        ValueError: if the names are of another network than that of the run, naming both; if `out` is called otherwise.
        FileNotFoundError: if there is no such checkpoint.
    """
    if Path(out).suffix != '.safetensors':
        raise ValueError(f'{out} ends in {Path(out).suffix!r}; weights are written as .safetensors')
    mesh, config = make_mesh(), saved_config(workdir, step)
    if names in FORMATS:
        FORMATS[names].check(config)
    about = {'names': names, 'walt': importlib.metadata.version('walt')}
    if 'tokenizer' in config:
        frozen, config, step = restore.tokenizer(workdir, mesh, step, decay)
        module, trained = frozen.module, {'params': frozen.params, 'measured': frozen.norm}
        about |= {'latent_mean': _told(frozen.norm.mean_C), 'latent_std': _told(frozen.norm.std_C)}
    else:
        trained, module, config, step = restore.denoiser(workdir, mesh, step, decay)
    about |= {'step': str(step), 'config': json.dumps(config)}
    if names == OWN:
        arrays = own.export(trained)
    else:
        arrays = FORMATS[names].table(module).export(trained['params'])
        about['format'] = 'pt'  # what libraries on PyTorch ask for before they load a file
    arrays = {name: np.asarray(array) for name, array in jax.device_get(arrays).items()}
    write_safetensors(out, arrays, about)
    return arrays


def _told(numbers: Any) -> str:
    return json.dumps(np.asarray(numbers).tolist())


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    arrays = export_weights(WORKDIR.value, OUT.value, FORMAT.value, STEP.value, DECAY.value)
    size = sum(array.nbytes for array in arrays.values()) / 1e6
    print(f'{OUT.value}: {len(arrays)} arrays, {size:,.1f} MB')


if __name__ == '__main__':
    app.run(main)
