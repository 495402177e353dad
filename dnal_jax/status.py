"""Shows where runs are, from their folders alone.

python -m dnal_jax.status DIR...  [--json]

One folder is shown in a few lines, several as a table; with --json each is one
line of JSON: the content of status.json, with `workdir`, `now` and
`seconds_since_heartbeat`. A process that was killed leaves status.json as it
was, so it is compared with the folder's lock. Nothing is written, and no device
is used.

  now    running      by a process that is alive
         not running  its process was killed; the same command goes on
         stale        its process is on another host and no longer refreshes the
                      lock
         stopped, failed, finished
  seconds_since_heartbeat
         of a process on another host, as far as clocks agree; else null
"""

from collections.abc import Sequence
import datetime
import json
import pathlib
from typing import Any

from absl import flags

from dnal_jax import cli, errors, paths
from dnal_jax.workdir import json_files, lock, result_file, status_file

FLAGS = flags.FlagValues()
_JSON = flags.DEFINE_bool(
  'json', False, 'Print JSON rather than text.', flag_values=FLAGS
)


def read(workdir: pathlib.Path) -> dict[str, Any]:
  """The content of status.json, and whether its run is still alive.

  Raises:
    UserError: the folder has no status.json, or a damaged one.
  """
  path = workdir / status_file.NAME
  if not path.exists():
    raise errors.UserError(
      f"no run in '{workdir}': it has no {status_file.NAME}, which a run writes"
      ' when it starts; name the --workdir of one'
    )
  value = json_files.read_json(path)
  if not isinstance(value, dict) or not value.keys() >= status_file.KEYS:
    raise errors.UserError(
      f"'{path}' lacks keys of a {status_file.NAME}; the next start of the run"
      ' writes it again'
    )
  holder = lock.holder(workdir)
  alive, seconds = False, None
  if holder is not None:
    alive = holder.alive()
    if alive is None:
      seconds = holder.seconds_since_heartbeat()
  now = value['state']
  if alive or (seconds is not None and seconds < lock.STALE_SECONDS):
    now = 'running'
  elif seconds is not None:
    now = 'stale'
  elif now == 'running':
    now = 'not running'
  return {
    'workdir': str(workdir),
    'now': now,
    'seconds_since_heartbeat': seconds,
    **value,
  }


def text(row: dict[str, Any]) -> str:
  """A run in a few lines; `row` is of `read`."""
  lines = [f'{row["workdir"]}: {_describe(row)}']
  if row['stage'] is not None:
    lines += [
      '  stage       {stage}, {stage_number} of {stages}: epoch {epoch} of'
      ' {epochs}, step {step:,} of {steps:,}'.format(**row),
      '  run         step {run_step:,} of {run_steps:,}'.format(**row),
    ]
  if row['images_per_second'] is not None:
    lines.append(f'  speed       {row["images_per_second"]:,.0f} images/s')
  left = row['seconds_left']
  if row['now'] == 'running' and left['run'] is not None:
    lines.append(
      f'  left        about {span(left["stage"])} of the stage,'
      f' {span(left["run"])} of the run (estimates)'
    )
  if row['loss'] is not None:
    top1 = result_file.percent(row['validation_top1'])
    lines.append(
      f'  loss        {row["loss"]:.4f} in the last step; validation {top1}'
    )
  saved = row['checkpoint']
  if saved is not None:
    lines.append(f'  checkpoint  of {_since(saved["time"])}')
  return '\n'.join([*lines, f'  updated     {_since(row["updated"])}'])


def _describe(row: dict[str, Any]) -> str:
  process = f'process {row["pid"]} on host {row["host"]}'
  seconds = row['seconds_since_heartbeat']
  if row['now'] == 'running':
    if seconds is None:
      return f'running, {process}'
    return f'running, {process}, last heartbeat {span(seconds)} ago'
  if row['now'] == 'not running':
    return f'not running ({process} is gone); the same command goes on'
  if row['now'] == 'stale':
    return (
      f'stale, no heartbeat of {process} for {span(seconds)}; if it is dead,'
      ' the same command goes on'
    )
  return row['now'] + (f': {row["message"]}' if row['message'] else '')


def table(rows: list[dict[str, Any]]) -> str:
  """Runs as a table, a line each; `rows` are of `read`."""
  lines = [('', 'now', 'stage', 'epoch', 'step', 'left', 'top-1', 'updated')]
  for row in rows:
    begun = row['stage'] is not None
    left = row['seconds_left']['run'] if row['now'] == 'running' else None
    lines.append(
      (
        row['workdir'],
        row['now'],
        '{stage} {stage_number}/{stages}'.format(**row) if begun else '-',
        '{epoch}/{epochs}'.format(**row) if begun else '-',
        '{run_step:,}/{run_steps:,}'.format(**row) if begun else '-',
        f'~{span(left)}' if left is not None else '-',
        result_file.percent(row['validation_top1']),
        f'{span(_age(row["updated"]))} ago',
      )
    )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) for cell, width in zip(line, widths, strict=True)
    ).rstrip()
    for line in lines
  )


def span(seconds: float) -> str:
  """A duration in its two largest units: '5 s', '2 min 5 s', '3 h 20 min'."""
  whole = max(round(seconds), 0)
  units = {'d': whole // 86400, 'h': whole // 3600 % 24}
  units |= {'min': whole // 60 % 60, 's': whole % 60}
  names = list(units)
  first = next((i for i, name in enumerate(names) if units[name]), 3)
  shown = [
    f'{units[name]} {name}' for name in names[first : first + 2] if units[name]
  ]
  return ' '.join(shown) or '0 s'


def _since(when: str) -> str:
  return f'{when} ({span(_age(when))} ago)'


def _age(when: str) -> float:
  then = datetime.datetime.fromisoformat(when)
  return (datetime.datetime.now(datetime.UTC) - then).total_seconds()


def body(argv: Sequence[str]) -> None:
  if len(argv) < 2:
    raise errors.UserError('name the folder of a run, or several')
  rows, failures = [], []
  for name in argv[1:]:
    try:
      rows.append(read(paths.local('DIR', name)))
    except errors.UserError as error:
      failures.append(str(error))
  if _JSON.value:
    for row in rows:
      print(json.dumps(row))
  elif rows:
    print(text(rows[0]) if len(argv) == 2 else table(rows))
  if failures:
    raise errors.UserError('; '.join(failures))


if __name__ == '__main__':
  cli.main(body, FLAGS)
