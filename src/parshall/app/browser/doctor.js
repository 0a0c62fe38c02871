// The half of the doctor that only a browser can do: what a script may send and read, with and without credentials.

const ID = "X-Streaming-Session-Id";
const ID_FORM = /^stream-[0-9]{10,13}-[0-9a-f]{8,32}$/;
const EVENT_SOURCE_MILLISECONDS_MAX = 10000;
const HELD_BACK = 0.5;
const PACE_MILLISECONDS_MIN = 400;
const findings = [];

function tell(check, verdict, evidence) {
  findings.push({ check, verdict, evidence });
  const row = document.getElementById("rows").insertRow();
  for (const text of [verdict, check, evidence]) row.insertCell().textContent = text;
  row.cells[0].className = verdict === "not checked" ? "open" : verdict;
}

const judge = (check, good, seen, otherwise) => tell(check, good ? "ok" : "fault", good ? seen : otherwise);

class Deployment {
  constructor(address) {
    this.address = address.replace(/\/+$/, "");
    this.token = null;
  }

  send(method, path, { body, headers = {}, credentials = "omit", authorization = true } = {}) {
    const sent = { ...headers };
    if (authorization && this.token) sent.Authorization = `Bearer ${this.token}`;
    if (body) sent["Content-Type"] = "application/json";
    return fetch(this.address + path, {
      method, credentials, headers: sent, body: body && JSON.stringify(body), cache: "no-store",
    });
  }

  async json(method, path, options) {
    const response = await this.send(method, path, options);
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.message || `status ${response.status}`);
    return answer;
  }
}

// The events of a response as they come: {id, event, data, at}.
async function eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const events = [];
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return events;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const field = (name) => (frame.match(new RegExp(`^${name}: ?(.*)$`, "m")) || [])[1];
      if (field("data") !== undefined) {
        events.push({ id: field("id"), event: field("event"), data: JSON.parse(field("data")), at: performance.now() });
      }
    }
  }
}

function judgeId(response, events) {
  const read = response.headers.get(ID);
  const told = events[0]?.data.streamingSessionId;
  const lost = response.type === "cors" ? "it is not exposed to this origin, or removed" : "it is removed";
  judge("Id header readable", read !== null, `${ID}: ${read}`, `headers.get("${ID}") is null: ${lost} on the way`);
  if (read !== null) {
    judge("Id header equals the first event's", read === told, "header and first event agree", `${read}, but ${told}`);
    judge("Form of the id", ID_FORM.test(read), "as documented", `${read} is no id`);
  }
  const shown = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
  document.getElementById("readable").textContent = shown;
  document.getElementById("headers").hidden = false;
  return told;
}

function judgeArrival(events, state) {
  const server = Date.parse(state.endedAt) - Date.parse(state.createdAt);
  const spread = events.at(-1).at - events[0].at;
  const seen = `the server took ${server} ms, its ${events.length} events arrived within ${Math.round(spread)} ms`;
  if (!(server >= PACE_MILLISECONDS_MIN)) tell("Events as they come", "not checked", `${seen}: too fast to measure`);
  else judge("Events as they come", spread >= server * HELD_BACK, seen, `${seen}: they were held back`);
}

async function attempt(check, work) {
  try {
    await work();
  } catch (error) {
    // fetch tells a script nothing but "failed": the console has the reason.
    tell(check, "fault", `${error.message}; the console of the browser says why`);
  }
}

async function stream(deployment, message) {
  const titled = { body: { title: "doctor in the browser" } };
  const { sessionId } = await deployment.json("POST", "/api/chat/sessions", titled);
  const body = { message, maxTokens: 64 };
  const response = await deployment.send("POST", `/api/chat/sessions/${sessionId}/stream`, { body });
  if (!response.ok) throw new Error((await response.json()).message);
  const events = await eventsOf(response);
  const seen = `fetch gave ${events.length} events, the response is of type "${response.type}"`;
  tell("Stream without credentials", "ok", seen);
  const id = judgeId(response, events);
  const state = await deployment.json("GET", `/api/chat/streams/${id}`, { headers: { Accept: "application/json" } });
  judgeArrival(events, state);
  return { sessionId, id, events };
}

async function resume(deployment, { id, events }) {
  const after = events[Math.floor(events.length / 2)].id;
  const headers = { "Last-Event-ID": after };
  const first = (await eventsOf(await deployment.send("GET", `/api/chat/streams/${id}`, { headers })))[0]?.id;
  judge("Last-Event-ID", first === String(Number(after) + 1), `after ${after} the stream goes on with ${first}`,
    `after ${after} the stream begins with ${first}: the header does not arrive`);
}

async function propose(deployment, { sessionId }, message) {
  const proposed = `stream-${Math.floor(Date.now() / 1000)}-${crypto.getRandomValues(new Uint32Array(4))
    .reduce((text, part) => text + part.toString(16).padStart(8, "0"), "")}`;
  const response = await deployment.send("POST", `/api/chat/sessions/${sessionId}/stream`,
    { body: { message, maxTokens: 2 }, headers: { [ID]: proposed } });
  const told = (await eventsOf(response))[0]?.data.streamingSessionId;
  judge("Proposed id", told === proposed, `the stream has the proposed id ${proposed}`,
    `proposed ${proposed}, got ${told}`);
}

async function withCredentials(deployment, { id }) {
  const response = await deployment.send("GET", `/api/chat/streams/${id}`, { credentials: "include" });
  const events = await eventsOf(response);
  judge("Stream with credentials", events.length > 0, `fetch with credentials: "include" gave ${events.length} events`,
    `status ${response.status}`);
}

async function cookie(deployment, { id }) {
  const bare = { credentials: "include", authorization: false };
  const response = await deployment.send("GET", `/api/chat/streams/${id}`, bare);
  await response.body?.cancel();
  const good = response.ok;
  tell("Cookie of the login", good ? "ok" : "warning", good
    ? "the cookie alone is enough to read a stream"
    : `status ${response.status}: SameSite keeps the cookie from pages of other sites; use Authorization`);
  return good;
}

function eventSource(deployment, { id, events }) {
  return new Promise((resolve) => {
    const source = new EventSource(`${deployment.address}/api/chat/streams/${id}?after=0`, { withCredentials: true });
    let count = 0;
    const end = (verdict, evidence) => {
      clearTimeout(timer);
      source.close();
      tell("EventSource", verdict, evidence);
      resolve();
    };
    const timer = setTimeout(() => end("fault", `${count} events, and no end`), EVENT_SOURCE_MILLISECONDS_MAX);
    for (const name of new Set(events.map((event) => event.event))) {
      source.addEventListener(name, (event) => {
        if (!(event instanceof MessageEvent)) return;
        count += 1;
        if (event.lastEventId === events.at(-1).id) end("ok", `all ${count} events, by the cookie alone`);
      });
    }
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) end("fault", "refused; the console of the browser says why");
    };
  });
}

async function acknowledge(deployment, { sessionId, id, events }) {
  const text = events.filter((event) => event.event === "chunk").map((event) => event.data.text).join("");
  const path = `/api/chat/sessions/${sessionId}/update-stream`;
  const body = { completeResponse: text, streamingSessionId: id, tokensUsed: 0 };
  const done = await deployment.json("POST", path, { body });
  judge("Update with the right id", done.matches === true, "the server holds the text that arrived",
    "the texts differ");
  const refused = await deployment.send("POST", path, { body: { ...body, streamingSessionId: "undefined" } });
  const { reason } = await refused.json();
  judge("Update with a wrong id", refused.status === 400 && reason === "not_received", `status 400, reason ${reason}`,
    `status ${refused.status}, reason ${reason}`);
}

async function examine(address, username, password, message) {
  const deployment = new Deployment(address);
  const body = { username, password };
  deployment.token = (await deployment.json("POST", "/api/auth/login", { body, authorization: false })).accessToken;
  const taken = await stream(deployment, message);
  await attempt("Last-Event-ID", () => resume(deployment, taken));
  await attempt("Proposed id", () => propose(deployment, taken, message));
  await attempt("Update", () => acknowledge(deployment, taken));
  await attempt("Login with credentials", async () => {
    await deployment.json("POST", "/api/auth/login", { body, authorization: false, credentials: "include" });
    tell("Login with credentials", "ok", 'fetch with credentials: "include" may read the answer');
  });
  await attempt("Stream with credentials", () => withCredentials(deployment, taken));
  let hasCookie = false;
  await attempt("Cookie of the login", async () => { hasCookie = await cookie(deployment, taken); });
  if (hasCookie) await eventSource(deployment, taken);
  else tell("EventSource", "not checked", "it can send no Authorization, and there is no cookie");
  await attempt("Cleaning up", () => deployment.send("DELETE", `/api/chat/sessions/${taken.sessionId}`));
}

async function run(event) {
  event.preventDefault();
  const given = (name) => document.getElementById(name).value;
  const button = document.querySelector("button");
  const verdict = document.getElementById("verdict");
  findings.length = 0;
  document.getElementById("rows").replaceChildren();
  document.getElementById("table").hidden = false;
  button.disabled = true;
  verdict.textContent = "Examining…";
  const all = ["api", "username", "password", "message"].map(given);
  await attempt("Login and stream", () => examine(...all));
  const faults = findings.filter((finding) => finding.verdict === "fault").length;
  verdict.textContent = faults === 0 ? "No fault." : `${faults} fault${faults > 1 ? "s" : ""} found.`;
  button.disabled = false;
}

document.getElementById("origin").textContent = location.origin;
document.getElementById("api").value = location.origin;
document.getElementById("form").addEventListener("submit", run);
