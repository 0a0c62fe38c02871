// Requests to one deployment: headers, and what an answer must be to be one.

import type { Addresses } from "./addresses.js";
import { ParshallError, Unreachable, foreign, isRecord, refusal } from "./errors.js";
import type { Line } from "./line.js";

/** One request. Paths stand under `/api`; a body is sent as JSON. */
export interface Asked {
  readonly method: "GET" | "POST" | "PATCH" | "DELETE";
  readonly path: string;
  readonly body?: object | undefined;
  readonly headers?: Readonly<Record<string, string>>;
}

/** Sends what it is given; who asks is said by each call. */
export class Wire {
  readonly #addresses: Addresses;
  readonly #fetch: typeof fetch;
  readonly #credentials: RequestCredentials;

  constructor(addresses: Addresses, send: typeof fetch | undefined, credentials: RequestCredentials) {
    this.#addresses = addresses;
    this.#fetch = send ?? ((input, init) => fetch(input, init));
    this.#credentials = credentials;
  }

  /** The answer, whatever its status. Throws Unreachable where there is none. */
  async ask(asked: Asked, bearer: string | undefined, line: Line): Promise<Response> {
    const headers: Record<string, string> = { Accept: "application/json", ...asked.headers };
    if (bearer !== undefined) headers["Authorization"] = `Bearer ${bearer}`;
    if (asked.body !== undefined) headers["Content-Type"] = "application/json";
    const init: RequestInit = {
      method: asked.method,
      headers,
      credentials: this.#credentials,
      cache: "no-store",
      redirect: "error", // nothing of Parshall redirects, and a password goes nowhere else
      signal: line.signal,
    };
    if (asked.body !== undefined) init.body = JSON.stringify(asked.body);
    const url = this.#addresses.serving(asked.path);
    try {
      return await line.within(this.#fetch(`${url}/api${asked.path}`, init));
    } catch (error) {
      if (error instanceof ParshallError || line.signal.aborted) throw error;
      throw new Unreachable(`${url} cannot be reached; check the address, and that it allows this page's origin.`);
    }
  }
}

/** The JSON object that an answer holds. Throws ApiError for a refusal and for what is none of Parshall's. */
export async function objectIn(response: Response, line: Line): Promise<Record<string, unknown>> {
  if (!response.ok) throw await line.within(refusal(response));
  const body = await line.within(response.text());
  try {
    const parsed: unknown = JSON.parse(body);
    if (isRecord(parsed)) return parsed;
  } catch {
    // no JSON: foreign like any other that is no object
  }
  throw foreign(response.status);
}
