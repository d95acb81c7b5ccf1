// The way to the proxy: one request, the event stream, and what this proxy's API offers.

const KEY = "revproxy-token";
const SILENCE_MS = 25_000; // the stream says every 15 s that it lives
const LAST_DELAY_MS = 10_000;

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  keep: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

// A refusal, in the proxy's own words where it gave some.
export class Refused extends Error {
  constructor(status, problem = {}) {
    super(inWords(status, problem));
    this.status = status;
    this.field = problem.field ?? "";
    this.problems = problem.problems ?? [];
  }
}

function inWords(status, { detail, title, problems }) {
  if (status === 401) return "The proxy does not know this token.";
  if (status === 403) return "Your token may look, but not do this: its role is too small.";
  if (status === 429) return "Too many wrong tokens were tried. Wait a second, then try again.";
  if (status === 412) return "Somebody else changed the configuration after you looked.";
  if (status === 0) return "The proxy does not answer.";
  const said = detail || title || `The proxy answered ${status}; its log says more.`;
  return problems?.length ? [said, ...problems.map((p) => `${p.path || p.file || ""}: ${p.message}`)].join("\n") : said;
}

// One request; gives {data, etag}. Throws Refused.
export async function ask(method, path, { body, etag, signal } = {}) {
  const headers = { Authorization: `Bearer ${token.get()}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (etag) headers["If-Match"] = etag;
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
  } catch (e) {
    if (signal?.aborted) throw e;
    throw new Refused(0);
  }
  const data = (answer.headers.get("Content-Type") ?? "").includes("json") ? await answer.json().catch(() => ({})) : await answer.text();
  if (!answer.ok) throw new Refused(answer.status, typeof data === "object" ? data : {});
  return { data, etag: answer.headers.get("ETag") };
}

// Reads events until `signal` aborts, connecting again when the stream ends. `onState` hears "live", "waiting" or a Refused.
export async function follow(onEvent, onState, signal) {
  let delay = 500;
  while (!signal.aborted) {
    const round = new AbortController();
    const leave = () => round.abort();
    signal.addEventListener("abort", leave);
    try {
      const answer = await fetch("/api/v1/events", { headers: { Authorization: `Bearer ${token.get()}` }, signal: round.signal, cache: "no-store" });
      if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => ({})));
      onState("live");
      delay = 500;
      await readFrames(answer.body.getReader(), onEvent, leave);
    } catch (e) {
      if (e instanceof Refused && (e.status === 401 || e.status === 403)) {
        onState(e);
        return;
      }
    } finally {
      signal.removeEventListener("abort", leave);
    }
    if (signal.aborted) return;
    onState("waiting");
    await new Promise((wake) => setTimeout(wake, delay));
    delay = Math.min(delay * 2, LAST_DELAY_MS);
  }
}

async function readFrames(reader, onEvent, giveUp) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const silence = setTimeout(giveUp, SILENCE_MS);
    const { value, done } = await reader.read().finally(() => clearTimeout(silence));
    if (done) return;
    text += decoder.decode(value, { stream: true });
    const frames = text.split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      let kind = "";
      let data = "";
      for (const line of frame.split("\n")) {
        if (line.startsWith("event: ")) kind = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (kind && data) onEvent(kind, JSON.parse(data));
    }
  }
}

// What this proxy's API can do, from its own description: `offers(method, path)`, with `takes(…, name)` for a query or body key.
export class Offers {
  constructor(description) {
    this.paths = description?.paths ?? {};
  }

  has(method, path) {
    return Boolean(this.paths[path]?.[method.toLowerCase()]);
  }

  takes(method, path, name) {
    const operation = this.paths[path]?.[method.toLowerCase()];
    const body = operation?.requestBody?.content?.["application/json"]?.schema?.properties ?? {};
    return name in body || (operation?.parameters ?? []).some((p) => p.in === "query" && p.name === name);
  }
}

export const serverPath = (pool, address) => `/api/v1/pools/${encodeURIComponent(pool)}/servers/${encodeURIComponent(address)}`;
