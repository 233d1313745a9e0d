# SPDX-License-Identifier: Apache-2.0
"""A double of the model hub. It is not a hub: it serves a local folder so that nothing else is needed.

The real `huggingface_hub` client is content with it, and so is our mirror. It answers as the Hub does where
a client can tell the difference: git object ids, LFS pointers, redirects to another origin with an expiring
signature, Range, gated and private repositories, error codes. Faults are not its business: they live in the
tests, in a proxy in front of it.

    DIR/org/name/…            a repository with one revision, `main`
    DIR/org/name/@label/…     one folder per revision; `main` is `@main`, or the last label in order
    DIR/org/name/.gated       files need one of the tokens listed in it (one a line, may be none)
    DIR/org/name/.private     the whole repository needs one of the tokens listed in it
"""

from dev.hub.command import add_parser
from dev.hub.server import HubServer

__all__ = ["HubServer", "add_parser"]
