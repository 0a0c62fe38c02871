// Who is logged in: tokens that are renewed ahead of their end, once however many ask at the same time.

import { ApiError, ParshallError, Unreachable, foreign } from "./errors.js";
import { Line } from "./line.js";
import type { Account } from "./model.js";
import { objectIn, type Wire } from "./wire.js";

const REFRESH_AHEAD_MS = 60_000;
const ANSWER_MS_MAX = 45_000;

/** The tokens of a login; instants are milliseconds since the epoch. */
export interface Tokens {
  readonly accessToken: string;
  /** Absent where it is a cookie that no script can read. */
  readonly refreshToken?: string;
  readonly refreshAt: number;
  readonly expiresAt: number;
}

/** Where tokens are kept. Whoever can read it can act as the user. */
export interface TokenStorage {
  get(): Tokens | undefined | Promise<Tokens | undefined>;
  set(tokens: Tokens | undefined): void | Promise<void>;
}

/** Keeps tokens as long as the page or process lives, where no other script of the origin finds them by name. */
export class MemoryTokens implements TokenStorage {
  #tokens: Tokens | undefined;

  get(): Tokens | undefined {
    return this.#tokens;
  }

  set(tokens: Tokens | undefined): void {
    this.#tokens = tokens;
  }
}

/** How a caller is known: by a token that is given, by tokens of a login, or by those and the cookies of one. */
export interface Credentials {
  readonly token?: string | undefined;
  readonly tokens: TokenStorage;
  readonly cookies: boolean;
  /** Where auth answers. */
  readonly place: string;
}

/** Logs in and out, and has a token at hand that is good. */
export class Login {
  readonly #wire: Wire;
  readonly #token: string | undefined;
  readonly #tokens: TokenStorage;
  readonly #cookies: boolean;
  readonly #place: string;
  #refreshing: Promise<Tokens> | undefined;

  /** Throws ParshallError for a token with characters that no token has. */
  constructor(wire: Wire, credentials: Credentials) {
    if (credentials.token !== undefined && !/^[\x21-\x7e]+$/.test(credentials.token)) {
      throw new ParshallError("The token has characters that no token has; give an access token or an API key.");
    }
    this.#wire = wire;
    this.#token = credentials.token;
    this.#tokens = credentials.tokens;
    this.#cookies = credentials.cookies;
    this.#place = credentials.place;
  }

  /** Log in by username or e-mail address. */
  async login(username: string, password: string): Promise<Account> {
    await this.#refreshing?.catch(() => undefined); // what it brings would replace these
    const answer = await this.#ask("/auth/login", { username, password });
    await this.#keep(answer);
    return answer["user"] as Account;
  }

  /** End the session. The tokens here are forgotten even where the server cannot be told. */
  async logout(): Promise<void> {
    if (this.#token !== undefined) return;
    await this.#refreshing?.catch(() => undefined);
    const held = await this.#tokens.get();
    await this.#tokens.set(undefined);
    if (!this.#canRefresh(held)) return;
    try {
      await this.#ask("/auth/logout", this.#presented(held));
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 401)) throw error; // that session was over already
    }
  }

  /** A token that is good; undefined where nobody is logged in. */
  async bearer(): Promise<string | undefined> {
    if (this.#token !== undefined) return this.#token;
    const held = await this.#tokens.get();
    if (held === undefined) return this.#cookies ? (await this.refresh()).accessToken : undefined;
    if (Date.now() < held.refreshAt || !this.#canRefresh(held)) return held.accessToken;
    try {
      return (await this.refresh(held.accessToken)).accessToken;
    } catch (error) {
      // Renewed ahead: while the old one lives, auth may be away.
      if (Date.now() < held.expiresAt && isPassing(error)) return held.accessToken;
      throw error;
    }
  }

  /** Another token than one that was refused with 401; undefined where there can be none. */
  async insteadOf(refused: string | undefined): Promise<string | undefined> {
    if (this.#token !== undefined || refused === undefined) return undefined;
    const held = await this.#tokens.get();
    if (held === undefined ? !this.#cookies : !this.#canRefresh(held)) return undefined;
    return (await this.refresh(refused)).accessToken;
  }

  /** New tokens, unless `stale` has been replaced already. All who ask meanwhile share one exchange. */
  refresh(stale?: string): Promise<Tokens> {
    this.#refreshing ??= this.#alone(() => this.#exchange(stale)).finally(() => {
      this.#refreshing = undefined;
    });
    return this.#refreshing;
  }

  /** A refresh token works once, and a second use ends the session: so tabs take turns, where they can. */
  async #alone(exchange: () => Promise<Tokens>): Promise<Tokens> {
    const locks = (globalThis as { navigator?: { locks?: LockManager } }).navigator?.locks;
    return locks === undefined ? exchange() : locks.request(`parshall:refresh:${this.#place}`, exchange);
  }

  async #exchange(stale: string | undefined): Promise<Tokens> {
    const held = await this.#tokens.get();
    const isReplaced = held !== undefined && stale !== undefined && held.accessToken !== stale;
    if (isReplaced && Date.now() < held.refreshAt) return held;
    if (!this.#canRefresh(held)) throw new ParshallError("Nobody is logged in; call login first.");
    try {
      return await this.#keep(await this.#ask("/auth/refresh", this.#presented(held)));
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) await this.#tokens.set(undefined);
      throw error;
    }
  }

  #canRefresh(held: Tokens | undefined): boolean {
    return this.#cookies || held?.refreshToken !== undefined;
  }

  #presented(held: Tokens | undefined): object | undefined {
    return held?.refreshToken === undefined ? undefined : { refreshToken: held.refreshToken };
  }

  async #keep(answer: Record<string, unknown>): Promise<Tokens> {
    const { accessToken, refreshToken, expiresIn } = answer;
    if (typeof accessToken !== "string") throw foreign(200);
    const life = typeof expiresIn === "number" ? expiresIn * 1000 : Number.MAX_SAFE_INTEGER / 2;
    const tokens: Tokens = {
      accessToken,
      ...(typeof refreshToken === "string" && !this.#cookies ? { refreshToken } : {}),
      refreshAt: Date.now() + Math.max(life - REFRESH_AHEAD_MS, (life * 2) / 3),
      expiresAt: Date.now() + life,
    };
    await this.#tokens.set(tokens);
    return tokens;
  }

  async #ask(path: string, body?: object): Promise<Record<string, unknown>> {
    const line = new Line(ANSWER_MS_MAX);
    try {
      return await objectIn(await this.#wire.ask({ method: "POST", path, body }, undefined, line), line);
    } finally {
      line.close();
    }
  }
}

function isPassing(error: unknown): boolean {
  return error instanceof Unreachable || (error instanceof ApiError && (error.status >= 500 || error.status === 429));
}
