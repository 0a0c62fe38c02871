"""What the shared log asks of the engine, as Lua that it runs at once: no other client sees or does anything between.

Each stream has three keys and a channel, all in one slot of a cluster: a hash with its lease and extent, a stream whose
entries are numbered by their offsets, a sorted set of the processes that read it without producing it, and a channel on
which is said that there is more to read. Each process has a channel for what others ask of it.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from parshall.kernel.ids import StreamId

FENCED: Final = -1
"""Another lease holds the stream, or it is closed."""
UNKNOWN: Final = -2
"""The engine holds nothing of this stream."""
BEHIND: Final = -3
"""The engine holds less than what the append follows."""
FULL: Final = -4
"""The append would pass the bounds."""

OPEN: Final = 1
CLOSED: Final = 2

CLOSED_INDEX = "parshall:closed"
"""Closed streams by the instant of their end: what is to be trimmed is found without looking at every key."""


@dataclass(frozen=True, slots=True)
class Script:
    """A program for the engine and the name under which the engine remembers it."""

    text: str
    digest: str


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def keys(stream_id: StreamId) -> tuple[str, str, str, str]:
    """Lease, events, channel and readers of a stream."""
    place = f"parshall:{{{stream_id}}}"
    return f"{place}:lease", f"{place}:events", channel(stream_id), f"{place}:readers"


def channel(stream_id: StreamId) -> str:
    """Where it is said that there is more of a stream."""
    return f"parshall:{{{stream_id}}}:news"


def inbox(owner: str) -> str:
    """Where a process hears what others ask of it."""
    return f"parshall:{{{owner}}}:inbox"


# The token of a lease is its epoch and its owner: epochs begin anew where an engine has lost its data, owners do not.
_HELD = """
local m = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'closed', 'last', 'size')
if m[1] and (m[3] or m[1] .. ':' .. m[2] ~= ARGV[1]) then return {-1} end
"""

ACQUIRE = _script("""
local owner, at, till, keep = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local m = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'closed', 'last', 'size', 'till')
if m[3] then return {-1} end
if m[6] and tonumber(m[6]) > at and m[2] ~= owner then return {-1} end
local epoch = tonumber(m[1] or '0') + 1
redis.call('HSET', KEYS[1], 'epoch', epoch, 'owner', owner, 'till', till, 'last', m[4] or '0', 'size', m[5] or '0')
redis.call('PEXPIRE', KEYS[1], keep)
redis.call('PEXPIRE', KEYS[2], keep)
return {epoch, tonumber(m[4] or '0'), tonumber(m[5] or '0')}
""")
"""owner, at, till, keep → epoch, last, size.

An owner may take what it holds again, with the next epoch: it would not if the answer had not been lost, and what is
still on its way under the lost lease comes too late.
"""

APPEND = _script(
    _HELD
    + """
local first, events_max, bytes_max, keep = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local mode, epoch, owner, till = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
if not m[1] then
  if mode ~= 'restore' or first ~= 1 then return {-2} end
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'owner', owner, 'till', till)
  redis.call('PEXPIRE', KEYS[1], keep)
  m[4], m[5] = '0', '0'
elseif mode == 'begin' then
  redis.call('DEL', KEYS[2])
  m[4], m[5] = '0', '0'
end
local last, size, count = tonumber(m[4]), tonumber(m[5]), #ARGV - 9
local skip = last - first + 1
if skip < 0 then return {-3, last} end
if skip >= count then return {last} end
for i = skip + 1, count do size = size + #ARGV[9 + i] end
if last + count - skip > events_max or size > bytes_max then return {-4} end
for i = skip + 1, count do redis.call('XADD', KEYS[2], (first + i - 1) .. '-0', 'f', ARGV[9 + i]) end
if last == 0 then redis.call('PEXPIRE', KEYS[2], keep) end
last = last + count - skip
redis.call('HSET', KEYS[1], 'last', last, 'size', size)
redis.call('SPUBLISH', KEYS[3], last)
return {last}
"""
)
"""token, first, events_max, bytes_max, keep, mode, epoch, owner, till, frame… → last.

Frames that are there already are left alone: an append whose answer was lost may be repeated. The mode `begin` replaces
whatever is there, `restore` takes a stream of which the engine holds nothing, `follow` neither.
"""

BEGIN, FOLLOW, RESTORE = "begin", "follow", "restore"

RENEW = _script(_HELD + "if not m[1] then return {-2} end redis.call('HSET', KEYS[1], 'till', ARGV[2]) return {1}")
"""token, till → 1."""

CLOSE = _script(
    """
local m = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'closed')
if not m[1] then return {-2} end
if m[1] .. ':' .. m[2] ~= ARGV[1] then return {-1} end
if not m[3] then
  redis.call('HSET', KEYS[1], 'closed', ARGV[2], 'till', '0')
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
  redis.call('DEL', KEYS[4])
end
redis.call('SPUBLISH', KEYS[3], 'closed')
return {1}
"""
)
"""token, at, keep → 1, also where that lease has closed it before."""

READ = _script("""
local m = redis.call('HMGET', KEYS[1], 'epoch', 'closed', 'last')
if not m[1] then return {-2} end
local after, limit, last = ARGV[1], tonumber(ARGV[2]), tonumber(m[3])
local answer = {m[2] and 2 or 1, last}
if tonumber(after) >= last then return answer end
local found = redis.call('XRANGE', KEYS[2], '(' .. after .. '-0', '+', 'COUNT', limit)
if #found == 0 then return {-2} end
for i = 1, #found do answer[i + 2] = found[i][2][2] end
return answer
""")
"""after, limit → open or closed, last, frame…"""

FORGET = _script("""
local closed = redis.call('HGET', KEYS[1], 'closed')
if not closed or tonumber(closed) >= tonumber(ARGV[1]) then return {0} end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[4])
return {1}
""")
"""closed_before → whether it was there, closed, and is no more."""

HOLDER = _script("""
local m = redis.call('HMGET', KEYS[1], 'owner', 'till', 'closed')
if not m[1] or m[3] or tonumber(m[2]) <= tonumber(ARGV[1]) then return {} end
return {m[1]}
""")
"""at → the owner whose lease runs, if any."""

ATTEND = _script("""
local m = redis.call('HMGET', KEYS[1], 'epoch', 'closed', 'seen')
if not m[1] or m[2] then return {0} end
local process, at, till, offset, keep = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
if till == '0' then
  if redis.call('ZREM', KEYS[4], process) == 1 then redis.call('HSET', KEYS[1], 'left', at) end
else
  redis.call('ZADD', KEYS[4], till, process)
  redis.call('PEXPIRE', KEYS[4], keep)
end
if offset > tonumber(m[3] or '0') then redis.call('HSET', KEYS[1], 'seen', offset) end
return {1}
""")
"""process, at, till, offset, keep → whether the stream is open. A `till` of 0 says that nobody reads there any more."""

AUDIENCE = _script("""
local gone = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', ARGV[1], 'WITHSCORES')
if #gone > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', ARGV[1])
  redis.call('HSET', KEYS[1], 'left', gone[#gone])
end
local m = redis.call('HMGET', KEYS[1], 'left', 'seen')
return {redis.call('ZCARD', KEYS[4]), tonumber(m[1] or '0'), tonumber(m[2] or '0')}
""")
"""at → how many processes read, when the last of them that went did so, and the furthest offset that any has sent."""
