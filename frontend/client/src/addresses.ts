// Where each service of a deployment answers: all at one address, or each at its own.

import { ParshallError } from "./errors.js";

/** What auth and accounting answer of all that is asked here; the rest is chat's (docs/PROTOCOL.md). */
const AUTH_PATHS = "/auth/";
const ACCOUNTING_PATHS = "/credits/";

/** The address of each service, without a slash at the end. */
export class Addresses {
  readonly chat: string;
  readonly auth: string;
  readonly accounting: string;

  /** `chat` stands for every service that is not named. Throws ParshallError for what cannot be an address. */
  constructor(chat: string, auth = chat, accounting = chat) {
    [this.chat, this.auth, this.accounting] = [address(chat), address(auth), address(accounting)];
  }

  /** The address of the service that answers that path below `/api`. */
  serving(path: string): string {
    if (path.startsWith(AUTH_PATHS)) return this.auth;
    return path.startsWith(ACCOUNTING_PATHS) ? this.accounting : this.chat;
  }
}

function address(url: string): string {
  let parsed: URL | undefined;
  try {
    parsed = new URL(url);
  } catch {
    // told below
  }
  const isOne = parsed !== undefined && /^https?:$/.test(parsed.protocol) && !parsed.username && !parsed.password;
  if (!isOne) throw new ParshallError(`${url} is no address of a server; give one such as http://127.0.0.1:8000.`);
  return `${parsed?.origin}${parsed?.pathname}`.replace(/\/+$/, "");
}
