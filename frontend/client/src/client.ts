// The client of one deployment: who is logged in, and one method for each thing to ask of it.

import { Addresses } from "./addresses.js";
import { ParshallError } from "./errors.js";
import { follow } from "./follow.js";
import { isId, isStreamId, newStreamId } from "./ids.js";
import { Line } from "./line.js";
import { Login, MemoryTokens, type TokenStorage } from "./login.js";
import type * as model from "./model.js";
import { Note, Notes, QUESTION_AGE_MS_MAX, type KeyStorage, type Unfinished } from "./notes.js";
import { Observation } from "./observation.js";
import { RETRY, type Retry } from "./retry.js";
import { Stream, type ReadOptions, type Way } from "./stream.js";
import { Wire, objectIn, type Asked } from "./wire.js";

const EVENTS = "text/event-stream, application/problem+json";

export interface ClientOptions {
  /** An access token or an API key, for those who do not log in here. */
  readonly token?: string | undefined;
  /** Where the tokens of a login are kept; in memory by default. */
  readonly tokens?: TokenStorage | undefined;
  /**
   * Leave the refresh token to the HttpOnly cookie that a login sets, so that it survives a reload and no script can
   * read it. For pages of the server's own site.
   */
  readonly cookies?: boolean | undefined;
  /** Where unfinished streams are noted; `localStorage` in pages, nowhere elsewhere or where null. */
  readonly storage?: KeyStorage | null | undefined;
  /** Where auth answers, if elsewhere: services are apart, and no proxy makes one address of theirs. */
  readonly authUrl?: string | undefined;
  /** Where accounting answers, likewise. */
  readonly accountingUrl?: string | undefined;
  readonly retry?: Partial<Retry> | undefined;
  /** Sends requests in place of the global `fetch`. */
  readonly fetch?: typeof fetch | undefined;
}

export interface StreamOptions extends Omit<model.Question, "message">, ReadOptions {}

/**
 * Talks to one deployment as one user.
 *
 * Every method throws ApiError where the server refuses and Unreachable where there is none.
 */
export class Client {
  readonly #wire: Wire;
  readonly #login: Login;
  readonly #notes: Notes;
  readonly #retry: Retry;

  /** `url` is where Parshall answers, or chat. Throws ParshallError for an address or a token that cannot be one. */
  constructor(url: string, options: ClientOptions = {}) {
    const cookies = options.cookies ?? false;
    const addresses = new Addresses(url, options.authUrl, options.accountingUrl);
    this.#wire = new Wire(addresses, options.fetch, cookies ? "include" : "omit");
    this.#login = new Login(this.#wire, {
      token: options.token,
      tokens: options.tokens ?? new MemoryTokens(),
      cookies,
      place: addresses.auth,
    });
    this.#notes = new Notes(options.storage, addresses.chat);
    this.#retry = { ...RETRY, ...options.retry };
  }

  // ── Login ──────────────────────────────────────────────────────────────────────────────────────────────────────

  /** Log in by username or e-mail address; later calls act as this user. */
  login(username: string, password: string): Promise<model.Account> {
    return this.#login.login(username, password);
  }

  /** Renew the tokens now. They are renewed ahead of their end by themselves. */
  async refresh(): Promise<void> {
    await this.#login.refresh();
  }

  /** End the session here and at the server, and forget every note of a stream. */
  async logout(): Promise<void> {
    this.#notes.clear();
    await this.#login.logout();
  }

  // ── Credits and models ─────────────────────────────────────────────────────────────────────────────────────────

  balance(): Promise<model.Balance> {
    return this.#send("GET", "/credits/balance");
  }

  async models(): Promise<readonly model.Model[]> {
    return (await this.#send<{ models: readonly model.Model[] }>("GET", "/models")).models;
  }

  // ── Chat sessions ──────────────────────────────────────────────────────────────────────────────────────────────

  sessions(which: { page?: number; limit?: number; query?: string } = {}): Promise<model.ChatSessionPage> {
    const asked = Object.entries(which).filter(([, value]) => value !== undefined);
    const given = asked.map(([name, value]) => [name, String(value)]);
    return this.#send("GET", `/chat/sessions?${new URLSearchParams(given)}`);
  }

  createSession(given: { title?: string; modelId?: string } = {}): Promise<model.ChatSession> {
    return this.#send("POST", "/chat/sessions", given);
  }

  /** A chat session with its messages. */
  session(sessionId: string): Promise<model.ChatSessionRead> {
    return this.#send("GET", `/chat/sessions/${segment(sessionId)}`);
  }

  renameSession(sessionId: string, title: string): Promise<model.ChatSession> {
    return this.#send("PATCH", `/chat/sessions/${segment(sessionId)}`, { title });
  }

  /** Remove a chat session; a stream that runs in it is stopped and charged first. */
  async deleteSession(sessionId: string): Promise<void> {
    await this.#send("DELETE", `/chat/sessions/${segment(sessionId)}`);
  }

  async messages(sessionId: string): Promise<readonly model.Message[]> {
    const path = `/chat/sessions/${segment(sessionId)}/messages`;
    return (await this.#send<{ messages: readonly model.Message[] }>("GET", path)).messages;
  }

  // ── Streams ────────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * Ask, and read the answer as it comes. Nothing is sent before the first event is asked for.
   *
   * The streaming session id is made here: whatever is lost on the way, the same id again can neither start a second
   * generation nor be charged twice.
   */
  stream(sessionId: string, message: string, options: StreamOptions = {}): Stream {
    const { signal: _signal, onReconnect: _onReconnect, ...wishes } = options;
    const id = newStreamId();
    const question = { message, ...wishes };
    const note = new Note(this.#notes, { streamId: id, sessionId, offset: 0, text: "", askedAt: Date.now(), question });
    const place = { sessionId, offset: 0, text: "", wasAsked: false };
    return new Stream(id, this.#way(id, sessionId, question), place, note, this.#retry, options);
  }

  /**
   * Go on reading: what `unfinished` lists, from where its text ends, or any stream, after an offset (0 is all of it;
   * behind the last event nothing comes). The server keeps what it has answered; nothing is generated or charged anew.
   */
  resume(what: string | Unfinished, after = 0, options: ReadOptions = {}): Stream {
    if (!Number.isSafeInteger(after) || after < 0) throw new ParshallError("Offsets count from 0: give one of those.");
    if (typeof what === "string") {
      const place = { sessionId: "", offset: after, text: "", wasAsked: true };
      return new Stream(what, this.#way(what), place, undefined, this.#retry, options);
    }
    const { streamId, sessionId, offset, text, askedAt } = what;
    const question = Date.now() - askedAt < QUESTION_AGE_MS_MAX ? what.question : undefined;
    const place = { sessionId, offset, text, wasAsked: true };
    const way = this.#way(streamId, sessionId, question);
    return new Stream(streamId, way, place, new Note(this.#notes, what), this.#retry, options);
  }

  /** The streams that this page, or one before it, began to read and did not read to their end; oldest first. */
  unfinished(): Unfinished[] {
    return this.#notes.list();
  }

  /** Forget the note of a stream; the stream itself goes on. */
  forget(streamId: string): void {
    this.#notes.forget(streamId);
  }

  /** End a running stream where it stands; what was generated is charged. */
  async stop(streamId: string): Promise<model.Receipt | undefined> {
    const path = `/chat/streams/${named(streamId)}/stop`;
    return (await this.#send<{ receipt?: model.Receipt | null }>("POST", path)).receipt ?? undefined;
  }

  /** How a stream stands. */
  state(streamId: string): Promise<model.StreamState> {
    return this.#send("GET", `/chat/streams/${named(streamId)}`);
  }

  /** The receipt of a stream that has ended; undefined while it runs. */
  async receipt(streamId: string): Promise<model.Receipt | undefined> {
    return (await this.state(streamId)).receipt ?? undefined;
  }

  /** Tell the server what was read; a stream that still runs is stopped. Its own log decides on text and charge. */
  updateStream(
    sessionId: string,
    read: { streamId: string; completeResponse: string; tokensUsed: number },
  ): Promise<model.Acknowledged> {
    const { streamId, ...rest } = read;
    const body = { ...rest, streamingSessionId: streamId };
    return this.#send("POST", `/chat/sessions/${segment(sessionId)}/update-stream`, body);
  }

  /** For supervisors: the stream that runs in a chat session, or ended less than a minute ago, as it goes on. */
  async *observe(sessionId: string, options: ReadOptions = {}): AsyncGenerator<model.ObservedEvent, void, undefined> {
    const path = `/chat/sessions/${segment(sessionId)}/observe`;
    const course = new Observation((after, line) => this.#events({ method: "GET", path }, after, line));
    const { signal = new AbortController().signal, onReconnect } = options;
    yield* follow(course, { retry: this.#retry, signal, onReconnect });
  }

  // ── Requests ───────────────────────────────────────────────────────────────────────────────────────────────────

  #way(id: string, sessionId = "", question?: model.Question): Way {
    const resumed: Asked = { method: "GET", path: `/chat/streams/${named(id)}` };
    const headers = { "X-Streaming-Session-Id": id };
    const start = question && {
      asked: { method: "POST", path: `/chat/sessions/${segment(sessionId)}/stream`, body: question, headers } as const,
    };
    return {
      start: start && ((line) => this.#events(start.asked, 0, line)),
      resume: (after, line) => this.#events(resumed, after, line),
      stop: () => this.stop(id),
    };
  }

  /** An event stream. Without Last-Event-ID it begins at the first event; 0 is nobody's id. */
  #events(asked: Asked, after: number, line: Line): Promise<Response> {
    const position = after > 0 ? { "Last-Event-ID": String(after) } : {};
    return this.#authorized({ ...asked, headers: { ...asked.headers, ...position, Accept: EVENTS } }, line);
  }

  async #send<T>(method: Asked["method"], path: string, body?: object): Promise<T> {
    const line = new Line(this.#retry.silenceMsMax);
    try {
      return (await objectIn(await this.#authorized({ method, path, body }, line), line)) as T;
    } finally {
      line.close();
    }
  }

  /** The answer, asked for again with a fresh token where the server no longer takes this one. */
  async #authorized(asked: Asked, line: Line): Promise<Response> {
    const bearer = await line.within(this.#login.bearer());
    const response = await this.#wire.ask(asked, bearer, line);
    if (response.status !== 401) return response;
    const another = await line.within(this.#login.insteadOf(bearer));
    if (another === undefined) return response;
    await response.body?.cancel().catch(() => undefined); // of no use any more, broken or not
    return this.#wire.ask(asked, another, line);
  }
}

function segment(id: string): string {
  if (!isId(id)) throw new ParshallError("That is no id of a chat session; take the sessionId that the server gave.");
  return id;
}

function named(streamId: string): string {
  if (!isStreamId(streamId)) throw new ParshallError("That is no streaming session id; send it exactly as it came.");
  return streamId;
}
