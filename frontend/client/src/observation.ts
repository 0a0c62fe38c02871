// What a supervisor sees of a chat session: the events of its stream, and the notices around them.

import type { ApiError } from "./errors.js";
import { StreamIdMismatch } from "./errors.js";
import { Cut, type Course, type Taken } from "./follow.js";
import { isStreamId } from "./ids.js";
import type { Line } from "./line.js";
import type { ObservedEvent } from "./model.js";
import type { ServerEvent } from "./sse.js";
import { offsetOf, parsed } from "./stream.js";

const NOTICES = new Set(["observer", "history-start", "history-end", "observer-end"]);
const LAST = new Set(["done", "error", "observer-end"]);

/** One stream, as it is shown: across reconnects each event and each notice comes once. */
export class Observation implements Course<ObservedEvent> {
  /** The streaming session id, empty until the first event has come. */
  id = "";
  readonly #ask: (after: number, line: Line) => Promise<Response>;
  readonly #seen = new Set<string>();
  #offset = 0;

  constructor(ask: (after: number, line: Line) => Promise<Response>) {
    this.#ask = ask;
  }

  open(line: Line): Promise<Response> {
    return this.#ask(this.#offset, line);
  }

  opened(): void {
    // The first notice has the id, also where no header may be read.
  }

  take(raw: ServerEvent): Taken<ObservedEvent> | undefined {
    const isNotice = NOTICES.has(raw.event);
    const offset = isNotice ? 0 : offsetOf(raw);
    const event = { offset, event: raw.event, data: parsed(raw) } as ObservedEvent;
    if (event.event === "observer") this.#know(event.data.streamingSessionId);
    if (isNotice ? this.#seen.has(raw.event) : offset <= this.#offset) return undefined;
    if (!isNotice && offset !== this.#offset + 1) throw new Cut(`events are missing after ${this.#offset}`);
    if (isNotice) this.#seen.add(raw.event);
    else this.#offset = offset;
    return { event, isLast: LAST.has(raw.event) };
  }

  after(refused: ApiError): "later" | "never" {
    return [429, 502, 503, 504].includes(refused.status) ? "later" : "never";
  }

  cut(): void {
    // The next connection asks for what follows.
  }

  /** Once this stream has ended another one may run in the chat session: its events are not the rest of this. */
  #know(named: unknown): void {
    const id = isStreamId(named) ? named : "";
    if (this.id !== "" && id !== this.id) throw new StreamIdMismatch(this.id, id);
    this.id = id;
  }
}
