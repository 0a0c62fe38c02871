// One connection: given up after too long a silence, or when its caller says so.

import { Unreachable } from "./errors.js";

/** What a caller waits for on one connection; closing it ends the request that was made with its signal. */
export class Line {
  readonly #controller = new AbortController();
  readonly #silenceMsMax: number;
  readonly #outer: AbortSignal | undefined;
  readonly #given: Promise<never>;

  /** `silenceMsMax` bounds each wait, in milliseconds; aborting `outer` closes the line with the same reason. */
  constructor(silenceMsMax: number, outer?: AbortSignal) {
    this.#silenceMsMax = silenceMsMax;
    this.#outer = outer;
    const { signal } = this.#controller;
    this.#given = new Promise((_, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
    this.#given.catch(() => undefined); // nobody may be waiting
    outer?.addEventListener("abort", this.#follow);
    if (outer?.aborted) this.#follow();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** What is waited for. Throws Unreachable after too long a silence, and the reason where the line is closed. */
  async within<T>(awaited: Promise<T>): Promise<T> {
    const timer = setTimeout(this.#despair, this.#silenceMsMax);
    try {
      return await Promise.race([awaited, this.#given]);
    } catch (error) {
      if (this.signal.aborted) throw this.signal.reason; // what was waited for may have failed of it in other words
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** End whatever still goes on. */
  close(): void {
    this.#outer?.removeEventListener("abort", this.#follow);
    this.#controller.abort(new Unreachable("The connection was closed."));
  }

  readonly #despair = (): void => {
    const seconds = this.#silenceMsMax / 1000;
    this.#controller.abort(new Unreachable(`Nothing came for ${seconds} seconds; check the connection.`));
  };

  readonly #follow = (): void => this.#controller.abort(this.#outer?.reason);
}

/** Wait. Throws the signal's reason as soon as it is aborted. */
export async function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const aborted = (): void => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", aborted);
      resolve();
    }, milliseconds);
    signal.addEventListener("abort", aborted, { once: true });
  });
}
