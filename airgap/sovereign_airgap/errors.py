# SPDX-License-Identifier: Apache-2.0
"""Every way in which the data plane fails, one class each.

A class carries the stable reason that users meet in status and in the result file, the exit code, and
whether the same call may succeed later without anybody changing anything. Its message is one sentence for
the user: what was expected, what was found, what to do. The CLI turns errors into exit codes, the operator
turns reasons into conditions; nobody else decides either.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3


class SovereignError(Exception):
    """The base: never raised itself."""

    reason: ClassVar[str] = "Failed"
    exit_code: ClassVar[int] = EXIT_FAILED
    retryable: ClassVar[bool] = True


class Failure(SovereignError):
    """The world was not as it should be: an outage, a missing right, a full disk."""

    exit_code = EXIT_FAILED


class Refusal(SovereignError):
    """The content is not what it claims to be, or not what we take: trying again does not help."""

    exit_code = EXIT_REFUSED
    retryable = False


# -- refused: content ---------------------------------------------------------------------------------------


class DigestMismatch(Refusal):
    """The bytes that came do not hash to the digest that was promised."""

    reason = "DigestMismatch"


class SizeMismatch(Refusal):
    """A descriptor, a Content-Length and the bytes received disagree about a size."""

    reason = "SizeMismatch"


class UnsafeFileName(Refusal):
    """A file name points outside its directory, cannot exist everywhere, or has a twin."""

    reason = "UnsafeFileName"


class TooManyFiles(Refusal):
    """A repository holds more files than the bound."""

    reason = "TooManyFiles"


class FileTooLarge(Refusal):
    """A file that must be read whole (an index, a manifest, config.json) is larger than its bound."""

    reason = "FileTooLarge"


class MalformedManifest(Refusal):
    """The manifest in the registry is not the manifest of a model artifact."""

    reason = "MalformedManifest"


class MalformedSafetensors(Refusal):
    """A safetensors header is broken: lengths, duplicate names, overlapping or missing ranges."""

    reason = "MalformedSafetensors"


class MalformedConfig(Refusal):
    """config.json or an index file is not the JSON that it should be."""

    reason = "MalformedConfig"


class NothingServable(Refusal):
    """After the selection no weights are left that could be served, for example only pickles."""

    reason = "NothingServable"


class IndexNamesMissingFile(Refusal):
    """An index file names a weight file that the repository lacks."""

    reason = "IndexNamesMissingFile"


class TagConflict(Refusal):
    """The tag of a commit exists already and points to another manifest."""

    reason = "TagConflict"


class NameRequired(Refusal):
    """The canonical id cannot be a repository name of a registry: the user must give one."""

    reason = "NameRequired"


class InvalidReference(Refusal):
    """A reference or digest given by the user cannot be read."""

    reason = "InvalidReference"


class FactsContradict(Refusal):
    """The tensors and config.json tell different stories about the same model."""

    reason = "FactsContradict"


class UnsafeRedirect(Refusal):
    """A server sent us somewhere that we do not follow: another origin, or from https to http."""

    reason = "UnsafeRedirect"


class BundleDefective(Refusal):
    """A bundle is not one, or not whole: a path too many or too few, or an index that contradicts itself."""

    reason = "BundleDefective"


class InvalidSpec(Refusal):
    """What a bundle shall carry was written in a way that cannot be read, or that contradicts itself."""

    reason = "InvalidSpec"


class WrongBase(Refusal):
    """A delta was made against another bundle than the one that is here."""

    reason = "WrongBase"


class OlderVersion(Refusal):
    """A bundle of this name and key with a higher version was loaded before."""

    reason = "OlderVersion"


class NotSigned(Refusal):
    """A signature was asked for, and too few of the given keys have signed."""

    reason = "NotSigned"


class SignatureInvalid(Refusal):
    """There is a signature by a given key, but it is not over this content."""

    reason = "SignatureInvalid"


class KeyUnusable(Refusal):
    """A file that should hold a key holds something else, or a key of a kind that is not taken."""

    reason = "KeyUnusable"


class BundleLacks(Refusal):
    """A bundle does not carry what an installation needs: a chart, an image, a wheel."""

    reason = "BundleLacks"


class BomContradicts(Refusal):
    """The bill of materials does not describe what the bundle carries."""

    reason = "BomContradicts"


class RegistryBlobCorrupt(Refusal):
    """The registry serves other bytes than the digest says; it keeps them even when pushed again."""

    reason = "RegistryBlobCorrupt"


class RegistryDamaged(Refusal):
    """The registry's storage holds damaged bytes, or lacks some that its manifests name."""

    reason = "RegistryDamaged"


class CacheCorrupt(Refusal):
    """A file in the node's cache is not what the manifest says, or was changed since it was checked."""

    reason = "CacheCorrupt"


# -- refused: the seal --------------------------------------------------------------------------------------


class PolicyNotEnforced(Refusal):
    """A model pod still reaches the canary: its network policies are not enforced, so it must not start."""

    reason = "PolicyNotEnforced"


class ProbeInconclusive(Refusal):
    """A model pod could not tell whether it is sealed, because its peer or its resolver did not answer."""

    reason = "ProbeInconclusive"


# -- failed: the source -------------------------------------------------------------------------------------


class SourceForbidden(Failure):
    """The hub answers 401 or 403, or the repository is gated."""

    reason = "SourceForbidden"
    retryable = False


class SourceNotFound(Failure):
    """The hub has no such repository (or hides it from this token)."""

    reason = "SourceNotFound"
    retryable = False


class RevisionNotFound(Failure):
    """The repository has no such commit."""

    reason = "RevisionNotFound"
    retryable = False


class SourceUnavailable(Failure):
    """The hub does not answer, or answers with server errors, after all attempts."""

    reason = "SourceUnavailable"


class SourceChanged(Failure):
    """The hub serves another commit, size or range than it listed."""

    reason = "SourceChanged"


# -- failed: the registry -----------------------------------------------------------------------------------


class RegistryUnavailable(Failure):
    """The registry does not answer, or answers with server errors, after all attempts."""

    reason = "RegistryUnavailable"


class RegistryForbidden(Failure):
    """The registry refuses these credentials, or this action with them."""

    reason = "RegistryForbidden"
    retryable = False


class ArtifactNotFound(Failure):
    """The registry has no such manifest or blob."""

    reason = "ArtifactNotFound"
    retryable = False


class CertificateUnknown(Failure):
    """The server's certificate is signed by an authority that we do not know, or is for another name."""

    reason = "CertificateUnknown"
    retryable = False


class LoadInProgress(Failure):
    """Another load (or a prune) is at work in the same place of the registry."""

    reason = "LoadInProgress"


# -- failed: here -------------------------------------------------------------------------------------------


class BundleExists(Failure):
    """Something lies already where a new bundle shall be written; nothing is ever overwritten."""

    reason = "BundleExists"
    retryable = False


class DiskFull(Failure):
    """The target directory's file system has not enough room."""

    reason = "DiskFull"


class DiskFailed(Failure):
    """The target directory cannot be written: permissions, read-only, input/output error."""

    reason = "DiskFailed"


class CacheFull(Failure):
    """The node's cache has no room for an artifact, though everything that nobody uses or wants would go."""

    reason = "CacheFull"


class CacheMissing(Failure):
    """The node's cache has no complete copy of the artifact, and none came while a pod waited for it."""

    reason = "CacheMissing"


class CacheBusy(Failure):
    """Another fetch of the same artifact, or an eviction, was at work on the node for too long."""

    reason = "CacheBusy"


class Stalled(Failure):
    """Bytes stopped moving, or moved too slowly, in every attempt."""

    reason = "Stalled"


class Interrupted(Failure):
    """A signal or another file's failure ended the work before it was done."""

    reason = "Interrupted"


class CredentialsUnreadable(Failure):
    """The docker config, token file or CA file cannot be used as it is."""

    reason = "CredentialsUnreadable"
    retryable = False


class ProgramMissing(Failure):
    """A program that an installation runs (ctr, kubectl, helm) is neither here nor in the bundle."""

    reason = "ProgramMissing"
    retryable = False


class ProgramFailed(Failure):
    """A program that an installation runs ended with an error; the message has its last words."""

    reason = "ProgramFailed"


class PortUnavailable(Failure):
    """A port that a program shall listen on is taken, or not allowed to it."""

    reason = "PortUnavailable"


class InternalError(Failure):
    """A defect of ours; the message has the exception's name, the log has the trace."""

    reason = "InternalError"
