// One stream, read to its end across disconnects, restarts and outages, each event exactly once.

import { ApiError, ParshallError, StreamIdMismatch, isRecord } from "./errors.js";
import { CLOSED, Cut, follow, type Course, type ReconnectHook, type Taken } from "./follow.js";
import { isStreamId } from "./ids.js";
import type { Line } from "./line.js";
import type { Receipt, StreamEvent } from "./model.js";
import type { Note } from "./notes.js";
import type { Retry } from "./retry.js";
import type { ServerEvent } from "./sse.js";

const ID_HEADER = "X-Streaming-Session-Id";
/** After these there is nothing to come back for; after others (401, say) there may be. */
const LAST = new Set(["done", "error"]);
const FINAL_STATUSES = new Set([400, 402, 403, 404, 409]);
/** A deployment that restarts or a proxy in front of one: the same request may work in a moment. */
const RETRIED_STATUSES = new Set([502, 503, 504]);

/** How a stream is reached. */
export interface Way {
  /** Ask for it under its id, where it may still have to begin. */
  readonly start?: ((line: Line) => Promise<Response>) | undefined;
  /** Ask for what follows an offset. */
  readonly resume: (after: number, line: Line) => Promise<Response>;
  readonly stop: () => Promise<Receipt | undefined>;
}

/** Where reading begins. */
export interface Place {
  readonly sessionId: string;
  readonly offset: number;
  readonly text: string;
  /** Whether the stream may have begun already. */
  readonly wasAsked: boolean;
}

export interface ReadOptions {
  /** Ends reading, not the stream: iterating then throws the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  readonly onReconnect?: ReconnectHook | undefined;
}

/**
 * The events of one stream, to be iterated once; leaving the loop ends reading, and the server goes on.
 *
 * Iterating throws ApiError where the server refuses, StreamLost where reconnecting was given up, and
 * StreamIdMismatch where another stream answers.
 */
export class Stream implements AsyncIterable<StreamEvent> {
  /** The streaming session id, known before anything is sent. */
  readonly id: string;
  readonly #course: StreamCourse;
  readonly #retry: Retry;
  readonly #options: ReadOptions;
  readonly #over = new AbortController();
  #isRead = false;

  /** Made by `Client.stream` and `Client.resume`. */
  constructor(id: string, way: Way, place: Place, note: Note | undefined, retry: Retry, options: ReadOptions) {
    this.id = id;
    this.#course = new StreamCourse(id, way, place, note);
    this.#retry = retry;
    this.#options = options;
  }

  /** The offset of the last event delivered. */
  get offset(): number {
    return this.#course.offset;
  }

  /** The answer so far, as far as it was read or noted here. */
  get text(): string {
    return this.#course.text;
  }

  /** Every event after `offset`, up to the terminal one. */
  async *[Symbol.asyncIterator](): AsyncGenerator<StreamEvent, void, undefined> {
    if (this.#isRead) throw new ParshallError("A stream is read once; resume it to read it again.");
    this.#isRead = true;
    const { signal, onReconnect } = this.#options;
    const abort = (): void => this.#over.abort(signal?.reason);
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    try {
      yield* follow(this.#course, { retry: this.#retry, signal: this.#over.signal, onReconnect });
    } catch (error) {
      if (isFinal(error)) this.#course.note?.end();
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  /** End reading; the server goes on. */
  close(): void {
    this.#over.abort(CLOSED);
  }

  /** End the stream at the server, where it stands: what was generated is charged. Its reader gets the last event. */
  async stop(): Promise<Receipt | undefined> {
    const receipt = await this.#course.stop();
    this.#course.note?.end();
    return receipt;
  }
}

class StreamCourse implements Course<StreamEvent> {
  readonly id: string;
  readonly note: Note | undefined;
  readonly #way: Way;
  offset: number;
  text: string;
  #sessionId: string;
  #wasAsked: boolean;
  #isVain = false; // whether the connection that is open has brought nothing new
  #back = 0;

  constructor(id: string, way: Way, place: Place, note: Note | undefined) {
    this.id = id;
    this.note = note;
    this.#way = way;
    this.offset = place.offset;
    this.text = place.text;
    this.#sessionId = place.sessionId;
    this.#wasAsked = place.wasAsked;
  }

  open(line: Line): Promise<Response> {
    if (this.#wasAsked || this.#way.start === undefined) {
      return this.#way.resume(this.offset - this.#back, line);
    }
    this.note?.begin();
    return this.#way.start(line);
  }

  /** Another origin's page may be shown no header, and a proxy may drop it: then the first event has the id. */
  opened(response: Response): void {
    this.#isVain = true;
    const named = response.headers.get(ID_HEADER);
    if (named !== null) this.#check(named);
  }

  take(raw: ServerEvent): Taken<StreamEvent> | undefined {
    const offset = offsetOf(raw);
    if (offset > 0 && offset === this.offset && LAST.has(raw.event)) return { isLast: true };
    if (offset <= this.offset) return undefined;
    if (offset !== this.offset + 1) throw new Cut(`events are missing after ${this.offset}`);
    const event = { offset, event: raw.event, data: parsed(raw) } as StreamEvent;
    const isLast = LAST.has(raw.event);
    this.#learn(event);
    this.offset = offset;
    this.#isVain = false;
    if (isLast) this.note?.end();
    else this.note?.follow(this.#sessionId, this.offset, this.text);
    return { event, isLast };
  }

  after(refused: ApiError): "at once" | "later" | "never" {
    if (refused.status === 404 && this.#wasAsked && this.offset === 0 && this.#way.start !== undefined) {
      this.#wasAsked = false; // the request never arrived: the same id again can start only one stream
      return "at once";
    }
    // Being told to slow down does not end a stream that has begun.
    return RETRIED_STATUSES.has(refused.status) || (refused.status === 429 && this.#wasAsked) ? "later" : "never";
  }

  /** Behind the last event nothing comes: after a connection without any, the one before is asked for again. */
  cut(): void {
    this.#back = this.#isVain && this.offset > 0 ? 1 : 0;
    this.#isVain = false;
    this.#wasAsked = true;
  }

  stop(): Promise<Receipt | undefined> {
    return this.#way.stop();
  }

  #learn(event: StreamEvent): void {
    if (event.event === "session") {
      this.#check(event.data.streamingSessionId);
      this.#sessionId = event.data.sessionId;
    } else if (event.event === "chunk") {
      this.text += event.data.text;
    }
  }

  #check(named: unknown): void {
    if (named !== this.id) throw new StreamIdMismatch(this.id, isStreamId(named) ? named : "");
  }
}

function isFinal(error: unknown): boolean {
  return error instanceof StreamIdMismatch || (error instanceof ApiError && FINAL_STATUSES.has(error.status));
}

/** The offset that an event has in the log; zero where it has none, and nothing could make its delivery happen once. */
export function offsetOf(raw: ServerEvent): number {
  return /^[0-9]{1,15}$/.test(raw.id) ? Number(raw.id) : 0;
}

/** The members of an event. Throws Cut where it is damaged. */
export function parsed(raw: ServerEvent): Record<string, unknown> {
  try {
    const members: unknown = JSON.parse(raw.data);
    if (isRecord(members)) return members;
  } catch {
    // damaged, like what is no object
  }
  throw new Cut("an event arrived damaged");
}
