"""What a search whose result cannot be used shows, and what to change."""

from collections.abc import Mapping
from typing import Any

from dnal_jax import errors
from dnal_jax.search import channel_gates
from dnal_jax.training.stages import Cut, Stage

HOPELESS_EPOCHS = 3
AGAIN = (
  'What the warm-up trained is kept in the folder warmup/ of the run; search'
  ' again in a new --workdir'
)


def check_hopeless(stage: Stage, closed_epochs: Mapping[str, int]) -> None:
  """Ends a search early from which no network can come.

  `closed_epochs` has the epochs running in which all channels of a gate that
  nothing bypasses were closed (`prune.closed_layers`): the gradients of a
  closed gate vanish as delta grows.

  Raises:
    SearchFailed: of one, there were HOPELESS_EPOCHS or more.
  """
  closed = [g for g, n in closed_epochs.items() if n >= HOPELESS_EPOCHS]
  if closed:
    cause, fix = _why_closed(stage)
    raise errors.SearchFailed(
      f"stage '{stage.name}' ends early: for {HOPELESS_EPOCHS} epochs every"
      f' channel of {", ".join(closed)}, which nothing bypasses, has been'
      f' closed, so no image reaches the classifier: {cause}. {AGAIN} with'
      f' {fix}'
    )


def check_decided(soft: dict[str, Any], cut: Cut) -> None:
  """Raises SearchFailed if most gates are undecided after the search; `soft`
  are their values by path."""
  counts = channel_gates.count_by_state(soft)
  if 2 * counts[1] > sum(counts):
    cause, fix = undecided(counts, cut.searched)
    raise errors.SearchFailed(
      f"stage '{cut.searched.name}' has not found what to prune: {cause}."
      f' {AGAIN} with {fix}'
    )


def undecided_for_target(soft: dict[str, Any], cut: Cut) -> str | None:
  """What is to be said of a search that ends with gates by whose values the
  target holds, but not by those of 0 and 1; None if they are few."""
  counts = channel_gates.count_by_state(soft)
  if 10 * counts[1] <= sum(counts):
    return None
  cause, fix = undecided(counts, cut.searched)
  return (
    f'{cause}; channels that fit the target are kept in the order of their'
    f' gates, which changes what the network computes: try {fix}'
  )


def why_all(
  soft: dict[str, Any], closed: list[str], cut: Cut
) -> tuple[str, str]:
  """Why the search kept no channel of the gates `closed`, and what to try."""
  search = cut.searched
  states = [channel_gates.count_by_state(soft[gate]) for gate in closed]
  if all(between + high for _, between, high in states):
    return undecided(sum(states), search)
  return _why_closed(search)


def _why_closed(search: Stage) -> tuple[str, str]:
  """Why a search closes all channels of a layer, and what to try."""
  if not search.penalty:
    rate = f'stages.{search.name}.train.*.lr.base'
    return 'they close without a penalty', f'a smaller {rate} of the gates'
  return (
    f'the penalty, {search.penalty:g}, may be too large for so many steps',
    f'a smaller penalty than {search.penalty:g}, say {search.penalty / 3:.2g}',
  )


def why_none(soft: dict[str, Any], cut: Cut) -> tuple[str, str]:
  """Why the search closed no channel for good, and what to try."""
  search = cut.searched
  counts = channel_gates.count_by_state(soft)
  _, between, high = counts
  if any((g <= cut.threshold).any() for g in soft.values()):
    return (
      f'channel_multiple, {cut.multiple}, keeps those with closed gates, too',
      f'a smaller channel_multiple than {cut.multiple}',
    )
  if between > high:
    return undecided(counts, search)
  if not search.penalty:
    return 'the penalty is 0', 'a penalty above 0'
  return (
    f'the penalty, {search.penalty:g}, may be too small for so few steps',
    f'a larger penalty than {search.penalty:g}, say {search.penalty * 3:.2g}',
  )


def undecided(counts: Any, search: Stage) -> tuple[str, str]:
  """Cause and remedy where gates have `counts` (`count_by_state`)."""
  return (
    f'{int(counts[1])} of {int(sum(counts))} gates are undecided, between 0.1'
    ' and 0.9',
    f'a larger stages.{search.name}.delta_end than {search.delta_end:g} or more'
    f' stages.{search.name}.epochs than {search.epochs}',
  )
