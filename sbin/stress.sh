#!/usr/bin/env bash
# Stress tests: broken data, memory, speed of reading, kills, several processes. A table with a row for each trial.
#
#   bash sbin/stress.sh                 all reports in their short form, some minutes
#   bash sbin/stress.sh memory          this report only; several may be named
#   bash sbin/stress.sh --thorough      full sizes and counts; takes long
#   bash sbin/stress.sh --help          the names of the reports, all options
#
# Exit code 3 if anything failed.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
# The allocator settings of the training scripts keep freed memory; memory is measured without.
unset MALLOC_MMAP_THRESHOLD_ MALLOC_TRIM_THRESHOLD_
exec "$python" -m tests.stress "$@"
