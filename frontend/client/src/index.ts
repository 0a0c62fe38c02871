// What the package offers.

export { Client, type ClientOptions, type StreamOptions } from "./client.js";
export { ApiError, ParshallError, StreamIdMismatch, StreamLost, Unreachable, type Problem } from "./errors.js";
export type { ReconnectHook } from "./follow.js";
export { isStreamId, newStreamId } from "./ids.js";
export { MemoryTokens, type Tokens, type TokenStorage } from "./login.js";
export type * from "./model.js";
export type { KeyStorage, Unfinished } from "./notes.js";
export type { Retry } from "./retry.js";
export { EVENT_CHARS_MAX, EventParser, type ServerEvent } from "./sse.js";
export { Stream, type ReadOptions } from "./stream.js";
