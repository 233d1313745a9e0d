# SPDX-License-Identifier: Apache-2.0
"""From a bundle to a running platform: `airgap/install` makes the environment, this does what follows."""
