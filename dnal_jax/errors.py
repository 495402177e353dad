"""Mistakes a user can mend, told in one message."""

from collections.abc import Iterable
import difflib


class UserError(Exception):
  """Names the key, file or value that is wrong, and the fix.

  `main` and `summary` print the message alone and exit with code 2.
  """


class NotFinite(UserError):
  """Training has left the numbers; going back and slower may help."""

  def __init__(self, what: str, advice: str):
    super().__init__(f'{what}. {advice}')
    self.what = what


# Exit code of a run that was stopped; EX_TEMPFAIL of sysexits.h: try again.
AGAIN = 75


class Stopped(Exception):
  """A run ended before its end; the same command goes on. Says where it stands.

  `main` prints the message alone and exits with AGAIN, by which schedulers and
  the scripts of launch/ know that starting again is right.
  """


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """' (did you mean 'x'?)' if something known is near, then what is known."""
  known = sorted(known)
  near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  hint = f" (did you mean '{near[0]}'?)" if near else ''
  if len(known) > 50:
    return hint or ', which is not known'
  return f'{hint}; known: {", ".join(known)}'
