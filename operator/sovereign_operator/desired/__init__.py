# SPDX-License-Identifier: Apache-2.0
"""Pure builders, one file per child kind: value in, plain dict out."""
