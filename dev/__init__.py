# SPDX-License-Identifier: Apache-2.0
"""The embedded cluster, the hub double and the demo: tools for development, never shipped."""
