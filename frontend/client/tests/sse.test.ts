// Laws of the parser: however bytes are cut, the same events come.

import assert from "node:assert/strict";
import { test } from "node:test";

import { EVENT_CHARS_MAX, EventParser, type ServerEvent } from "parshall-client";

const NASTY = [
  "\ufeffretry: 1000\nevent: session\ndata: {\"a\":1}\nid: 1\n\n",
  ": ping\n\n",
  "event: chunk\r\ndata: 👩‍👩‍👧‍👦 \u2028\u2029\u0085 é̂中文ع\r\nid: 2\r\n\r\n",
  "event: chunk\rdata: lone\rid: 3\r\r",
  "data: first\ndata:  second\ndata\nignored: yes\nid: 4\n\n",
  "id: 5\n\n",
  "data\r\n\r\n",
  "data: no id of its own\n\n",
  "id: nul\0nul\ndata: 6\n\n",
  "event: done\ndata:{\"end\":true}\nid:7\nretry: no\n\n",
  "event: cut\nid: 8\ndata: never whole",
].join("");
const WHOLE: ServerEvent[] = [
  { id: "1", event: "session", data: '{"a":1}' },
  { id: "2", event: "chunk", data: "👩‍👩‍👧‍👦 \u2028\u2029\u0085 é̂中文ع" },
  { id: "3", event: "chunk", data: "lone" },
  { id: "4", event: "message", data: "first\n second\n" },
  { id: "5", event: "message", data: "" },
  { id: "5", event: "message", data: "no id of its own" },
  { id: "5", event: "message", data: "6" },
  { id: "7", event: "done", data: '{"end":true}' },
];
const BYTES = new TextEncoder().encode(NASTY);

function parse(...chunks: Uint8Array[]): ServerEvent[] {
  const parser = new EventParser();
  return chunks.flatMap((chunk) => parser.feed(chunk));
}

test("every split of a stream in two gives the same events", () => {
  for (let at = 0; at <= BYTES.length; at += 1) {
    assert.deepEqual(parse(BYTES.subarray(0, at), BYTES.subarray(at)), WHOLE, `cut at ${at}`);
  }
});

test("every pair of cuts around a line end or within a character gives the same events", () => {
  for (let at = 0; at < BYTES.length - 2; at += 1) {
    const [first, second, third] = [BYTES.subarray(0, at), BYTES.subarray(at, at + 1), BYTES.subarray(at + 1)];
    assert.deepEqual(parse(first, second, new Uint8Array(), third), WHOLE, `a byte alone at ${at}`);
  }
});

test("bytes that come one by one give the same events", () => {
  assert.deepEqual(parse(...Array.from(BYTES, (byte) => Uint8Array.of(byte))), WHOLE);
});

test("an id counts at the blank line of its event and not before", () => {
  const parser = new EventParser();
  const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
  parser.feed(encode("data: one\nid: 1\n\ndata: two\nid: 2\n"));
  assert.equal(parser.lastId, "1");
  parser.feed(encode("\n"));
  assert.equal(parser.lastId, "2");
});

test("a pause that the server asks for is taken where it is a number", () => {
  const parser = new EventParser();
  parser.feed(BYTES);
  assert.equal(parser.retryMs, 1000);
});

test("an event without an end is refused at its limit, in one line and in many", () => {
  const line = new TextEncoder().encode("x".repeat(64 * 1024));
  for (const end of ["", "\n"]) {
    const parser = new EventParser();
    const piece = Uint8Array.from([...line, ...new TextEncoder().encode(end)]);
    const feed = (): void => {
      for (let fed = 0; fed <= EVENT_CHARS_MAX; fed += line.length) parser.feed(piece);
    };
    assert.throws(feed, RangeError);
  }
});
