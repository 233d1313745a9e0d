# SPDX-License-Identifier: Apache-2.0
"""What can go wrong while images are built: one type, because there is one remedy, to read the sentence."""


class BuildFailed(Exception):
    """A tool or a source is missing, or a tool failed: the text ends with the last lines it said."""
