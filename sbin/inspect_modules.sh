#!/usr/bin/env bash
# What each part of a model receives and returns: shapes, strides, ranges; and what it costs.
#   bash sbin/inspect_modules.sh [--model NAME] [--image-size N] [--json FILE] [--help]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.tools.inspect_modules "$@"
