"""Accuracy over cost, a curve for each method, as a picture."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dnal_jax.compare import methods, table
from dnal_jax.compare.cells import FULL

# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_MARKERS = 'os^Dv<>ph'


def write(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
  """Draws `table.summary` as a PNG."""
  figure = Figure(figsize=(8, 5), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  has_test = all('test' in line for line in lines)
  for i, (method, macs, mean, half) in enumerate(table.points(lines)):
    if method == FULL:
      axes.axhline(mean[0], color='black', linestyle=':', label=FULL)
      continue
    ours = method == methods.OURS
    axes.errorbar(
      [m / 1e6 for m in macs],
      mean,
      yerr=half,
      label=method,
      color=_COLOURS[i % len(_COLOURS)],
      marker=_MARKERS[i % len(_MARKERS)],
      linewidth=2.5 if ours else 1.0,
      capsize=3,
    )
  axes.set_xscale('log')
  axes.set_xlabel('multiply-adds for one image, millions')
  axes.set_ylabel(f'top-1 on {"test" if has_test else "validation"}, %')
  axes.grid(alpha=0.3)
  axes.legend(fontsize='small')
  figure.savefig(path, dpi=150)
