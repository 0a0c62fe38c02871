// An incremental parser of `text/event-stream` bytes, as WHATWG HTML §9.2.6 describes it.

/** No event may be longer, counted in UTF-16 units of its lines. */
export const EVENT_CHARS_MAX = 4 * 1024 * 1024;

/** One dispatched event; `id` is the last event id in force, empty where none was given. */
export interface ServerEvent {
  readonly id: string;
  readonly event: string;
  readonly data: string;
}

/** Takes bytes however they are cut, within a character too, and gives the events that they complete. */
export class EventParser {
  /** The id to resume after: that of the last event dispatched, not of one that was cut off in the middle. */
  lastId = "";
  /** What the server last asked for as a pause before reconnecting. */
  retryMs: number | undefined;
  readonly #decoder = new TextDecoder(); // strips a byte order mark, and makes U+FFFD of what is no UTF-8
  #rest = "";
  #afterCr = false;
  #eventChars = 0;
  #id = "";
  #event = "";
  #lines: string[] = [];

  /** Take the next bytes. Throws RangeError on an event over EVENT_CHARS_MAX. */
  feed(chunk: Uint8Array): ServerEvent[] {
    const events: ServerEvent[] = [];
    // Only these three end a line: U+2028 and its like are text.
    const lines = (this.#rest + this.#withoutLf(this.#decoder.decode(chunk, { stream: true }))).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      const event = this.#line(line);
      if (event !== undefined) events.push(event);
    }
    this.#limit(this.#eventChars + this.#rest.length);
    return events;
  }

  /** The text without the LF that belongs to a CR at the end of the text before it. */
  #withoutLf(text: string): string {
    if (text === "") return text;
    const whole = this.#afterCr && text.startsWith("\n") ? text.slice(1) : text;
    this.#afterCr = text.endsWith("\r");
    return whole;
  }

  #line(line: string): ServerEvent | undefined {
    if (line === "") return this.#dispatch();
    this.#eventChars += line.length;
    this.#limit(this.#eventChars);
    const colon = line.indexOf(":");
    if (colon < 0) this.#field(line, "");
    else this.#field(line.slice(0, colon), line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1));
    return undefined;
  }

  #field(name: string, value: string): void {
    if (name === "data") this.#lines.push(value);
    else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]{1,9}$/.test(value)) this.retryMs = Number(value);
  }

  #dispatch(): ServerEvent | undefined {
    const [lines, event] = [this.#lines, this.#event];
    [this.#lines, this.#event, this.#eventChars] = [[], "", 0];
    this.lastId = this.#id;
    if (lines.length === 0) return undefined;
    return { id: this.lastId, event: event || "message", data: lines.join("\n") };
  }

  #limit(chars: number): void {
    if (chars > EVENT_CHARS_MAX) throw new RangeError("an event of the stream is longer than any event may be");
  }
}
