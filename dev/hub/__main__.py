# SPDX-License-Identifier: Apache-2.0
"""`python -m dev.hub`: the hub double without the rest of the development tools."""

import sys

from dev.hub.command import main

sys.exit(main())
