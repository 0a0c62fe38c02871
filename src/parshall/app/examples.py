"""Values to try every operation with, for the OpenAPI document and the Postman collection.

What would change the password or remove the user of whoever presses Send without reading names a wrong password.
"""

from typing import Any

STREAM_ID = "stream-1795378789-70731c7ee2fc402b89acc87c7f537d2c"
SESSION_ID = "606a17bd520e4e95985321b3f0a489e3"
MODEL_ID = "smollm2-135m"
USER = "ann"
PASSWORD = "correct-horse-battery"  # noqa: S105 - of nobody
_ANN: dict[str, Any] = {"username": USER, "email": "ann@example.org", "password": PASSWORD}
_OUTPUT_TOKENS = {"inputTokens": 30, "maxOutputTokens": 256, "sliceTokens": 64}
_USAGE = {"inputTokens": 30, "cachedInputTokens": 0, "outputTokens": 12, "reasoningTokens": 0}
_CODE = "the code that was mailed"

BODIES: dict[str, dict[str, Any]] = {
    "AbortBody": {"sessionId": STREAM_ID, "tokensGenerated": 12},
    "AddressBody": {"email": "ann@example.org"},
    "AdjustBody": {"userId": USER, "adjustment": -2.5, "notes": "a correction"},
    "AllocateBody": {"userId": USER, "credits": 10, "expiryDays": 30, "notes": "welcome"},
    "AskBody": {"message": "What is the capital of France?", "maxTokens": 64},
    "BatchBody": {"users": [{"username": "ben", "email": "ben@example.org", "password": PASSWORD, "role": "enduser"}]},
    "CalculateBody": {"modelId": MODEL_ID, "inputTokens": 1000, "outputTokens": 500},
    "ChangePasswordBody": {"currentPassword": "not-your-password", "newPassword": PASSWORD},
    "ChangeSession": {"title": "Capitals of Europe"},
    "CheckBody": {"requiredCredits": 0.5},
    "CodeBody": {"token": _CODE},
    "CreateBody": {**_ANN, "role": "enduser"},
    "CreateSession": {"title": "Capitals", "source": "api"},
    "DebugTokenBody": {"minutes": 15},
    "DeductBody": {"credits": 0.000001, "notes": "a trial"},
    "DeleteBody": {"currentPassword": "not-your-password"},
    "ExtendBody": {"sessionId": STREAM_ID, "outputTokens": 64, "step": 1},
    "FinalizeBody": {"sessionId": STREAM_ID, "usage": _USAGE, "usageSource": "provider", "outcome": "completed"},
    "GroupAdjustBody": {"adjustment": 1},
    "GroupAllocateBody": {"credits": 100, "notes": "spring term"},
    "GroupRemoveBody": {"credits": 1},
    "GroupSetBody": {"credits": 100},
    "InitializeBody": {"sessionId": STREAM_ID, "modelId": MODEL_ID, **_OUTPUT_TOKENS},
    "KeyBody": {"name": "a script of mine", "scopes": ["chat", "credits:read"]},
    "LoginBody": {"username": "demo", "password": "demo-password"},
    "MemberBody": {"role": "member", "limitPerDay": 5},
    "NewPasswordBody": {"newPassword": PASSWORD},
    "OrganisationBody": {"name": "Department of Geography"},
    "PriceBody": {"modelId": "another-model", "input": 1000, "output": 4000},
    "ProfileBody": {"email": "me@example.org"},
    "Recommend": {"task": "summarise a page", "priority": "cost"},
    "RecordBody": {"service": "search", "operation": "query", "credits": 0.01},
    "RefreshBody": {"refreshToken": "the refreshToken of the login"},
    "RemoveBody": {"userId": USER, "credits": 1},
    "RepriceBody": {"sessionId": STREAM_ID, "modelId": MODEL_ID, **_OUTPUT_TOKENS},
    "ResetBody": {"token": _CODE, "newPassword": PASSWORD},
    "RoleBody": {"role": "enduser"},
    "SetBody": {"userId": USER, "credits": 10},
    "SignupBody": {**_ANN, "username": "cleo", "email": "cleo@example.org"},
    "SwitchBody": {"streamingSessionId": STREAM_ID, "minutes": 15},
    "UpdateStream": {"streamingSessionId": STREAM_ID, "completeResponse": "", "tokensUsed": 0},
    "VoidBody": {"sessionId": STREAM_ID},
}
"""A body that is in order, by the name of its schema."""

FORMS: dict[str, dict[str, Any]] = {
    "application/x-www-form-urlencoded": {
        "grant_type": "client_credentials",
        "client_id": "chat",
        "client_secret": "what parshall services add chat has printed",
    }
}
"""The same for what is no JSON, by media type."""

PARAMETERS: dict[str, tuple[str, Any]] = {
    "session_id": ("the id of a chat session; under /api/streaming-sessions that of a stream", SESSION_ID),
    "stream_id": ("a streaming session id", STREAM_ID),
    "user_id": ("a user's id; in accounting and chat also a username or an e-mail address", USER),
    "email": ("an e-mail address", "ann@example.org"),
    "key_id": ("the id or the prefix of an API key", "parshall_3f9a"),
    "organisation_id": ("the id of an organisation", "0" * 32),
    "after": ("goes on behind this one, as `next` of the page before or as Last-Event-ID says it", "0"),
    "limit": ("most entries of a page", 20),
    "page": ("pages count from 1", 1),
    "who": ("id, username or e-mail address of one user", USER),
    "query": ("words to look for", "capital"),
    "name": ("the name of an external issuer in PARSHALL_OIDC_ISSUERS", "corp"),
    "returnTo": ("the path of this site to come back to", "/"),
    "code": ("what the issuer gives for an ID token", "the code of the issuer"),
    "state": ("what the login began with", "the state of the login"),
    "iss": ("who answers (RFC 9207)", "https://login.example.org"),
    "error": ("why the issuer logs nobody in", ""),
    "format": ("json is a timeline, har what DevTools import", "json"),
    "minutes": ("how far back", 5),
    "seconds": ("how long the silence lasts", 1),
    "startDate": ("a date or date-time of RFC 3339, in UTC where it names no offset", "2026-11-01"),
    "endDate": ("likewise; a date includes the whole day", "2026-11-30"),
    "userId": ("id, username or e-mail address", USER),
    "observerId": ("id, username or e-mail address", "sue"),
    "X-User-ID": ("the user for whom a service calls; of a user their own id or username", USER),
    "X-Streaming-Session-Id": ("an id that the client proposes; the same again attaches to the same stream", STREAM_ID),
    "Last-Event-ID": ("the id of the last event that came whole", "0"),
    "Idempotency-Key": ("makes a repeated request safe: the same key gives the first answer", "a-key-of-mine-1"),
}
"""What a parameter is, and a value, by its name."""
