# SPDX-License-Identifier: Apache-2.0
"""Data plane: every line that moves or checks bytes, and the command line over it."""
