#!/usr/bin/env bash
# All benchmarks on a GPU, and training of ResNet56 on Fashion-MNIST with two
# lambdas; takes at most 9 minutes on one modern GPU.
#
#   benchmarks/gpu.sh OUT.json
#
# Needs jax, flax, optax, orbax and torch, but not TensorFlow. WHEELS=FOLDER
# first installs wheels from that folder (ml_collections, absl and so on, for a
# machine without a network). Fashion-MNIST is read from the cache of small
# images that an earlier run has written (XDG_CACHE_HOME, with the TFDS_DATA_DIR
# of that run). TINY=1 runs all parts with small networks that a CPU can train,
# and with eight times the time limits, to test this script.
# Every part has a time limit. The exit code of a part that fails or times out is
# in OUT.json, and the script then exits with 1.
set -u
out=${1:?usage: benchmarks/gpu.sh OUT.json}
cd "$(dirname "$0")/.." || exit 1
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
python=${PYTHON:-python}
export PYTHONPATH=. XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.5}
export JAX_COMPILATION_CACHE_DIR=$parts/compiled
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps "$WHEELS"/*.whl || exit 1
fi

failed=0
part() { # part NAME SECONDS COMMAND...
  local name=$1 limit=$(($2 * slack)) code=0
  shift 2
  echo "== $name"
  timeout "$limit" "$@" 2>"$parts/$name.err" || code=$?
  if [ "$code" -ne 0 ]; then
    failed=1
    tail -n 5 "$parts/$name.err" >&2
    echo "{\"failed\": $code}" >"$parts/$name.json"
  fi
}

if [ -n "${TINY:-}" ]; then
  small=resnet8_digits large=resnet8_digits published=vgg16_cifar slack=8
  cifar=(--batch=8 --rounds=1 --steps=2 --width=0.25)
  imagenet=(--batch=4 --rounds=1 --steps=1)
  kinds=eager
  data=(--image=8 --batch=8 --rounds=1 --steps=4)
  train=(--config.network.width=0.1 --config.data.train_limit=256)
  epochs=1
else
  small=resnet56_cifar large=resnet50 published=resnet56_cifar slack=1
  cifar=(--rounds=5 --steps=50)
  imagenet=(--batch=256 --rounds=3 --steps=10)
  kinds=eager,compile
  data=(--network=resnet56_cifar --rounds=3 --steps=100)
  train=()
  epochs=4
fi
step=("$python" benchmarks/train_step.py)

part resnet56 110 "${step[@]}" --networks=$small "${cifar[@]}" \
  --torch=eager --json="$parts/resnet56.json"
part resnet56_compile 60 "${step[@]}" --networks=$small "${cifar[@]}" \
  --stages=warmup --torch=$kinds --json="$parts/resnet56_compile.json"
part resnet50 110 "${step[@]}" --networks=$large "${imagenet[@]}" \
  --stages=warmup --dtype=bfloat16 --torch=$kinds --json="$parts/resnet50.json"
part device_data 40 "$python" benchmarks/device_data.py "${data[@]}" \
  --json="$parts/device_data.json"
part search_cost 80 "$python" benchmarks/search_cost.py "${cifar[@]}" \
  --networks=$published --json="$parts/search_cost.json"
for penalty in 3e-4 1e-3; do
  part "fashion_mnist_$penalty" 65 "$python" -m dnal_jax.main \
    --config=configs/resnet56_fashion_mnist.py --config.penalty=$penalty \
    --config.tensorboard=False --workdir="$parts/run_$penalty" \
    --config.stages.warmup.epochs=$epochs \
    --config.stages.search.epochs=$((epochs > 1 ? epochs / 2 : 2)) \
    --config.stages.finetune.epochs=$epochs \
    --config.stages.finetune.train.weights.lr.begin=0.0 "${train[@]}"
  [ -e "$parts/fashion_mnist_$penalty.json" ] ||
    cp "$parts/run_$penalty/result.json" "$parts/fashion_mnist_$penalty.json"
done

"$python" - "$parts" "$out" <<'END'
import json, pathlib, sys

parts, out = map(pathlib.Path, sys.argv[1:])
found = {file.stem: json.loads(file.read_text()) for file in sorted(parts.glob('*.json'))}
out.write_text(json.dumps(found, indent=1) + '\n')
END
echo "wrote $out"
exit $failed
