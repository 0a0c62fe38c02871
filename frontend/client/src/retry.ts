// How long to wait before reconnecting, and when to give up.

/** Pauses that double between two bounds, until an outage without progress lasts too long; all in milliseconds. */
export interface Retry {
  readonly pauseMsMin: number;
  readonly pauseMsMax: number;
  readonly outageMsMax: number;
  /** Without a byte for so long a connection counts as dead; the server sends a ping every 15 seconds. */
  readonly silenceMsMax: number;
}

export const RETRY: Retry = { pauseMsMin: 200, pauseMsMax: 5000, outageMsMax: 60_000, silenceMsMax: 45_000 };

/** Milliseconds before attempt 1, 2, …; `chance` in [0, 1) spreads clients that were cut at the same moment. */
export function pause(retry: Retry, attempt: number, atLeast: number, chance: number): number {
  const doubled = retry.pauseMsMin * 2 ** Math.min(attempt - 1, 20);
  return Math.max(Math.min(doubled, retry.pauseMsMax) * (0.5 + chance / 2), atLeast * (1 + chance / 4));
}

/**
 * How often and how long a stream has been cut off since its last event.
 * Time while connected does not count: a model may think for minutes between two events.
 */
export class Outage {
  attempts = 0;
  readonly #retry: Retry;
  #spent = 0;
  #since: number | undefined;

  constructor(retry: Retry) {
    this.#retry = retry;
  }

  /** Milliseconds to wait before the next attempt; undefined once the outage has lasted too long. */
  nextPause(atLeast: number): number | undefined {
    const now = performance.now();
    this.#since ??= now;
    const left = this.#retry.outageMsMax - this.#spent - (now - this.#since);
    if (left <= 0) return undefined;
    this.attempts += 1;
    return Math.min(pause(this.#retry, this.attempts, atLeast, Math.random()), left);
  }

  /** The server answers again; whether it gets further is yet to be seen. */
  connected(): void {
    if (this.#since === undefined) return;
    this.#spent += performance.now() - this.#since;
    this.#since = undefined;
  }

  /** An event came. */
  over(): void {
    [this.attempts, this.#spent, this.#since] = [0, 0, undefined];
  }
}
