"""SHA256SUMS: digests of the files of a finished run, as sha256sum prints them.

`sha256sum --check SHA256SUMS` in the run folder compares them, too. Folders of
earlier versions have none; a folder in which a file was changed on purpose is
read again once SHA256SUMS is deleted.
"""

from collections.abc import Iterable, Mapping
import hashlib
import pathlib
import types

from dnal_jax import errors

NAME = 'SHA256SUMS'
_MAX_BYTES = 1 << 16


def write(
  workdir: pathlib.Path,
  names: Iterable[str],
  soon: Mapping[str, bytes] = types.MappingProxyType({}),
) -> None:
  """Writes the digests of files, by their paths in the run folder; `soon` has
  the contents of those that will be written next."""
  contents = {name: (workdir / name).read_bytes() for name in names}
  contents = {**contents, **soon}
  lines = [f'{_digest(data)}  {name}\n' for name, data in contents.items()]
  part = workdir / f'{NAME}.part'
  part.write_text(''.join(lines))
  part.replace(workdir / NAME)


def verify(workdir: pathlib.Path, name: str) -> None:
  """Compares a file of the run folder, if there is a digest of it.

  Raises:
    UserError: the file is not the one that was written.
  """
  path = workdir / NAME
  try:
    with path.open('rb') as file:
      lines = file.read(_MAX_BYTES).decode(errors='replace').splitlines()
    data = (workdir / name).read_bytes()
  except FileNotFoundError:
    return
  except OSError as error:
    raise errors.UserError(
      f"cannot read '{error.filename}' ({error.strerror})"
    ) from error
  digests = {n: d for d, _, n in (line.partition('  ') for line in lines)}
  if name in digests and digests[name] != _digest(data):
    raise errors.UserError(
      f"'{workdir / name}' has changed since it was written: '{path}' has"
      ' another digest of it. Restore it from a copy, or delete that file if it'
      ' was changed on purpose'
    )


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
