#!/usr/bin/env bash
# Prints what a file of weights is and whether it loads into a model, without training.
#   bash sbin/check_weights.sh FILE [--model NAME] [--json] [--help]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.tools.check_weights "$@"
