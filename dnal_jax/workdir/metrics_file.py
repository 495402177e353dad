"""metrics.jsonl: one row for each epoch of a run."""

from collections.abc import Iterator, Mapping
import json
import pathlib
from typing import Any

from dnal_jax import errors
from dnal_jax.training.hooks import Hook
from dnal_jax.workdir.json_files import short_repr

NAME = 'metrics.jsonl'


class MetricsFile(Hook):
  """Appends a row at the end of each epoch.

  Rows of epochs after the first `epochs_done`, which a resumed run does again,
  are dropped first.

  Raises:
    UserError: a line of the file is damaged.
  """

  def __init__(self, workdir: pathlib.Path, epochs_done: int):
    self._path = workdir / NAME
    kept = [line for line, done in self._lines() if done <= epochs_done]
    part = self._path.with_name(f'{NAME}.part')
    part.write_bytes(b''.join(line + b'\n' for line in kept))
    part.replace(self._path)

  def end_epoch(self, row: Mapping[str, Any], gates: Mapping[str, Any]) -> None:
    del gates
    with self._path.open('a') as file:
      file.write(json.dumps(row) + '\n')

  def _lines(self) -> Iterator[tuple[bytes, int]]:
    """Each line and its `epochs_done`, without a last line that a kill has cut
    short."""
    if not self._path.exists():
      return
    for i, line in enumerate(self._path.read_bytes().split(b'\n')[:-1], 1):
      try:
        done = json.loads(line)['epochs_done']
        if type(done) is not int:
          raise TypeError(f'epochs_done is {short_repr(done)}')
      except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise errors.UserError(
          f"'{self._path}', line {i} is damaged ({error!r}); delete the line"
        ) from error
      yield line, done
