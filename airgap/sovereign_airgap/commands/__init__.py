# SPDX-License-Identifier: Apache-2.0
"""One file per verb: its arguments, and what it prints; the work is done elsewhere."""
