#!/usr/bin/env bash
# Where the time of a training step goes, what the models cost, and how much a choice is worth.
#   bash sbin/benchmark.sh [--help]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.benchmark "$@"
