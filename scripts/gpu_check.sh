#!/bin/bash
# Checks and times everything that needs a CUDA GPU, within about four minutes.
#
#     scripts/gpu_check.sh [--only "PART ..."] [--out DIR]
#
# PART: facts tests rows pixels wide packed epochs profile reference.
# Each part prints its progress and writes its figures to DIR/PART.json. A part that fails does not
# stop the others; the script then exits with 1. Without a GPU every part is skipped.
# `epochs` needs the image sets in ELSTM_DATA or data/, and makes random ones where they are missing.
set -u
cd "$(dirname "$0")/.." || exit 1
all="facts tests rows pixels wide packed epochs profile reference"
parts=$all
out=outputs/gpu_check
while [ $# -gt 0 ]; do
  case "$1:${2:-}" in
    --only:?*) parts="$2" ;;
    --out:?*) out="$2" ;;
    *) sed -n 2,9p "$0"; exit 2 ;;
  esac
  shift 2
done
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
for part in $parts; do
  case " $all " in
    *" $part "*) ;;
    *) echo "there is no part $part; parts: $all"; exit 2 ;;
  esac
done
if ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  for part in $parts; do echo "== $part: skipped, because torch finds no CUDA GPU here"; done
  exit 0
fi
mkdir -p "$out"
failed=""
for part in $parts; do
  echo "== $part ($SECONDS s)"
  json="$out/$part.json"
  case "$part" in
    tests) command=("$python" scripts/speed/gpu_tests.py --json "$json") ;;
    # A part for each shape, because a part that runs out of time writes no figures.
    rows | pixels | wide | packed)
      command=("$python" scripts/benchmark.py --device cuda --budget 0.2 --json "$json"
               --shapes "$part" --layers "LSTM torch" "BNLSTM auto" "ELSTMBN auto") ;;
    reference) command=("$python" scripts/benchmark.py --device cuda --budget 0.1 --json "$json"
                        --shapes rows wide --layers "ELSTMBN reference" "LayerNormLSTM reference") ;;
    profile) command=("$python" scripts/benchmark.py --device cuda --profile --json "$json") ;;
    *) command=("$python" "scripts/speed/$part.py" --json "$json") ;;
  esac
  timeout 120 "${command[@]}" || { echo "FAILED: $part"; failed="$failed $part"; }
done
echo "== done ($SECONDS s)${failed:+; failed:$failed}"
[ -z "$failed" ]
