#!/usr/bin/env bash
# Set up what the tests need and run them, then the linter; arguments go to pytest.
#   bash sbin/run_tests.sh [-k NAME] [tests/mobileinst]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt requirements-dev.txt
"$python" -m pytest "$@"
"$python" -m ruff check .
