// Streaming session ids: made here before anything is sent, so that no answer can lose them.

const STREAM_ID = /^stream-[0-9]{10,13}-[0-9a-f]{8,32}$/;
const ID = /^[A-Za-z0-9_-]{1,128}$/;

/** A fresh streaming session id for the instant `at` (milliseconds since the epoch); its digits are a UUID v7. */
export function newStreamId(at: number = Date.now()): string {
  const bytes = crypto.getRandomValues(new Uint8Array(10));
  const random = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const variant = ((bytes[9] ?? 0) & 0x3f | 0x80).toString(16);
  const time = Math.floor(at).toString(16).padStart(12, "0");
  return `stream-${Math.floor(at / 1000)}-${time}7${random.slice(0, 3)}${variant}${random.slice(3, 17)}`;
}

/** Whether that has the form of a streaming session id. */
export function isStreamId(text: unknown): text is string {
  return typeof text === "string" && STREAM_ID.test(text);
}

/** Whether that can stand as a segment of a path and mean nothing else there. */
export function isId(text: unknown): text is string {
  return typeof text === "string" && ID.test(text);
}
