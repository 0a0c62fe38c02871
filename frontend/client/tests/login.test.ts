// Tokens are renewed ahead of their end, once for all who ask, and given up when the server does.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ApiError, Client, MemoryTokens, Unreachable, type Tokens } from "parshall-client";

/** Auth and accounting in few words: refresh tokens work once, access tokens while they are the newest. */
class Deployment {
  refreshes = 0;
  newest = 0;
  isAway = false;
  asked: string[] = [];

  readonly fetch = async (input: string | URL | Request, init?: RequestInit): Promise<Response> => {
    const path = new globalThis.URL(String(input)).pathname;
    this.asked.push(path);
    await new Promise((resolve) => setTimeout(resolve, 2));
    if (path === "/api/auth/login") return this.#pair();
    if (path === "/api/auth/logout") return Response.json({ message: "bye" });
    if (path === "/api/auth/refresh") return this.#refresh(JSON.parse(String(init?.body)) as { refreshToken: string });
    const bearer = new Headers(init?.headers).get("Authorization");
    return bearer === `Bearer a${this.newest}` ? Response.json({ totalCredits: 1 }) : refused("unauthenticated");
  };

  #refresh({ refreshToken }: { refreshToken: string }): Response {
    if (this.isAway) throw new TypeError("fetch failed");
    this.refreshes += 1;
    return refreshToken === `r${this.newest}` ? this.#pair() : refused("refresh_refused");
  }

  #pair(): Response {
    this.newest += 1;
    return Response.json({
      accessToken: `a${this.newest}`,
      refreshToken: `r${this.newest}`,
      expiresIn: 900,
      user: { username: "ada" },
    });
  }
}

function refused(code: string): Response {
  return Response.json({ code, message: "No." }, { status: 401 });
}

class Kept extends MemoryTokens {
  age(over: Partial<Tokens>): void {
    const held = this.get();
    assert.ok(held);
    this.set({ ...held, ...over });
  }
}

async function loggedIn(): Promise<{ deployment: Deployment; tokens: Kept; client: Client }> {
  const [deployment, tokens] = [new Deployment(), new Kept()];
  const client = new Client("http://there", { fetch: deployment.fetch, tokens });
  assert.equal((await client.login("ada", "secret")).username, "ada");
  return { deployment, tokens, client };
}

test("however many ask with a token that is due, it is renewed once", async () => {
  const { deployment, tokens, client } = await loggedIn();
  tokens.age({ refreshAt: 0 });
  const answers = await Promise.all(Array.from({ length: 20 }, () => client.balance()));
  assert.equal(answers.length, 20);
  assert.equal(deployment.refreshes, 1);
});

test("however many are refused with 401, the token is renewed once and each is asked again", async () => {
  const { deployment, tokens, client } = await loggedIn();
  tokens.age({ accessToken: "revoked" });
  await Promise.all(Array.from({ length: 20 }, () => client.balance()));
  assert.equal(deployment.refreshes, 1);
});

test("a token that another tab has renewed is taken from the storage", async () => {
  const { deployment, tokens, client } = await loggedIn();
  tokens.age({ refreshAt: 0 });
  const other = new Client("http://there", { fetch: deployment.fetch, tokens });
  await other.balance();
  await client.balance();
  assert.equal(deployment.refreshes, 1);
});

test("while auth is away the token lives to its end", async () => {
  const { deployment, tokens, client } = await loggedIn();
  deployment.isAway = true;
  tokens.age({ refreshAt: 0 });
  assert.equal((await client.balance()).totalCredits, 1);
  tokens.age({ expiresAt: 0 });
  await assert.rejects(client.balance(), Unreachable);
});

test("a refresh token that is refused is forgotten", async () => {
  const { deployment, tokens, client } = await loggedIn();
  tokens.age({ refreshAt: 0, refreshToken: "used" });
  const isRefusal = (error: unknown): boolean => error instanceof ApiError && error.code === "refresh_refused";
  await assert.rejects(client.balance(), isRefusal);
  assert.equal(tokens.get(), undefined);
  await assert.rejects(client.balance(), (error) => error instanceof ApiError && error.code === "unauthenticated");
  assert.equal(deployment.refreshes, 1);
});

test("logging out tells the server and forgets the tokens, reachable or not", async () => {
  const { deployment, tokens, client } = await loggedIn();
  await client.logout();
  assert.ok(deployment.asked.includes("/api/auth/logout"));
  assert.equal(tokens.get(), undefined);
  await client.logout();
  assert.equal(deployment.asked.filter((path) => path === "/api/auth/logout").length, 1);
});

test("a token that was given is sent as it is and never renewed", async () => {
  const deployment = new Deployment();
  const client = new Client("http://there", { fetch: deployment.fetch, token: "parshall_key" });
  await assert.rejects(client.balance(), (error) => error instanceof ApiError && error.status === 401);
  assert.deepEqual(deployment.asked, ["/api/credits/balance"]);
});
