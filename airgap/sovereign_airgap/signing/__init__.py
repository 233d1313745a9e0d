# SPDX-License-Identifier: Apache-2.0
"""Signatures: keys, the DSSE envelope, the statement in it, and how many keys must have signed."""
