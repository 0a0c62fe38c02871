"""One examination from login to report."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from parshall.doctor import generic, ours
from parshall.doctor.front import intermediaries, recognised
from parshall.doctor.model import Check, Finding, Plan, Profile, Report, Status
from parshall.doctor.remedies import remedy
from parshall.doctor.wire import Answer, Target
from parshall.kernel.clock import now, rfc3339

Progress = Callable[[str], None]
"""Told what is being examined next, in words."""


async def examine(plan: Plan, progress: Progress = lambda _words: None) -> Report:
    """Examine a deployment. Raises CannotRun where nothing can be said about it."""
    at, began = rfc3339(now()), time.monotonic()
    target = Target.of(plan.url, ca_file=plan.ca_file)
    examination = generic.examine if plan.profile is Profile.GENERIC else ours.examine
    stream, findings = await examination(plan, target, progress)
    return Report(
        url=plan.url,
        profile=plan.profile,
        at=at,
        seconds=time.monotonic() - began,
        front=intermediaries(stream.headers),
        findings=_ordered(_advised(findings, stream)),
        head=stream.head,
    )


def _advised(findings: Sequence[Finding], stream: Answer) -> list[Finding]:
    fronts = recognised(stream.headers)
    wrong = (Status.FAULT, Status.WARNING)
    return [replace(f, remedy=remedy(f.check, fronts)) if f.status in wrong else f for f in findings]


def _ordered(findings: Sequence[Finding]) -> list[Finding]:
    place = {check: index for index, check in enumerate(Check)}
    return sorted(findings, key=lambda finding: (finding.origin or "", place[finding.check]))
