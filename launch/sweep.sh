#!/usr/bin/env bash
# Runs a config once for each lambda, one after the other, and prints a table of
# the results.
#
#   CONFIG=configs/NAME.py WORKDIR=DIR launch/sweep.sh LAMBDA... [-- FLAGS]
#
# FLAGS are passed to every run. Each run has its own folder,
# WORKDIR/lambda_VALUE, so the same command resumes a stopped sweep and skips
# finished runs. The first run has the warm-up, with which the others begin
# (--config.init_from). Test accuracy is shown for the run that is best on
# validation only, so that no choice is made by it.
#
# If a run fails, the next ones still start, and the exit code is 1. The exit
# code is 2 if the input is wrong, before anything starts, and 75 after Ctrl-C or
# SIGTERM, when the current run has saved.
set -euo pipefail

CONFIG=${CONFIG:-}                 # required; of the runs
WORKDIR=${WORKDIR:-}               # required; parent of the runs' folders
PYTHON=${PYTHON:-.venv/bin/python} # with the requirements

mistake() {
  echo "error: $*" >&2
  exit 2
}

lambdas=()
while (($#)) && [[ $1 != -- ]]; do
  [[ $1 =~ ^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$ ]] ||
    mistake "lambda '$1' is not a number of 0 or more, such as 5e-5"
  lambdas+=("$1")
  shift
done
if (($#)); then shift; fi
((${#lambdas[@]})) || mistake "no LAMBDA given; usage: launch/sweep.sh LAMBDA..."
for key in CONFIG WORKDIR; do
  [[ -n ${!key} ]] || mistake "$key is not set; give $key=... before the command"
done
[[ -f dnal_jax/main.py ]] ||
  mistake "start this in the root of the checkout, as launch/sweep.sh"
command -v "$PYTHON" >/dev/null ||
  mistake "PYTHON is '$PYTHON', which is not executable"

# Ctrl-C reaches this shell only; SIGTERM makes the run save.
job=
# shellcheck disable=SC2329  # the trap calls it
stop() {
  trap '' INT TERM
  if [[ -n $job ]]; then
    kill "$job" || true
    wait "$job" || true
  fi
  echo "sweep.sh: stopped; the same command resumes the sweep" >&2
  exit 75
}
trap stop INT TERM

failed=0
rows=()
begin=()
for lambda in "${lambdas[@]}"; do
  folder=$WORKDIR/lambda_$lambda
  echo "lambda $lambda"
  code=0
  "$PYTHON" -u -m dnal_jax.main --config="$CONFIG" --workdir="$folder" "$@" \
    --config.penalty="$lambda" "${begin[@]}" &
  job=$!
  wait "$job" || code=$?
  job=
  if ((code)); then failed=1; fi
  rows+=("$lambda" "$code" "$folder/result.json")
  if ((!${#begin[@]})) && [[ -d $folder/warmup/model ]]; then
    begin=("--config.init_from=$folder")
  fi
done

"$PYTHON" - "${rows[@]}" <<'PYTHON'
import json
import sys

rows, results = iter(sys.argv[1:]), {}
for value, code, path in zip(rows, rows, rows):
  results[value] = f'failed with exit code {code}'
  if code == '0':
    with open(path) as file:
      results[value] = json.load(file)
finished = {k: r['top1']['final'] for k, r in results.items() if type(r) is dict}
best = max(finished, key=finished.get, default=None)
print(
  f'\n{"lambda":>10} {"macs":>16} {"params":>13} {"validation":>11}'
  f' {"test top-1":>11}'
)
for value, result in results.items():
  if type(result) is str:
    print(f'{value:>10} {result}')
    continue
  sizes = result['learned'] or result['baseline']
  test = f'{result["test_top1"]:.2%}' if value == best else ''
  line = f'{value:>10} {sizes["macs"]:>16,} {sizes["params"]:>13,}'
  print(f'{line} {finished[value]:>11.2%} {test:>11}'.rstrip())
PYTHON
exit "$failed"
