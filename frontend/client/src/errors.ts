// What can be met: a refusal by the server, no server, or a stream that cannot be continued.

const MESSAGE_CHARS_MAX = 500;

/** Base of all that this package throws, but for the reason of an aborted signal; its message is for people. */
export class ParshallError extends Error {
  override readonly name: string = "ParshallError";
}

/** The members of a problem document (RFC 9457) that Parshall sends; a 402 also has the amounts. */
export interface Problem {
  readonly type?: string;
  readonly title?: string;
  readonly status?: number;
  readonly detail?: string;
  readonly message?: string;
  readonly code?: string;
  readonly requestId?: string;
  readonly reason?: string;
  readonly wayOut?: string;
  readonly [member: string]: unknown;
}

/** The server refused. */
export class ApiError extends ParshallError {
  override readonly name = "ApiError";
  /** Stable, in snake_case; `http_<status>` where something in between answered. */
  readonly code: string;
  readonly status: number;
  /** To quote when reporting it; empty where there is none. */
  readonly requestId: string;
  /** Seconds to wait before asking again; zero where the server named none. */
  readonly retryAfter: number;
  /** Why an id was refused (`unknown`, `made_up`, …); undefined elsewhere. */
  readonly reason: string | undefined;
  /** The whole document. */
  readonly problem: Problem;

  constructor(told: {
    status: number;
    code: string;
    message: string;
    requestId?: string;
    retryAfter?: number;
    problem?: Problem;
  }) {
    super(told.message);
    this.status = told.status;
    this.code = told.code;
    this.requestId = told.requestId ?? "";
    this.retryAfter = told.retryAfter ?? 0;
    this.problem = told.problem ?? {};
    this.reason = typeof this.problem.reason === "string" ? this.problem.reason : undefined;
  }
}

/** No answer came: nothing listens there, the connection broke, or the browser let no page of this origin read it. */
export class Unreachable extends ParshallError {
  override readonly name = "Unreachable";
}

/** Reconnecting was given up. The server keeps the answer under `streamId`. */
export class StreamLost extends ParshallError {
  override readonly name = "StreamLost";
  readonly streamId: string;

  constructor(message: string, streamId: string) {
    super(message);
    this.streamId = streamId;
  }
}

/** The server answers under another id than was asked for: what stands in between dropped or changed the header. */
export class StreamIdMismatch extends ParshallError {
  override readonly name = "StreamIdMismatch";
  readonly expected: string;
  /** The id that the answer names; empty where it is no id. */
  readonly received: string;

  constructor(expected: string, received: string) {
    super(
      `The answer is that of ${received || "no id"}, and ${expected} was asked for; ` +
        "let X-Streaming-Session-Id pass every proxy in both directions.",
    );
    this.expected = expected;
    this.received = received;
  }
}

/** The error that an answer states which is no success; one of an intermediary may say nothing but its status. */
export async function refusal(response: Response): Promise<ApiError> {
  const problem = problemIn(await response.text());
  const { status } = response;
  const fallback = `The server answered ${status} without saying why; try again.`;
  return new ApiError({
    status,
    code: text(problem.code) || `http_${status}`,
    message: (text(problem.message) || text(problem.detail) || fallback).slice(0, MESSAGE_CHARS_MAX),
    requestId: text(problem.requestId) || (response.headers.get("X-Request-Id") ?? ""),
    retryAfter: seconds(response.headers.get("Retry-After")),
    problem,
  });
}

/** The error for an answer that Parshall never gives. */
export function foreign(status: number): ApiError {
  const message = "What answers there is not Parshall; check the address.";
  return new ApiError({ status, code: "not_parshall", message });
}

function problemIn(body: string): Problem {
  try {
    const document: unknown = JSON.parse(body);
    return isRecord(document) ? document : {};
  } catch {
    return {};
  }
}

/** Only the delay form (RFC 9110 §10.2.3): that is what Parshall sends. */
function seconds(retryAfter: string | null): number {
  return retryAfter !== null && /^[0-9]{1,6}$/.test(retryAfter) ? Number(retryAfter) : 0;
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

/** Whether that is a JSON object. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
