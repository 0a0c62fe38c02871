// Notes in a storage that may be full, switched off, shared, or hold anything.

import assert from "node:assert/strict";
import { test } from "node:test";

import { newStreamId, type KeyStorage, type Unfinished } from "parshall-client";

import { NOTE_AGE_MS_MAX, NOTE_PREFIX, NOTE_TEXT_CHARS_MAX, Note, Notes } from "../dist/notes.js";

const URL = "http://there";

function memory(): KeyStorage & { entries: Map<string, string>; writes: number } {
  const entries = new Map<string, string>();
  return {
    entries,
    writes: 0,
    get length() {
      return entries.size;
    },
    key: (index) => [...entries.keys()][index] ?? null,
    getItem: (key) => entries.get(key) ?? null,
    setItem(key, value) {
      this.writes += 1;
      entries.set(key, value);
    },
    removeItem: (key) => void entries.delete(key),
  };
}

function asked(at = Date.now()): Unfinished {
  const question = { message: "What?" };
  return { streamId: newStreamId(), sessionId: "chat", offset: 0, text: "", askedAt: at, question };
}

test("a note lasts from the question to the end, and gives the question up for the first event", () => {
  const notes = new Notes(memory(), URL);
  const first = asked();
  const note = new Note(notes, first);
  note.begin();
  assert.deepEqual(notes.list(), [first]);
  note.follow("chat", 3, "half \ud83d");
  const { question: _question, ...rest } = first;
  assert.deepEqual(notes.list(), [{ ...rest, offset: 3, text: "half \ud83d" }]);
  note.end();
  assert.deepEqual(notes.list(), []);
  note.follow("chat", 4, "late");
  assert.deepEqual(notes.list(), [], "what has ended stays forgotten");
});

test("a storm of events is few writes, and each note fits its text", () => {
  const storage = memory();
  const note = new Note(new Notes(storage, URL), asked());
  note.begin();
  for (let offset = 1; offset <= 5000; offset += 1) note.follow("chat", offset, "x".repeat(offset));
  assert.ok(storage.writes < 20, `${storage.writes} writes`);
  for (const { offset, text } of new Notes(storage, URL).list()) assert.equal(text.length, offset);
});

test("an answer that is too long to note is read from its beginning again, and written as rarely", () => {
  const storage = memory();
  const note = new Note(new Notes(storage, URL), asked());
  for (let offset = 1; offset <= 1000; offset += 1) note.follow("chat", offset, "x".repeat(NOTE_TEXT_CHARS_MAX + 1));
  assert.ok(storage.writes < 20, `${storage.writes} writes`);
  assert.deepEqual(new Notes(storage, URL).list().map(({ offset, text }) => [offset, text]), [[0, ""]]);
});

test("a storage that throws breaks nothing", () => {
  const full = memory();
  full.setItem = () => {
    throw new DOMException("full", "QuotaExceededError");
  };
  const off = new Proxy(memory(), {
    get() {
      throw new DOMException("off", "SecurityError");
    },
  });
  for (const storage of [full, off, null]) {
    const notes = new Notes(storage, URL);
    const note = new Note(notes, asked());
    note.begin();
    note.follow("chat", 1, "text");
    assert.deepEqual(notes.list(), []);
    note.end();
    notes.clear();
  }
});

test("a full storage keeps the note before, which still fits", () => {
  const storage = memory();
  const notes = new Notes(storage, URL);
  notes.keep({ ...asked(), offset: 2, text: "ab" });
  const [before] = notes.list();
  storage.setItem = () => {
    throw new DOMException("full", "QuotaExceededError");
  };
  assert.equal(before?.text, "ab");
  notes.keep({ ...before, offset: 3, text: "abc" });
  assert.deepEqual(notes.list(), [before]);
});

test("what others wrote is left alone, and what is no note is none", () => {
  const storage = memory();
  const elsewhere = new Notes(storage, "http://elsewhere");
  elsewhere.keep(asked());
  storage.entries.set("theirs", "{}");
  for (const [index, value] of ["", "{", "null", "[]", "{}", '{"streamId":"stream-1"}'].entries()) {
    storage.entries.set(`${NOTE_PREFIX}${index}`, value);
  }
  const size = storage.entries.size;
  const notes = new Notes(storage, URL);
  notes.clear();
  assert.deepEqual(notes.list(), []);
  assert.equal(storage.entries.size, size);
  assert.equal(elsewhere.list().length, 1);
});

test("notes come oldest first, and those that nobody came back for are removed", () => {
  const notes = new Notes(memory(), URL);
  const [old, older, dead] = [asked(), asked(Date.now() - 1000), asked(Date.now() - NOTE_AGE_MS_MAX - 1)];
  for (const note of [old, older, dead]) notes.keep(note);
  assert.deepEqual(notes.list(), [older, old]);
});
