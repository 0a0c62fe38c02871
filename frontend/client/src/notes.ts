// What is needed to go on with streams after a page was loaded anew, one note a stream in the page's storage.

import { isRecord } from "./errors.js";
import { isId, isStreamId } from "./ids.js";
import type { Question } from "./model.js";

export const NOTE_PREFIX = "parshall:stream:";
/** Longer answers are noted without their text, and read from their beginning again. */
export const NOTE_TEXT_CHARS_MAX = 200_000;
/** Notes are written no more often: an older one only means that a few events are read again. */
export const NOTE_INTERVAL_MS = 200;
/** A question that did not arrive is asked again within this time: nobody expects its answer, or its price, later. */
export const QUESTION_AGE_MS_MAX = 10 * 60 * 1000;
/** Notes that nobody came back for. */
export const NOTE_AGE_MS_MAX = 24 * 60 * 60 * 1000;

/** The part of `Storage` that is used; `localStorage` has it. */
export type KeyStorage = Pick<Storage, "getItem" | "setItem" | "removeItem" | "key" | "length">;

/** A stream that had not ended when it was last noted: `text` is the answer up to and with the event at `offset`. */
export interface Unfinished {
  readonly streamId: string;
  readonly sessionId: string;
  readonly offset: number;
  readonly text: string;
  /** When it was asked for, in milliseconds since the epoch. */
  readonly askedAt: number;
  /** What was asked, as long as no event has shown that the server has it. */
  readonly question?: Question;
}

/** The notes of one deployment. Whatever a storage throws (full, switched off) leaves streams as they are. */
export class Notes {
  readonly #storage: () => KeyStorage | undefined;
  readonly #url: string;

  /** `storage` is asked each time, for even naming it can fail; null keeps nothing. */
  constructor(storage: KeyStorage | null | undefined, url: string) {
    this.#storage = storage === undefined ? pageStorage : () => storage ?? undefined;
    this.#url = url;
  }

  /** All notes, oldest first; those too old to be of use are removed. */
  list(): Unfinished[] {
    const found = this.#keys().map((key) => this.#read(key)).filter((note) => note !== undefined);
    const isOld = (note: Unfinished): boolean => Date.now() - note.askedAt > NOTE_AGE_MS_MAX;
    for (const note of found.filter(isOld)) this.forget(note.streamId);
    return found.filter((note) => !isOld(note)).sort((one, other) => one.askedAt - other.askedAt);
  }

  /** Write one; where that cannot be, what was noted before still stands. */
  keep(note: Unfinished): void {
    const written = JSON.stringify({ ...note, url: this.#url });
    this.#tried((storage) => storage.setItem(NOTE_PREFIX + note.streamId, written));
  }

  forget(streamId: string): void {
    this.#tried((storage) => storage.removeItem(NOTE_PREFIX + streamId));
  }

  /** Forget every stream of this deployment. */
  clear(): void {
    for (const note of this.list()) this.forget(note.streamId);
  }

  #keys(): string[] {
    const keys = this.#tried((storage) => Array.from({ length: storage.length }, (_, index) => storage.key(index)));
    return (keys ?? []).filter((key) => key !== null).filter((key) => key.startsWith(NOTE_PREFIX));
  }

  #read(key: string): Unfinished | undefined {
    const written = this.#tried((storage) => storage.getItem(key)) ?? "";
    try {
      const note: unknown = JSON.parse(written);
      const isOurs = isNote(note) && note.url === this.#url && key === NOTE_PREFIX + note.streamId;
      return isOurs ? unfinished(note) : undefined;
    } catch {
      return undefined;
    }
  }

  #tried<T>(work: (storage: KeyStorage) => T): T | undefined {
    try {
      const storage = this.#storage();
      return storage === undefined ? undefined : work(storage);
    } catch {
      return undefined;
    }
  }
}

/** Keeps one stream's note up with it, at no more than a write each NOTE_INTERVAL_MS. */
export class Note {
  readonly #notes: Notes;
  #newest: Unfinished;
  #writtenAt = -Infinity;
  #isShown: boolean;
  #isOver = false;

  constructor(notes: Notes, first: Unfinished) {
    this.#notes = notes;
    this.#newest = first;
    this.#isShown = first.question === undefined;
  }

  /** Before anything is sent. */
  begin(): void {
    this.#notes.list(); // sweeps
    this.#write();
  }

  /** After an event: the server has the question, so it need not be kept. */
  follow(sessionId: string, offset: number, text: string): void {
    const { streamId, askedAt } = this.#newest;
    const place = text.length > NOTE_TEXT_CHARS_MAX ? { offset: 0, text: "" } : { offset, text };
    this.#newest = { streamId, sessionId, askedAt, ...place };
    const isDue = performance.now() - this.#writtenAt >= NOTE_INTERVAL_MS;
    if (isDue || !this.#isShown) this.#write();
    this.#isShown = true;
  }

  /** The stream has ended, or nobody wants it any more. */
  end(): void {
    this.#isOver = true;
    this.#notes.forget(this.#newest.streamId);
  }

  #write(): void {
    if (this.#isOver) return;
    this.#writtenAt = performance.now();
    this.#notes.keep(this.#newest);
  }
}

function unfinished({ url: _url, ...note }: Unfinished & { url: string }): Unfinished {
  return note;
}

function isNote(note: unknown): note is Unfinished & { url: string } {
  return (
    isRecord(note) &&
    isStreamId(note["streamId"]) &&
    isId(note["sessionId"]) &&
    ["text", "url"].every((name) => typeof note[name] === "string") &&
    ["offset", "askedAt"].every((name) => Number.isSafeInteger(note[name])) &&
    (note["question"] === undefined || isRecord(note["question"]))
  );
}

/** The page's own; outside of pages there is none that outlives them. Throws where it is switched off. */
function pageStorage(): KeyStorage | undefined {
  return "document" in globalThis ? globalThis.localStorage : undefined;
}
