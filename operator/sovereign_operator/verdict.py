# SPDX-License-Identifier: Apache-2.0
"""What two pods found that tried the same ways out, one sealed and one not: a reason and a sentence. Pure.

An unreachable outside proves nothing on a site that has none. So a path counts as denied only where the
unsealed control reached it in the same run, and what even the control cannot reach is called unprovable.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from sovereign_airgap.probe.plan import CANARY_PATHS, PEER_PATHS
from sovereign_airgap.probe.result import Outcome, ProbeResult
from sovereign_operator import reasons
from sovereign_operator.config import API_SERVER, OWN_NODE

# What a run cannot say more than: paths in a sentence, and in status.
LISTED: Final = 12

# Proven from inside: something gets out.
BREACHES: Final = frozenset({reasons.POLICY_NOT_ENFORCED, reasons.LEAK_DETECTED, reasons.DNS_FORWARDS})
# Breaches for which running pods are stopped. A resolver that forwards is a way out for names only.
ISOLATED_FOR: Final = frozenset({reasons.POLICY_NOT_ENFORCED, reasons.LEAK_DETECTED})


@dataclass(frozen=True, slots=True)
class Verdict:
    """`findings`: paths that were reached, and need not have been; `unprovable`: nobody could try them."""

    reason: str
    message: str
    node: str = ""
    settled: float | None = None  # seconds until the network enforced the policies
    denied: int = 0
    unprovable: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """What the two results are read by: the targets, which of them are names, and where the prober ran."""

    targets: tuple[str, ...]  # without the own node
    names: frozenset[str] = frozenset()  # targets that ask the pod's resolver
    suspects: tuple[str, ...] = ()  # NetworkPolicies of others that could open egress
    control_planes: Collection[str] = ()  # nodes that the API server may be on


@dataclass(frozen=True, slots=True)
class Silence:
    """A Job that left no result, and why."""

    words: str


Answer = ProbeResult | Silence


def judge(prober: Answer, control: Answer, question: Question) -> Verdict:
    """The first that holds of: not enforced, a leak, nothing proven, sealed."""
    if isinstance(prober, Silence):
        return _inconclusive(f"The prober gave no result: {prober.words}")
    reached = tuple(name for name in question.targets if prober.paths.get(name) is Outcome.REACHED)
    excused = _own_node(prober, reached, question)
    breach = _not_enforced(prober, question) or _leak(
        prober, tuple(n for n in reached if n not in excused), question
    )
    if breach is not None:
        return breach
    if why := _unproven(prober, control):
        return _inconclusive(why, prober)
    assert isinstance(control, ProbeResult)
    return _sealed(prober, control, excused, question)


def _not_enforced(prober: ProbeResult, question: Question) -> Verdict | None:
    """The canary is in the cluster, so it answers whatever the site's network is like."""
    reached = _those(prober, CANARY_PATHS, Outcome.REACHED)
    if not reached:
        return None
    return Verdict(
        reasons.POLICY_NOT_ENFORCED,
        f"Expected the canary to be out of reach from inside the seal; the prober{_on(prober)} reached it "
        f"({_listed(reached)}). {_why_not_enforced(question.suspects)}",
        node=prober.node,
        settled=prober.settled,
        findings=reached,
    )


def _leak(prober: ProbeResult, reached: tuple[str, ...], question: Question) -> Verdict | None:
    if not reached:
        return None
    if question.names.issuperset(reached):
        reason = reasons.DNS_FORWARDS
        words = (
            f"Expected a resolver that knows the cluster's names only; the prober{_on(prober)} resolved "
            f"{_listed(reached)} with the resolver of the model pods. Queries carry data out: use the "
            "chart's sealed resolver, or one that does not forward."
        )
    else:
        reason = reasons.LEAK_DETECTED
        words = (
            f"Expected every way out to be denied; the prober{_on(prober)} got an answer by "
            f"{_listed(reached)}. Look for {_openers(question.suspects)}, or a path that the network plugin "
            "does not cover."
        )
    return Verdict(reason, words, node=prober.node, settled=prober.settled, findings=reached)


def _why_not_enforced(suspects: Sequence[str]) -> str:
    if not suspects:
        return "This network plugin does not enforce the policies: install one that does."
    return (
        f"Either NetworkPolicies of others open egress (these may: {_listed(suspects)}), or this network "
        "plugin does not enforce the policies: take those away, or install one that does."
    )


def _openers(suspects: Sequence[str]) -> str:
    if not suspects:
        return "a policy that opens egress"
    return f"what opens egress (NetworkPolicies of others that may: {_listed(suspects)})"


def _unproven(prober: ProbeResult, control: Answer) -> str:
    """Why denied paths prove nothing in this run; empty where they do."""
    if unreached := _not_reached(prober, PEER_PATHS):
        return (
            f"The prober{_on(prober)} did not reach its peer ({_listed(unreached)}), so that nothing else "
            "answers it either proves nothing."
        )
    if untried := _those(prober, CANARY_PATHS, Outcome.UNABLE):
        return f"The prober{_on(prober)} could not try {_listed(untried)}: does the resolver answer?"
    if isinstance(control, Silence):
        return f"The unsealed control gave no result: {control.words}"
    if unreached := _not_reached(control, CANARY_PATHS):
        return (
            f"The unsealed control{_on(control)} did not reach the canary ({_listed(unreached)}): is it "
            "running, and is it open to every pod?"
        )
    return ""


def _sealed(
    prober: ProbeResult, control: ProbeResult, excused: tuple[str, ...], question: Question
) -> Verdict:
    tried = tuple(name for name in question.targets if name not in excused)
    denied = tuple(
        name
        for name in tried
        if prober.paths.get(name) is Outcome.DENIED and control.paths.get(name) is Outcome.REACHED
    )
    unprovable = tuple(name for name in tried if name not in denied)
    count = len(denied) + len(CANARY_PATHS)
    words = [f"{count} paths denied{_on(prober)}, {len(unprovable)} unprovable"]
    words[0] += f": {_listed(unprovable)}." if unprovable else "."
    findings = excused
    if prober.paths.get(OWN_NODE) is Outcome.REACHED:
        findings = (OWN_NODE, *excused)
        words.append(f"{reasons.NODE_REACHABLE}: no NetworkPolicy covers the pod's own node.")
    return Verdict(
        reasons.SEALED,
        " ".join(words),
        node=prober.node,
        settled=prober.settled,
        denied=count,
        unprovable=unprovable,
        findings=findings,
    )


def _own_node(prober: ProbeResult, reached: Sequence[str], question: Question) -> tuple[str, ...]:
    """On a control plane's node the API server is the own node, which no policy covers."""
    on_it = prober.node in question.control_planes and prober.paths.get(OWN_NODE) is Outcome.REACHED
    return (API_SERVER,) if on_it and API_SERVER in reached else ()


def _inconclusive(why: str, prober: ProbeResult | None = None) -> Verdict:
    node = prober.node if prober else ""
    return Verdict(reasons.PROBE_INCONCLUSIVE, why, node=node, settled=prober.settled if prober else None)


def _those(result: ProbeResult, paths: Sequence[str], outcome: Outcome) -> tuple[str, ...]:
    return tuple(path for path in paths if result.paths.get(path, Outcome.UNABLE) is outcome)


def _not_reached(result: ProbeResult, paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(path for path in paths if result.paths.get(path) is not Outcome.REACHED)


def _on(result: ProbeResult) -> str:
    return f" on {result.node}" if result.node else ""


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
