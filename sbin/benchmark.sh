#!/usr/bin/env bash
# Costs of the models, parts of a training step, ratios between variants.
#   bash sbin/benchmark.sh [--help]
#   bash sbin/benchmark.sh --against transformers [--help]   Mask2Former beside that of transformers
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

requirements=(requirements.txt) entry=engine.tools.benchmark
for argument in "$@"; do
  case $argument in
    --against | --against=*)
      requirements+=(requirements-dev.txt) entry=engine.tools.benchmark_peers
      ;;
  esac
done
use_python "${requirements[@]}"
exec "$python" -m $entry "$@"
