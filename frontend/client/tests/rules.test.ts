// Rules without a network: ids, pauses, addresses and tokens that cannot be.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Client, ParshallError, isStreamId, newStreamId } from "parshall-client";

import { Outage, RETRY, pause } from "../dist/retry.js";

test("a proposed id is one that the server takes, a UUID of version 7, and never the same twice", () => {
  const ids = Array.from({ length: 1000 }, () => newStreamId(1_620_847_252_345));
  assert.equal(new Set(ids).size, 1000);
  const digits = (1_620_847_252_345).toString(16).padStart(12, "0");
  const form = new RegExp(`^stream-1620847252-${digits}7[0-9a-f]{3}[89ab][0-9a-f]{15}$`);
  for (const id of ids) assert.match(id, form);
});

test("what is no id is told from one", () => {
  assert.ok(isStreamId(newStreamId()));
  for (const not of ["", "stream-1", `${newStreamId()}\n`, `${newStreamId()}, ${newStreamId()}`, null, 7]) {
    assert.ok(!isStreamId(not), String(not));
  }
});

test("pauses double from one bound to the other, are spread, and are never shorter than was asked for", () => {
  for (const [attempt, least, most] of [[1, 100, 200], [2, 200, 400], [5, 1600, 3200], [50, 2500, 5000]] as const) {
    assert.deepEqual([pause(RETRY, attempt, 0, 0), pause(RETRY, attempt, 0, 1)], [least, most]);
  }
  assert.equal(pause(RETRY, 1, 7000, 0), 7000);
});

test("an outage without progress is given up, and an event ends it", () => {
  const outage = new Outage({ ...RETRY, outageMsMax: 5 });
  assert.ok(outage.nextPause(0) !== undefined);
  const until = performance.now() + 10;
  while (performance.now() < until);
  assert.equal(outage.nextPause(0), undefined);
  outage.over();
  assert.ok(outage.nextPause(0) !== undefined);
  assert.equal(outage.attempts, 1);
});

test("an address or a token that cannot be one is refused before anything is sent", () => {
  for (const url of ["", "localhost:8000", "ftp://there", "http://user:password@there"]) {
    assert.throws(() => new Client(url), ParshallError, url);
    assert.throws(() => new Client("http://there", { authUrl: url }), ParshallError, url);
    assert.throws(() => new Client("http://there", { accountingUrl: url }), ParshallError, url);
  }
  for (const token of ["", "two words", "line\nend", "tökén"]) {
    assert.throws(() => new Client("http://there", { token }), ParshallError, token);
  }
});

test("where services are apart each is asked for what it answers, and auth alone sees refresh tokens", async () => {
  const [asked, shown]: [string[], string[]] = [[], []];
  const answer = { accessToken: "a", refreshToken: "r", expiresIn: 900, user: {}, models: [], sessions: [] };
  const send: typeof fetch = (input, init) => {
    asked.push(String(input));
    if (String(init?.body).includes("refreshToken")) shown.push(new URL(String(input)).host);
    return Promise.resolve(Response.json(answer));
  };
  const places = { authUrl: "http://auth/", accountingUrl: "http://accounting/at" };
  const client = new Client("http://chat", { ...places, fetch: send });
  await client.login("ada", "secret");
  await client.balance();
  await client.models();
  await client.sessions();
  await client.refresh();
  await client.logout();
  assert.deepEqual(asked, [
    "http://auth/api/auth/login",
    "http://accounting/at/api/credits/balance",
    "http://chat/api/models",
    "http://chat/api/chat/sessions?",
    "http://auth/api/auth/refresh",
    "http://auth/api/auth/logout",
  ]);
  assert.deepEqual(shown, ["auth", "auth"]);
});

test("an id leads to no other path than its own", async () => {
  const client = new Client("http://there", { fetch: () => Promise.reject(new Error("asked")) });
  for (const id of ["", "..", "a/b", "%2e%2e", "a?b", "\ud800"]) {
    await assert.rejects(client.deleteSession(id), /no id of a chat session/, id);
    await assert.rejects(client.stop(id), /no streaming session id/, id);
  }
  assert.throws(() => client.resume(newStreamId(), -1), ParshallError);
});
