# Sourced by the other scripts: strict mode, the project's root, a Python that has what is needed.
#
# An active virtual environment that satisfies the requirements is used; otherwise .venv is made and
# filled, once. PYTHON names the interpreter that makes it (default: python3).

set -euo pipefail
started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "$started_in" != "$PWD" ]; then echo "note: paths are relative to $PWD" >&2; fi

# Threads that wait for one another spin for a moment and then sleep: spinning on takes the cores
# from loader workers; sleeping at once halves the speed of small networks.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-100000}"
# Memory freed by a step is kept for the next one: page faults of fresh memory take a tenth to a
# fifth of the time of a step (glibc; others ignore it).
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4294967296}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-17179869184}"
export PIP_DISABLE_PIP_VERSION_CHECK=1
export MOBILEINST_SCRIPT="${MOBILEINST_SCRIPT:-bash sbin/${0##*/}}"  # named in --help

# has_requirements PYTHON FILE...: whether every requirement of the files is installed, in versions
# that pip would install together (torchvision names the one torch that it belongs to).
has_requirements() {
  local python=$1
  shift
  "$python" - "$@" <<'PYTHON' 2>/dev/null
import operator
import re
import sys
from importlib.metadata import requires, version

COMPARE = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt,
           "<": operator.lt}

def parts(text):
    numbers = [int(number) for number in re.findall(r"\d+", text)[:3]]
    return numbers + [0] * (3 - len(numbers))

def package(requirement):
    return re.match(r"[\w.-]+", requirement)[0]

def holds(requirement):
    found = parts(version(package(requirement)))
    limits = re.findall(r"([<>=]=|[<>])\s*([\d.]+)(?![\d.*])", requirement)
    return all(COMPARE[sign](found, parts(limit)) for sign, limit in limits)

listed = [line for name in sys.argv[1:] for line in open(name, encoding="utf-8").read().split()]
needed = [each for line in listed for each in requires(package(line)) or () if ";" not in each]
sys.exit(sys.version_info < (3, 10) or not all(map(holds, listed + needed)))
PYTHON
}

# use_python FILE...: sets $python to an interpreter that has what the requirement files name.
use_python() {
  if [ -n "${VIRTUAL_ENV:-}" ] && has_requirements "$VIRTUAL_ENV/bin/python" "$@"; then
    python=$VIRTUAL_ENV/bin/python
    return
  fi
  python=.venv/bin/python
  if [ -x "$python" ] && has_requirements "$python" "$@"; then
    return
  fi
  local maker=${PYTHON:-python3}
  if ! "$maker" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "error: $maker is missing or older than Python 3.10; name another with PYTHON=..." >&2
    exit 2
  fi
  echo "setting up .venv, once (torch is a large download)"
  # One that was cut short while it was made has no pip.
  "$python" -m pip --version >/dev/null 2>&1 || "$maker" -m venv --clear .venv
  local file arguments=()
  for file in "$@"; do arguments+=(-r "$file"); done
  if ! "$python" -m pip install --quiet "${arguments[@]}"; then
    echo "error: pip could not install $*, see above; start again when that is solved, or activate" \
      "an environment that has these packages" >&2
    exit 2
  fi
}

# has_data OPTION...: whether the options name a data set.
has_data() { [[ " $* " =~ " --"(data|train-json)[=\ ] ]]; }

# asks_for_help OPTION...: whether nothing is to be done but to list the options.
asks_for_help() { [[ " $* " =~ " "(-h|--help)" " ]]; }

# draw_demo_set NAME FOLDER OPTION...: draws the set of data/demo/NAME.py, unless for --help.
draw_demo_set() {
  if asks_for_help "$@"; then return; fi
  echo "no --data DIR: using the built-in demo set in $2"
  "$python" -m "data.demo.$1" --out "$2"
}

# run_module MODULE OPTION...: `python -m MODULE OPTION...`, in GPUS=N processes if more than one is
# asked for. It ends the script, with the exit code of the module.
#
# GPUS counts processes: one per GPU on CUDA, any number on a CPU, whose threads they divide.
# --batch-size and --workers are those of each process. On several machines start the same script on
# each, with NNODES machines, NODE_RANK 0 to NNODES - 1, and MASTER_ADDR and MASTER_PORT of machine
# 0; GPUS is then the number per machine, and all of them need the run folder and the data.
run_module() {
  local where=(--standalone)
  if [ "${GPUS:-1}:${NNODES:-1}" = 1:1 ] || asks_for_help "$@"; then exec "$python" -m "$@"; fi
  if [[ ! "${GPUS:-1}:${NNODES:-1}" =~ ^[1-9][0-9]*:[1-9][0-9]*$ ]]; then
    echo "error: GPUS=${GPUS:-1} NNODES=${NNODES:-1}: give whole numbers above zero" >&2
    exit 2
  fi
  if [ "${NNODES:-1}" != 1 ]; then
    if [ -z "${NODE_RANK:-}" ] || [ -z "${MASTER_ADDR:-}" ]; then
      echo "error: NNODES=$NNODES: give NODE_RANK and MASTER_ADDR as well" >&2
      exit 2
    fi
    where=(--nnodes "$NNODES" --node-rank "$NODE_RANK")
    where+=(--master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
  fi
  exec "$python" -m engine.launch "${where[@]}" --nproc-per-node "${GPUS:-1}" -m "$@"
}
