// Reading one course of events to its end, over as many connections as it takes.

import { ApiError, ParshallError, StreamLost, Unreachable, refusal } from "./errors.js";
import { Line, sleep } from "./line.js";
import { Outage, type Retry } from "./retry.js";
import { EventParser, type ServerEvent } from "./sse.js";

/** The reason with which reading is ended without an error. */
export const CLOSED = Symbol("closed");

/** A connection that ended, or cannot be trusted, before the last event. */
export class Cut extends Error {}

/** Called before each pause with the number of the attempt that follows (1, 2, …) and a few words on what broke. */
export type ReconnectHook = (attempt: number, reason: string) => void;

/** What is read: how each connection is opened, and what is made of what comes. */
export interface Course<T> {
  readonly id: string;
  open(line: Line): Promise<Response>;
  /** Look at the head of an answer. Throws what no further attempt can help. */
  opened(response: Response): void;
  /** What is new in it, if anything; an end may come without. Throws Cut where an event is missing or damaged. */
  take(raw: ServerEvent): Taken<T> | undefined;
  /** What may help after a refusal. */
  after(refused: ApiError): "at once" | "later" | "never";
  /** The connection is gone; the next one comes after a pause. */
  cut(): void;
}

export interface Taken<T> {
  readonly event?: T;
  readonly isLast: boolean;
}

export interface Reading {
  readonly retry: Retry;
  readonly signal: AbortSignal;
  readonly onReconnect: ReconnectHook | undefined;
}

/**
 * Every event once and in order, up to the last. Throws ApiError where the server refuses, StreamLost where
 * reconnecting was given up, and the signal's reason where it is aborted, but for CLOSED.
 */
export async function* follow<T>(course: Course<T>, reading: Reading): AsyncGenerator<T, void, undefined> {
  const outage = new Outage(reading.retry);
  let pauseMs = 0;
  for (;;) {
    const parser = new EventParser();
    try {
      yield* connection(course, reading, outage, parser);
      return;
    } catch (error) {
      pauseMs = parser.retryMs ?? pauseMs;
      if (reading.signal.aborted) {
        if (reading.signal.reason === CLOSED) return;
        throw reading.signal.reason;
      }
      const again = error instanceof ApiError ? course.after(error) : wasCut(error) ? "later" : "never";
      if (again === "never") throw error;
      if (again === "later") {
        const told = error instanceof ApiError ? error.retryAfter * 1000 : 0;
        await rest(course, reading, outage, Math.max(told, pauseMs), (error as Error).message);
      }
    }
  }
}

async function* connection<T>(
  course: Course<T>,
  { retry, signal }: Reading,
  outage: Outage,
  parser: EventParser,
): AsyncGenerator<T, void, undefined> {
  const line = new Line(retry.silenceMsMax, signal);
  try {
    signal.throwIfAborted();
    const body = await opened(course, line);
    outage.connected();
    for (;;) {
      for (const raw of await arrived(body, line, parser)) {
        const taken = course.take(raw);
        if (taken === undefined) continue;
        outage.over();
        if (taken.event !== undefined) yield taken.event;
        if (taken.isLast) return;
        signal.throwIfAborted();
      }
    }
  } finally {
    line.close();
  }
}

async function opened<T>(course: Course<T>, line: Line): Promise<ReadableStreamDefaultReader<Uint8Array>> {
  const response = await course.open(line);
  if (!response.ok) throw await read(refusal(response), line);
  const isStream = response.headers.get("Content-Type")?.startsWith("text/event-stream");
  if (!isStream || response.body === null) throw new Cut("something other than the server answered");
  course.opened(response);
  return response.body.getReader();
}

async function arrived(
  body: ReadableStreamDefaultReader<Uint8Array>,
  line: Line,
  parser: EventParser,
): Promise<ServerEvent[]> {
  const part = await read(body.read(), line);
  if (part.done) throw new Cut("the connection ended before the answer did");
  try {
    return parser.feed(part.value);
  } catch (error) {
    throw new Cut((error as Error).message);
  }
}

/** What comes of a body. Throws Cut where the connection broke. */
async function read<T>(coming: Promise<T>, line: Line): Promise<T> {
  try {
    return await line.within(coming);
  } catch (error) {
    if (line.signal.aborted || error instanceof ParshallError) throw error;
    throw new Cut("the connection broke");
  }
}

function wasCut(error: unknown): boolean {
  return error instanceof Cut || error instanceof Unreachable;
}

async function rest<T>(
  course: Course<T>,
  { signal, onReconnect }: Reading,
  outage: Outage,
  atLeast: number,
  reason: string,
): Promise<void> {
  course.cut();
  const milliseconds = outage.nextPause(atLeast);
  if (milliseconds === undefined) {
    const told = `The stream could not be read (${reason}); the server keeps what it answered as ${course.id}.`;
    throw new StreamLost(told, course.id);
  }
  onReconnect?.(outage.attempts, reason);
  try {
    await sleep(milliseconds, signal);
  } catch {
    // aborted: the next connection is not opened, and says so
  }
}
