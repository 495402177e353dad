"""Executes the notebooks and keeps what they put out: make notebooks.

  python notebooks/execute.py     # on CPU

Each runs in a kernel of its own, in a folder that looks like the project's
root, so that nothing is left in this one. What differs from run to run without
being a result, such as the time of each cell, is not kept.
"""

import os
import pathlib
import tempfile
from typing import Any

import nbclient
import nbformat

HERE = pathlib.Path(__file__).parent
PATHS = sorted(HERE.glob('*.ipynb'))
_SEEN = ('configs', 'dnal_jax')  # what a notebook needs of the project


def environment() -> dict[str, str]:
  """Of a kernel: on CPU, as what is committed was."""
  return {**os.environ, 'JAX_PLATFORMS': 'cpu'}


def execute(path: pathlib.Path, folder: pathlib.Path) -> Any:
  """The notebook with the outputs of a run in the empty `folder`.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell has failed.
    nbclient.exceptions.CellTimeoutError: one took longer than 300 s.
  """
  for name in _SEEN:
    (folder / name).symlink_to(HERE.parent / name, target_is_directory=True)
  (folder / HERE.name).mkdir()
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(
    notebook,
    timeout=300,
    kernel_name='python3',
    coalesce_streams=True,
    record_timing=False,
    resources={'metadata': {'path': str(folder / HERE.name)}},
  ).execute(env=environment())
  notebook.metadata.language_info = {'name': 'python'}  # without its version
  return notebook


def main() -> None:
  for path in PATHS:
    with tempfile.TemporaryDirectory() as folder:
      notebook = execute(path, pathlib.Path(folder))
    nbformat.write(notebook, path)
    print(f'{path.name}: {path.stat().st_size:,} bytes')


if __name__ == '__main__':
  main()
