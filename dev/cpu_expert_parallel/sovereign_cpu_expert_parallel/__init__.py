# SPDX-License-Identifier: Apache-2.0
"""Not for production: lets vLLM run MoE expert parallelism on CPUs. See `plugin`."""
