"""Notebooks run from top to bottom, on a run of four training steps."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, trained, monkeypatch):
    monkeypatch.setenv('WALT_RUN', str(trained.folder / 'denoiser'))
    monkeypatch.setenv('MPLBACKEND', 'agg')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))  # this checkout, wherever walt is installed from
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={'metadata': {'path': path.parent}}).execute()
    assert 'step 4' in str(notebook.cells)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    cells = json.loads(path.read_text())['cells']
    assert all(not cell.get('outputs') and not cell.get('execution_count') for cell in cells)
