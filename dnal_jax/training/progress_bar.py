"""Progress of a stage on a terminal."""

from collections.abc import Callable, Mapping
from typing import Any

import tqdm


class ProgressBar:
  """Progress of one stage on a terminal; elsewhere one line an epoch."""

  def __init__(
    self,
    steps: int,
    batch_size: int,
    done: int,
    also: Callable[[int, Mapping[str, Any]], None],  # told what `steps` is
  ):
    self._also = also
    self._bar = tqdm.tqdm(
      total=steps * batch_size,
      initial=done * batch_size,
      unit=' images',
      unit_scale=True,
      leave=False,
      disable=None,
      mininterval=0.2,
    )
    self._batch_size = batch_size

  def begin(self, title: str) -> None:
    """An epoch begins."""
    self._bar.set_description(title, refresh=False)

  def steps(self, done: int, metrics: Mapping[str, Any]) -> None:
    """So many steps done; metrics of the last of them."""
    self._bar.update(done * self._batch_size)
    shown = {
      'loss': f'{metrics["loss"] / self._batch_size:.3f}',
      'accuracy': f'{metrics["correct"] / self._batch_size:.1%}',
    }
    if 'gates' in metrics:
      shown['gates <0.1/undecided/>0.9'] = '/'.join(
        str(n) for n in gate_counts(metrics['gates']).values()
      )
    self._bar.set_postfix(shown, refresh=False)
    self._also(done, metrics)

  def tell(self, line: str) -> None:
    """Prints a line above the bar; '' is none."""
    if line:
      tqdm.tqdm.write(line)

  def close(self) -> None:
    self._bar.close()


def gate_counts(census: Any) -> dict[str, int]:
  """How many gates are below 0.1, undecided, above 0.9, by name."""
  names = ('low', 'undecided', 'high')
  return dict(zip(names, map(int, census), strict=True))
