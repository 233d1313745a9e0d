# SPDX-License-Identifier: Apache-2.0
"""The node's cache: weights once on each node, shared by the pods of a tenant, kept over their restarts."""
