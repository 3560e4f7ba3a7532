#!/usr/bin/env bash
# Set up what the tests need and run them, then the linter; arguments go to pytest.
#   bash sbin/run_tests.sh [-k NAME] [tests/mobileinst]
# Two processes share the tests; `-n 0` runs them in one.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
use_python requirements.txt requirements-dev.txt
"$python" -m pytest -n 2 --dist worksteal "$@"
"$python" -m ruff check .
