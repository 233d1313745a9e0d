# SPDX-License-Identifier: Apache-2.0
"""Control plane: decides and applies; moves no weight bytes."""
