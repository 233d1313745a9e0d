# SPDX-License-Identifier: Apache-2.0
"""What runs inside the Ray pods: the Serve application and its profiles."""
