"""Exceptions whose message is for the user, and hints for misspelt names."""

from collections.abc import Iterable
import difflib


class UserError(Exception):
  """A mistake of the user; names the key, file or value, and the fix.

  Commands print the message without a traceback and exit with code 2.
  """


class InUse(UserError):
  """Another process holds the folder of a run."""


class SearchFailed(UserError):
  """A search has left no network: a layer is closed, or gates are undecided."""


class NotFinite(UserError):
  """A loss or a gradient is NaN or infinite.

  Going back to a checkpoint with lower learning rates may help.
  """

  def __init__(self, what: str, advice: str):
    super().__init__(f'{what}. {advice}')
    self.what = what


# The fix where a package that only training needs is missing.
INSTALL_TRAIN = (
  "install what training needs: pip install 'dnal_jax[train]', or in a clone"
  ' pip install -r requirements.txt'
)

# Exit code of a run that was stopped: EX_TEMPFAIL of sysexits.h, "try again".
AGAIN = 75


class Stopped(Exception):
  """A run stopped early, and the same command resumes it; says where.

  `main` prints the message and exits with code AGAIN, by which schedulers and
  the scripts in launch/ know that they should start it again.
  """


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """A hint for an unknown word: " (did you mean 'x'?)", then what is known.

  Without a close match the question is left out, and a list of more than 50
  words as well.
  """
  known = sorted(known)
  near = [name for name in known if name.startswith(word)]
  near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  hint = f" (did you mean '{near[0]}'?)" if near else ''
  if len(known) > 50:
    return hint or ', which is not known'
  return f'{hint}; known: {", ".join(known)}'
