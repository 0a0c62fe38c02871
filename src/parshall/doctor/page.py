"""A report as one HTML file that needs nothing beside it."""

from html import escape

from parshall.doctor.model import Finding, Report, Status

_CLASSES = {Status.OK: "ok", Status.WARNING: "warning", Status.FAULT: "fault", Status.NOT_CHECKED: "open"}

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>parshall doctor: {url}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
  table {{ border-collapse: collapse; width: 100%; }}
  td, th {{ text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid #8884; }}
  td:first-child {{ white-space: nowrap; font-weight: 600; }}
  .ok {{ color: #2a7d3f; }} .warning {{ color: #a86400; }} .fault {{ color: #c22d2d; }} .open {{ color: GrayText; }}
  .remedy {{ display: block; margin-top: .2rem; }}
  pre {{ overflow-x: auto; padding: .6rem; border: 1px solid #8884; }}
</style>
<h1>{verdict}</h1>
<p>{url}, examined {at} in {seconds:.1f} s; in front: {front}.</p>
<p>{counts}</p>
<table>
<thead><tr><th>Verdict<th>Check<th>What was seen, and what to do</tr></thead>
<tbody>
{rows}
</tbody>
</table>
<h2>The head of the stream's response, as it came</h2>
<pre>{head}</pre>
</html>
"""


def html(report: Report) -> str:
    """The report as HTML; whatever the deployment said is escaped."""
    counts = ", ".join(f"{report.count(status)} {status.value}" for status in Status)
    return _PAGE.format(
        url=escape(report.url),
        verdict=verdict(report),
        at=escape(report.at),
        seconds=report.seconds,
        front=escape(", ".join(report.front) or "nothing that names itself"),
        counts=counts,
        rows="\n".join(_row(finding) for finding in report.findings),
        head=escape(report.head),
    )


def verdict(report: Report) -> str:
    """The whole in one sentence."""
    faults, warnings = report.count(Status.FAULT), report.count(Status.WARNING)
    if faults:
        return f"{faults} fault{'s' if faults > 1 else ''} found."
    return f"No fault, {warnings} warning{'s' if warnings > 1 else ''}." if warnings else "All is well."


def _row(finding: Finding) -> str:
    remedy = f'<span class="remedy">→ {escape(finding.remedy)}</span>' if finding.remedy else ""
    return (
        f'<tr><td class="{_CLASSES[finding.status]}">{finding.status.value}<td>{escape(finding.title)}'
        f"<td>{escape(finding.evidence)}{remedy}</tr>"
    )
