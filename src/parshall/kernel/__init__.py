"""What every service stands on: errors, ids, time, amounts, databases, HTTP, SSE."""
