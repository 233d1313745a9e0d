# SPDX-License-Identifier: Apache-2.0
"""The bundle: an OCI image layout that carries models, images, charts and their proof over an air gap."""
