#!/usr/bin/env bash
# Check a data set before a training: a page with what is in it and what is wrong with it.
#   bash sbin/check_data.sh DATA [--recipe NAME] [--format NAME] [--help]
# Exit code 0 if a training can use it, 2 if something must be corrected. The data are only read.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.check_data "$@"
