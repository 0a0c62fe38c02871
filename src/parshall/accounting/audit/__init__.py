"""The audit: rebuilds every balance from its transfers and says in plain words what does not agree."""

from parshall.accounting.audit.findings import Finding
from parshall.accounting.audit.whole import (
    AnchorUnreadable,
    Report,
    audit,
    find_account_id,
)

__all__ = ["AnchorUnreadable", "Finding", "Report", "audit", "find_account_id"]
