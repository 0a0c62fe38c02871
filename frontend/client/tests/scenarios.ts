// What clients do with a real server, in Node and in pages: tests/system drives these through all sorts of networks.

import {
  ApiError,
  Client,
  MemoryTokens,
  Stream,
  StreamIdMismatch,
  type ClientOptions,
  type KeyStorage,
  type ObservedEvent,
  type StreamEvent,
  type StreamOptions,
  type Tokens,
  type Unfinished,
} from "parshall-client";

/** Whatever cannot be read at all is to be told before the test is given up. */
const RETRY = { outageMsMax: 40_000 };

/** What a scenario is given: where, as whom, in which chat session, and what to ask. */
export interface Given {
  readonly url: string;
  readonly authUrl?: string;
  readonly accountingUrl?: string;
  readonly token: string;
  readonly session: string;
  readonly message: string;
  readonly username: string;
  readonly password: string;
  readonly options?: StreamOptions;
}

/** Shows the answer so far to whoever watches. */
export type Show = (text: string) => void;

/** What came of a stream. */
export interface Read {
  readonly id: string;
  readonly text: string;
  readonly offsets: readonly number[];
  readonly last: StreamEvent | undefined;
  readonly reconnects: readonly string[];
  readonly unfinished: readonly Unfinished[];
}

/** A storage for where there is none; real ones are those of pages. */
export function storage(): KeyStorage {
  const entries = new Map<string, string>();
  return {
    get length() {
      return entries.size;
    },
    key: (index) => [...entries.keys()][index] ?? null,
    getItem: (key) => entries.get(key) ?? null,
    setItem: (key, value) => void entries.set(key, value),
    removeItem: (key) => void entries.delete(key),
  };
}

/** Where it asks: one address, or that of each service. */
function placed(given: Given, options: ClientOptions): Client {
  const { url, authUrl, accountingUrl } = given;
  return new Client(url, { authUrl, accountingUrl, ...options });
}

function clientOf(given: Given, options: ClientOptions = {}): Client {
  const here = "document" in globalThis ? {} : { storage: storage() };
  return placed(given, { token: given.token, retry: RETRY, ...here, ...options });
}

/** Read to the end; `before` is text that was read earlier. */
async function readAll(client: Client, stream: Stream, reconnects: string[], show: Show, before = ""): Promise<Read> {
  const offsets: number[] = [];
  let [text, last]: [string, StreamEvent | undefined] = [before, undefined];
  for await (const event of stream) {
    offsets.push(event.offset);
    last = event;
    if (event.event === "chunk") text += event.data.text;
    show(text);
    if (stream.text !== text) throw new Error("The stream has another text than its events.");
  }
  return { id: stream.id, text, offsets, last, reconnects, unfinished: client.unfinished() };
}

function asking(client: Client, given: Given, show: Show, options: StreamOptions = {}): Promise<Read> {
  const reconnects: string[] = [];
  const onReconnect = (_attempt: number, reason: string): void => void reconnects.push(reason);
  const stream = client.stream(given.session, given.message, { ...given.options, ...options, onReconnect });
  return readAll(client, stream, reconnects, show);
}

/** Ask and read to the end. */
export function ask(given: Given, show: Show): Promise<Read> {
  return asking(clientOf(given), given, show);
}

/** What this place has not read to its end, read to its end. */
export async function goOn(given: Given, show: Show): Promise<Read> {
  const client = clientOf(given);
  return goOnWith(client, show);
}

async function goOnWith(client: Client, show: Show): Promise<Read> {
  const [note] = client.unfinished();
  if (note === undefined) throw new Error("Nothing is unfinished.");
  const reconnects: string[] = [];
  const onReconnect = (_attempt: number, reason: string): void => void reconnects.push(reason);
  return readAll(client, client.resume(note, 0, { onReconnect }), reconnects, show, note.text);
}

/** Abort in mid-stream, then go on from the note. */
export async function abort(given: Given, show: Show): Promise<{ name: string; note: Unfinished; rest: Read }> {
  const [client, over] = [clientOf(given), new AbortController()];
  const until = (text: string): void => void (text.length > 100 && over.abort());
  const error: unknown = await asking(client, given, until, { signal: over.signal }).catch((thrown: unknown) => thrown);
  const [note] = client.unfinished();
  if (!(error instanceof DOMException) || note === undefined) throw new Error(`Not aborted: ${String(error)}`);
  return { name: error.name, note, rest: await goOnWith(client, show) };
}

/** Stop the stream at the server while it is read. */
export async function stop(given: Given): Promise<{ read: Read; receipt: unknown; stored: unknown }> {
  const client = clientOf(given);
  const stream = client.stream(given.session, given.message);
  let stopping: Promise<unknown> | undefined;
  const read = await readAll(client, stream, [], (text) => {
    if (text.length > 100) stopping ??= stream.stop();
  });
  return { read, receipt: await stopping, stored: await client.receipt(stream.id) };
}

/** Read a stream, and resume it behind each of some offsets and behind its last event; the texts of the rests. */
export async function resume(
  given: Given & { after: readonly number[] },
  show: Show,
): Promise<{ id: string; rests: string[] }> {
  const client = clientOf(given);
  const { id, offsets } = await asking(client, given, show);
  const rests = [...given.after, offsets.length].map((after) => readAll(client, client.resume(id, after), [], show));
  return { id, rests: (await Promise.all(rests)).map(({ text }) => text) };
}

/** Tokens that are due as soon as they are there, and whose access token is lost once. */
class Restless extends MemoryTokens {
  renewed = 0;

  override set(tokens: Tokens | undefined): void {
    this.renewed += 1;
    const hurried = tokens && { ...tokens, refreshAt: Date.now() + 50 };
    super.set(hurried && (this.renewed === 2 ? { ...hurried, accessToken: "lost" } : hurried));
  }
}

/** Read a stream while tokens keep running out, and others ask beside it. */
export async function restless(given: Given, show: Show): Promise<{ read: Read; renewed: number; balances: number }> {
  const tokens = new Restless();
  const client = placed(given, { tokens, storage: storage() });
  await client.login(given.username, given.password);
  let [balances, isOver] = [0, false];
  const others = async (): Promise<void> => {
    while (!isOver) {
      balances += (await Promise.all(Array.from({ length: 4 }, () => client.balance()))).length;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  };
  const beside = others();
  const read = await asking(client, given, show).finally(() => (isOver = true));
  await beside;
  await client.refresh();
  await client.logout();
  return { read, renewed: tokens.renewed, balances };
}

interface Told {
  readonly name: string;
  readonly status: number;
  readonly code: string;
  readonly reason: string | null;
  readonly hasRequestId: boolean;
  readonly message: string;
  readonly members: readonly string[];
}

async function told(failing: Promise<unknown>): Promise<Told | string> {
  const error: unknown = await failing.then(() => "no error", (thrown: unknown) => thrown);
  if (!(error instanceof ApiError)) return String(error);
  const { name, status, code, reason = null, message, problem, requestId } = error;
  return { name, status, code, reason, message, hasRequestId: requestId !== "", members: Object.keys(problem) };
}

/** Each refusal as it is told. `poor` has no credits, and `busy` is a chat session in which a stream runs. */
export async function refusals(
  given: Given & { poor: { token: string; session: string }; busy: string },
): Promise<Record<string, Told | string | number>> {
  const client = clientOf(given);
  const poor = clientOf({ ...given, ...given.poor });
  const unknown = "stream-1620847252-0123456789abcdef0123456789abcdef";
  const over = { completeResponse: "", tokensUsed: 0 };
  const ofStream = (asked: Client, session: string): Promise<unknown> =>
    asking(asked, { ...given, session }, () => undefined);
  return {
    poor: await told(ofStream(poor, given.poor.session)),
    foreign: await told(ofStream(poor, given.session)),
    busy: await told(ofStream(client, given.busy)),
    unknown: await told(client.state(unknown)),
    resumed: await told(readAll(client, client.resume(unknown), [], () => undefined)),
    mismatch: await told(client.updateStream(given.session, { streamId: unknown, ...over })),
    stranger: await told(placed(given, { token: "nobody" }).balance()),
    password: await told(placed(given, {}).login(given.username, "wrong")),
    invalid: await told(client.renameSession(given.session, "x".repeat(200))),
    unfinished: client.unfinished().length + poor.unfinished().length,
  };
}

/** Everything that is no stream, once. */
export async function housekeeping(given: Given, show: Show): Promise<Record<string, unknown>> {
  const client = clientOf(given);
  const made = await client.createSession({ title: "first" });
  const renamed = await client.renameSession(made.sessionId, "second");
  const read = await asking(client, { ...given, session: made.sessionId }, show);
  const whole = { streamId: read.id, completeResponse: read.text, tokensUsed: 1 };
  const acknowledged = await client.updateStream(made.sessionId, whole);
  const result = {
    titles: [made.title, renamed.title],
    models: (await client.models()).map((model) => model.id),
    available: (await client.balance()).availableCredits,
    listed: (await client.sessions({ query: "second", limit: 5 })).sessions.map((session) => session.sessionId),
    session: made.sessionId,
    active: (await client.session(made.sessionId)).metadata.activeStreamingSession,
    messages: (await client.messages(made.sessionId)).map((message) => message.content),
    receipt: await client.receipt(read.id),
    state: (await client.state(read.id)).state,
    comparison: acknowledged.comparison,
    read,
  };
  await client.deleteSession(made.sessionId);
  return { ...result, gone: await told(client.session(made.sessionId)) };
}

/** A supervisor watches a stream that another reads. */
export async function observe(
  given: Given & { supervisor: string },
  show: Show,
): Promise<{ read: Read; names: string[]; text: string; reconnects: number }> {
  let begun = (): void => undefined;
  const running = new Promise<void>((resolve) => (begun = resolve));
  const reading = asking(clientOf(given), given, (text) => {
    show(text);
    begun();
  });
  await running;
  const seen: ObservedEvent[] = [];
  let reconnects = 0;
  const observer = clientOf({ ...given, token: given.supervisor });
  for await (const event of observer.observe(given.session, { onReconnect: () => (reconnects += 1) })) seen.push(event);
  const text = seen.map((event) => (event.event === "chunk" ? event.data.text : "")).join("");
  return { read: await reading, names: seen.map((event) => event.event), text, reconnects };
}

/** What the answer of an ask shows to this page: the id in its header, if any, and what the client makes of it. */
export async function ids(given: Given, show: Show): Promise<{ header: string | null; read: Read; session: unknown }> {
  let header: string | null = null;
  const watched: typeof fetch = async (input, init) => {
    const answer = await fetch(input, init);
    header = answer.headers.get("X-Streaming-Session-Id");
    return answer;
  };
  const client = clientOf(given, { fetch: watched });
  const read = await asking(client, given, show);
  for await (const event of client.resume(read.id)) {
    if (event.event === "session") return { header, read, session: event.data.streamingSessionId };
  }
  throw new Error("The stream has no first event.");
}

/** The ids of an answer under another id than was asked for. */
export async function mismatched(
  given: Given,
): Promise<{ expected: string; received: string; id: string; text: string }> {
  const client = clientOf(given);
  const stream = client.stream(given.session, given.message);
  const error: unknown = await readAll(client, stream, [], () => undefined).catch((thrown: unknown) => thrown);
  if (!(error instanceof StreamIdMismatch)) throw new Error(`No mismatch: ${String(error)}`);
  const rest = await readAll(client, client.resume(error.received), [], () => undefined);
  return { expected: error.expected, received: error.received, id: stream.id, text: rest.text };
}

/** Log in, in a page of the same origin, so that the session outlives the page. */
export async function enter(given: Given): Promise<string> {
  return (await placed(given, { cookies: true }).login(given.username, given.password)).username;
}

/** Ask with nothing but the cookies of a login from before. */
export function askByCookie(given: Given, show: Show): Promise<Read> {
  return asking(placed(given, { cookies: true }), given, show);
}

/** Go on with nothing but the cookies of a login from before. */
export function goOnByCookie(given: Given, show: Show): Promise<Read> {
  return goOnWith(placed(given, { cookies: true }), show);
}

/** Many tabs in one: each renews the one session that they share by its cookie. */
export async function renewTogether(given: Given): Promise<number> {
  const tabs = Array.from({ length: 6 }, () => placed(given, { cookies: true }));
  const balances = await Promise.all(tabs.map((tab) => tab.balance()));
  return balances.filter((balance) => balance.totalCredits > 0).length;
}

/** End the session of the cookies; what is told afterwards. */
export async function leave(given: Given): Promise<Told | string> {
  await placed(given, { cookies: true }).logout();
  return told(placed(given, { cookies: true }).balance());
}
