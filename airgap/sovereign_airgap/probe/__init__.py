# SPDX-License-Identifier: Apache-2.0
"""Proves from inside a pod what its network lets out; `plan` and `result` are shared with the operator."""
