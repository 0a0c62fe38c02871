// What a stream makes of connections that end, lie, fall silent, or are those of another stream.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import {
  ApiError,
  Client,
  StreamIdMismatch,
  StreamLost,
  Unreachable,
  newStreamId,
  type StreamEvent,
} from "parshall-client";

import { QUESTION_AGE_MS_MAX } from "../dist/notes.js";

const RETRY = { pauseMsMin: 1, pauseMsMax: 2, outageMsMax: 200, silenceMsMax: 50 };
const SESSION = "chat";
const ID = "$ID";

type Connection = (id: string, init: RequestInit, signal: AbortSignal) => Response | Promise<Response>;

/** A client whose connections are these, one after the other; the last one again and again. */
function scripted(...connections: Connection[]): { client: Client; asked: string[] } {
  const asked: string[] = [];
  let id = "";
  const fetch = async (input: string | URL | Request, init: RequestInit = {}): Promise<Response> => {
    const headers = new Headers(init.headers);
    id ||= headers.get("X-Streaming-Session-Id") ?? "";
    asked.push(`${init.method} ${headers.get("Last-Event-ID") ?? 0}`);
    const connection = connections[Math.min(asked.length, connections.length) - 1];
    assert.ok(connection && init.signal && String(input).startsWith("http://there/api/chat/"));
    return connection(id, init, init.signal);
  };
  return { client: new Client("http://there", { fetch, retry: RETRY, token: "t" }), asked };
}

function answer(text: string, headers: Record<string, string> = {}): Connection {
  const type = { "Content-Type": "text/event-stream; charset=utf-8" };
  return (id) => new Response(text.replaceAll(ID, id), { headers: { ...type, ...headers } });
}

function event(offset: number, name: string, members: object): string {
  return `event: ${name}\ndata: ${JSON.stringify(members)}\nid: ${offset}\n\n`;
}

const OPENED = event(1, "session", { streamingSessionId: ID, sessionId: SESSION });
const A = event(2, "chunk", { text: "a" });
const B = event(3, "chunk", { text: "b" });
const DONE = event(4, "done", { message: "ab" });

async function read(stream: AsyncIterable<StreamEvent>): Promise<string> {
  const names: string[] = [];
  for await (const { offset, event: name } of stream) names.push(`${offset}:${name}`);
  return names.join(" ");
}

const WHOLE = "1:session 2:chunk 3:chunk 4:done";

test("events that come again are left out, and where one is missing it is asked for", async () => {
  const { client, asked } = scripted(answer(OPENED + A), answer(OPENED + A + DONE), answer(A + B + DONE));
  const stream = client.stream(SESSION, "What?");
  assert.equal(await read(stream), WHOLE);
  assert.equal(stream.text, "ab");
  assert.deepEqual(asked, ["POST 0", "GET 2", "GET 1"]);
});

test("reading behind the last event ends at once, and an empty connection before it is no end", async () => {
  const ended = scripted(answer(""), answer(DONE));
  assert.equal(await read(ended.client.resume(newStreamId(), 4)), "");
  assert.deepEqual(ended.asked, ["GET 4", "GET 3"]);
  const cut = scripted(answer(""), answer(A + B), answer(""), answer(B + DONE));
  assert.equal(await read(cut.client.resume(newStreamId(), 2)), "3:chunk 4:done");
  assert.deepEqual(cut.asked, ["GET 2", "GET 1", "GET 3", "GET 2"]);
});

test("a password does not follow a redirect", async () => {
  const asked: string[] = [];
  const server = createServer((request, response) => {
    asked.push(request.url ?? "");
    response.writeHead(307, { Location: "/elsewhere" }).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  await assert.rejects(new Client(`http://127.0.0.1:${address.port}`).login("ada", "secret"), Unreachable);
  server.close();
  assert.deepEqual(asked, ["/api/auth/login"]);
});

test("an event that is damaged, or cut before its blank line, counts as never sent", async () => {
  const damaged = "event: chunk\ndata: {\"text\": \nid: 2\n\n";
  for (const bad of [damaged, "data: []\nid: 2\n\n", A.slice(0, -1)]) {
    const { client, asked } = scripted(answer(OPENED + bad), answer(A + B + DONE));
    assert.equal(await read(client.stream(SESSION, "What?")), WHOLE);
    assert.deepEqual(asked, ["POST 0", "GET 1"]);
  }
  const { client } = scripted(answer("x".repeat(5 * 1024 * 1024)), answer(OPENED + A + B + DONE));
  assert.equal(await read(client.stream(SESSION, "What?")), WHOLE);
});

test("an answer that is no stream is asked past", async () => {
  const page: Connection = () => new Response("<html>", { headers: { "Content-Type": "text/html" } });
  const { client } = scripted(page, answer(OPENED + A + B + DONE));
  assert.equal(await read(client.stream(SESSION, "What?")), WHOLE);
});

test("a request that never arrived is made again under the same id", async () => {
  const broken: Connection = () => Promise.reject(new TypeError("failed"));
  const unknown: Connection = () => Response.json({ code: "not_found", message: "None." }, { status: 404 });
  const { client, asked } = scripted(broken, unknown, answer(OPENED + A + B + DONE));
  assert.equal(await read(client.stream(SESSION, "What?")), WHOLE);
  assert.deepEqual(asked, ["POST 0", "GET 0", "POST 0"]);
});

test("a question that never arrived is asked again after a reload, for some minutes", async () => {
  const unknown: Connection = () => Response.json({ code: "not_found", message: "None." }, { status: 404 });
  const note = { streamId: newStreamId(), sessionId: SESSION, offset: 0, text: "", question: { message: "What?" } };
  const soon = scripted(unknown, answer(OPENED + A + B + DONE));
  assert.equal(await read(soon.client.resume({ ...note, askedAt: Date.now() })), WHOLE);
  assert.deepEqual(soon.asked, ["GET 0", "POST 0"]);
  const late = scripted(unknown);
  const reading = read(late.client.resume({ ...note, askedAt: Date.now() - QUESTION_AGE_MS_MAX }));
  await assert.rejects(reading, (error) => error instanceof ApiError && error.status === 404);
  assert.deepEqual(late.asked, ["GET 0"]);
});

test("a connection that falls silent is left for another", async () => {
  let ended = 0;
  const silent: Connection = (id, _init, signal) => {
    signal.addEventListener("abort", () => (ended += 1));
    const start = (body: ReadableStreamDefaultController): void => {
      body.enqueue(new TextEncoder().encode(OPENED.replace(ID, id)));
    };
    return new Response(new ReadableStream({ start }), { headers: { "Content-Type": "text/event-stream" } });
  };
  const never: Connection = (_id, _init, signal) =>
    new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  const { client } = scripted(silent, never, answer(A + B + DONE));
  assert.equal(await read(client.stream(SESSION, "What?")), WHOLE);
  assert.equal(ended, 1);
});

test("an answer under another id is refused, in the header and in the first event", async () => {
  const other = "stream-1620847252-00000000";
  const inEvent = answer(OPENED.replace(ID, other) + A);
  for (const connection of [answer(OPENED, { "X-Streaming-Session-Id": other }), inEvent]) {
    const { client, asked } = scripted(connection);
    const stream = client.stream(SESSION, "What?");
    const isMismatch = (error: unknown): boolean =>
      error instanceof StreamIdMismatch && error.expected === stream.id && error.received === other;
    await assert.rejects(read(stream), isMismatch);
    assert.equal(asked.length, 1);
  }
});

test("an outage that lasts is given up with the id to come back for", async () => {
  const { client } = scripted(answer(OPENED + A), () => Promise.reject(new TypeError("failed")));
  const stream = client.stream(SESSION, "What?");
  await assert.rejects(read(stream), (error) => error instanceof StreamLost && error.streamId === stream.id);
});

test("being told to slow down ends what has not begun, and not what has", async () => {
  const slow: Connection = () => Response.json({ code: "rate_limited", message: "Slow." }, { status: 429 });
  const refused = scripted(slow).client.stream(SESSION, "What?");
  await assert.rejects(read(refused), (error) => error instanceof ApiError && error.code === "rate_limited");
  const { client } = scripted(answer(OPENED), slow, answer(A + B + DONE));
  assert.equal(await read(client.stream(SESSION, "What?")), WHOLE);
});

test("an aborted signal ends reading with its reason, at once, whatever is waited for", async () => {
  const never: Connection = () => new Promise(() => undefined);
  const down: Connection = () => Response.json({}, { status: 503, headers: { "Retry-After": "9" } });
  for (const connection of [never, down, answer(OPENED + A)]) {
    const { client } = scripted(connection);
    const over = new AbortController();
    const options = { signal: over.signal, onReconnect: () => over.abort("enough") };
    const reading = read(client.stream(SESSION, "What?", options));
    if (connection === never) over.abort("enough");
    await assert.rejects(reading, (error) => error === "enough");
  }
  const { client, asked } = scripted(never);
  await assert.rejects(read(client.stream(SESSION, "What?", { signal: AbortSignal.abort("before") })), /before/);
  assert.deepEqual(asked, []);
});

test("leaving the loop closes the connection, and a closed stream yields nothing", async () => {
  let closed = false;
  const open: Connection = (id, init, signal) => {
    signal.addEventListener("abort", () => (closed = true));
    return answer(OPENED + A)(id, init, signal);
  };
  const { client } = scripted(open);
  const stream = client.stream(SESSION, "What?");
  for await (const _event of stream) break;
  assert.ok(closed);
  await assert.rejects(read(stream), /read once/);
  const another = client.stream(SESSION, "What?");
  another.close();
  assert.equal(await read(another), "");
});

test("a refusal that is no problem document has its status", async () => {
  const { client } = scripted(() => new Response("<html>Forbidden", { status: 403 }));
  const isPlain = (error: unknown): boolean => error instanceof ApiError && error.code === "http_403";
  await assert.rejects(read(client.stream(SESSION, "What?")), isPlain);
});

test("an answer of a stranger is told from one of Parshall", async () => {
  for (const body of ["<html>", "[]", "null"]) {
    const client = new Client("http://there", { fetch: () => Promise.resolve(new Response(body)) });
    await assert.rejects(client.balance(), (error) => error instanceof ApiError && error.code === "not_parshall");
  }
  const nowhere = new Client("http://there", { fetch: () => Promise.reject(new TypeError("failed")) });
  await assert.rejects(nowhere.balance(), Unreachable);
});
