#!/bin/bash
# Makes all figures that need a GPU, on one GPU and in under ten minutes:
#   scripts/gpu_report.sh [FOLDER]             into FOLDER (default docs/benchmarks/gpu)
#   scripts/gpu_report.sh --dry-run [FOLDER]   only prints the commands
#
# Each figure is a JSON file, each command's output a .log beside it; report.jsonl has a line per command: what it was, its seconds and
# its exit code. A command has a time limit, and if it fails the others still run; the failed ones are named at the end (exit code 1).
# No data is needed. Without a GPU it says so (exit code 2).
#
# Environment: PYTHON (default: .venv/bin/python, else python), BATCH (default 256; less for a small GPU).
set -u
dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=yes && shift; fi
if [ $# -gt 1 ] || [[ "${1:-}" = -* ]]; then
  echo "error: $*: expected scripts/gpu_report.sh [--dry-run] [FOLDER]" >&2
  exit 2
fi
case "${1:-}" in
  "") folder=docs/benchmarks/gpu ;;
  /*) folder=$1 ;;
  *) folder=$PWD/$1 ;;
esac
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
if [ -z "$dry_run" ]; then
  if ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "error: torch sees no CUDA device here; scripts/gpu_report.sh needs one (--dry-run prints its commands)" >&2
    exit 2
  fi
  mkdir -p "$folder" && : > "$folder/report.jsonl" || exit 1
fi
failed=()

# NAME SECONDS COMMAND...: runs a command with a time limit.
run() {
  local name=$1 limit=$2
  shift 2
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@" && echo
    return
  fi
  echo "$name: at most $limit s"
  local start=$SECONDS code=0 command="$*"
  timeout --kill-after=10 "$limit" "$@" > "$folder/$name.log" 2>&1 || code=$?
  command=${command//\\/\\\\}
  printf '{"name": "%s", "seconds": %d, "exit_code": %d, "command": "%s"}\n' \
    "$name" $((SECONDS - start)) "$code" "${command//\"/\\\"}" >> "$folder/report.jsonl"
  if [ "$code" -ne 0 ]; then
    failed+=("$name")
    [ "$code" -eq 124 ] && echo "$name: stopped after $limit s" || echo "$name: exit code $code: $(tail -n 1 "$folder/$name.log")"
  fi
}

# NAME SECONDS WHAT OPTIONS...: a measurement of scripts/benchmark.py.
measure() {
  local name=$1 limit=$2 what=$3
  shift 3
  run "$name" "$limit" "$python" scripts/benchmark.py "$what" --device cuda --amp bf16 --batch "${BATCH:-256}" --size 224 \
    --json "$folder/$name.json" "$@"
}

# The limits add up to 580 s.
run tests 110 "$python" -m pytest -q -m cuda -p no:cacheprovider
measure step 60 step --attentions se,eca,ba,dca_se --pairs 5
measure step_aw 45 step --attentions aw --pairs 5
measure module 45 module --only-all --pairs 5
measure loop 40 loop --pairs 5
run killtest 60 "$python" scripts/killtest.py --times 2 device=cuda deterministic=true schedule.amp=fp16 kernels=fused
measure step_compiled 220 step --attentions se,ba --compile --pairs 3

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}; see their .log in $folder" >&2
  exit 1
fi
[ -n "$dry_run" ] || echo "written to $folder"
