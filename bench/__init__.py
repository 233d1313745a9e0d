# SPDX-License-Identifier: Apache-2.0
"""Benchmarks, run on demand: contestants in one run on one machine, compared as ratios. Never timed tests."""
