#!/usr/bin/env bash
# What the library survives, tried and measured: a table, a row for each trial.
#
#   bash sbin/stress.sh                 every report in its short form, some minutes
#   bash sbin/stress.sh memory          this report alone; several may be named
#   bash sbin/stress.sh --thorough      full sizes and counts; takes long
#   bash sbin/stress.sh --help          the reports there are, and every option
#
# Exit code 3 if anything failed.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
# What the training scripts set for speed keeps memory that was given back; measured without.
unset MALLOC_MMAP_THRESHOLD_ MALLOC_TRIM_THRESHOLD_
exec "$python" -m tests.stress "$@"
