// The page: asks for the token, then shows the proxy as it is now and the handles to change it.

import { html, render, useEffect, useReducer, useRef, useState } from "./vendor/htm-preact.js";
import { Refused, ask, token } from "./api.js";
import { Cache } from "./cache.js";
import { Changes, inOneLine } from "./changes.js";
import { Chart } from "./charts.js";
import { duration, milliseconds, number } from "./figures.js";
import { Differences, Mirrors } from "./file.js";
import { Lookup } from "./lookup.js";
import { Icon, Pool } from "./pools.js";
import { Proposal, send } from "./proposal.js";
import { Renewals } from "./renewal.js";
import { Shifts, Sites } from "./sites.js";
import { Proxy } from "./state.js";

const RELOAD = "/api/v1/config/reload";
const SPOKEN_MS = 5000;

function App() {
  const [isIn, enter] = useState(Boolean(token.get()));
  const [problem, tell] = useState("");
  const leave = (why = "") => {
    token.forget();
    tell(why);
    enter(false);
  };
  return isIn ? html`<${Dashboard} leave=${leave} />` : html`<${Login} problem=${problem} enter=${() => enter(true)} />`;
}

function Login({ problem, enter }) {
  const [said, say] = useState(problem);
  const field = useRef();
  useEffect(() => field.current.focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    token.keep(field.current.value.trim());
    try {
      await ask("GET", "/api/v1/status");
      enter();
    } catch (e) {
      if (!(e instanceof Refused)) throw e;
      token.forget();
      say(e.message);
      field.current.select();
    }
  };
  return html`<main class="login">
    <form onSubmit=${submit}>
      <h1>${Mark} revproxy</h1>
      <label>Token <input ref=${field} type="password" required autocomplete="current-password" aria-describedby="token-help" /></label>
      <p class="message" role="alert">${said}</p>
      <p class="muted" id="token-help">It is in the file <code>admin.token</code> of the state directory. This tab keeps it until it is closed.</p>
      <button type="submit" class="main">Open</button>
    </form>
  </main>`;
}

const Mark = html`<svg class="logo" viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8" />
  <path d="M6 16h6c5 0 4-7 9-7h4M12 16c5 0 4 7 9 7h4" /><circle cx="25.5" cy="9" r="2.6" /><circle cx="25.5" cy="23" r="2.6" /></svg>`;

function Dashboard({ leave }) {
  const [, redraw] = useReducer((n) => n + 1, 0);
  const [proposal, setProposal] = useState(null);
  const [spoken, speak] = useSpeech();
  const proxy = useRef();
  if (!proxy.current) proxy.current = new Proxy(redraw, leave, speak);
  useEffect(() => {
    proxy.current.start();
    return () => proxy.current.stop();
  }, []);
  const now = proxy.current;

  const close = () => {
    const origin = proposal?.origin;
    setProposal(null);
    if (origin?.isConnected) origin.focus();
  };
  const update = (changes) => setProposal((p) => p && { ...p, message: "", ...changes });
  const propose = (wanted) => {
    const server = now.pools?.find((p) => p.name === wanted.pool)?.servers.find((s) => s.address === wanted.address);
    if (server && wanted.wish?.weight === server.weight.effective) return setProposal(null);
    setProposal((before) => {
      // Moving the slider further is still the same change: seen at the same revision, for the same reason.
      const goesOn = before && before.keepFocus && wanted.keepFocus && before.path === wanted.path;
      const kept = goesOn ? before : { id: (before?.id ?? 0) + 1, etag: now.etag, reason: "", confirmWithin: "", abortIf: "" };
      return { ...kept, message: "", isConflict: false, isSending: false, now: false, ...wanted };
    });
  };
  const apply = async () => {
    update({ isSending: true });
    try {
      const answer = await send(proposal, proposal.etag);
      speak(inWords(answer.applied ?? answer));
      await now.refresh();
      close();
    } catch (e) {
      if (!(e instanceof Refused)) throw e;
      if (e.status === 401) return leave(e.message);
      if (e.status !== 412) return update({ isSending: false, message: e.message });
      await now.refresh();
      const last = now.changes.at(-1);
      const theirs = last ? ` Revision ${last.revision} by ${last.by}: ${inOneLine(last.change)}.` : "";
      update({ isSending: false, isConflict: true, etag: now.etag, message: `${e.message}${theirs} Nothing of yours was applied yet.` });
    }
  };
  const onKeyDown = (event) => {
    if (!proposal) return;
    if (event.key === "Escape") close();
    if (event.key === "Enter" && event.target.matches("[data-step]")) {
      event.preventDefault();
      document.getElementById("reason").focus();
    }
  };

  return html`<div class=${`page ${proposal ? "deciding" : ""} ${now.connection !== "live" && now.heard ? "old" : ""}`} onKeyDown=${onKeyDown}>
    <${Top} now=${now} leave=${() => leave()} propose=${propose} />
    <main>
      ${now.failure && html`<p class="failure" role="alert">${now.failure}</p>`}
      <${Charts} series=${now.series} />
      <div class="columns">
        <div class="pools">
          ${now.pools?.map((pool) => html`<${Pool} key=${pool.name} pool=${pool} traffic=${now.traffic} leaving=${now.leaving} pending=${proposal} propose=${propose} />`)}
          ${now.pools && html`<${Lookup} offers=${now.offers} />`}
          ${(now.differences || now.mirrors.length > 0) &&
          html`<div class="pair">
            ${now.differences && html`<${Differences} differences=${now.differences} offers=${now.offers} propose=${propose} />`}
            ${now.mirrors.length > 0 && html`<${Mirrors} mirrors=${now.mirrors} />`}
          </div>`}
          ${now.pools?.length === 0 && html`<p class="card empty">The configuration has no pools.</p>`}
        </div>
        <div class="side">
          <${Changes} changes=${now.changes} offers=${now.offers} propose=${propose} />
          ${now.sites && html`<${Sites} sites=${now.sites} offers=${now.offers} exposure=${now.exposure} pending=${proposal} propose=${propose} />`}
          ${now.shifts.length > 0 && html`<${Shifts} shifts=${now.shifts} offers=${now.offers} propose=${propose} />`}
          ${(now.stats?.cache ?? now.status?.cache) && html`<${Cache} totals=${now.stats?.cache ?? now.status.cache} offers=${now.offers} />`}
          ${now.status?.certificates?.length > 0 && html`<${Certificates} certificates=${now.status.certificates} />`}
          ${now.status && html`<${Workers} status=${now.status} rotation=${now.rotation} traffic=${now.traffic} />`}
          ${now.status && html`<${Listeners} status=${now.status} stats=${now.stats} traffic=${now.traffic} />`}
        </div>
      </div>
    </main>
    <p class="toast" role="status" aria-live="polite">${spoken}</p>
    ${proposal && html`<${Proposal} proposal=${proposal} offers=${now.offers} update=${update} apply=${apply} cancel=${close} />`}
  </div>`;
}

// What became of a change that was sent.
function inWords(answer) {
  if (answer.steps) return `Shift ${answer.id} is ${answer.state}: ${answer.to} at ${answer.share} %.`;
  const { acked, total } = answer.workers ?? {};
  const notes = [...(answer.superseded ?? []), ...(answer.notes ?? [])].map((note) => ` ${note}.`);
  return `Done: revision ${answer.revision}${total === undefined ? "" : `, in force in ${acked} of ${total} workers`}.${notes.join("")}`;
}

// What just happened, shown for a moment and read out; cleared so that the same words can be said again.
function useSpeech() {
  const [text, set] = useState("");
  const timer = useRef();
  const speak = (words) => {
    set(words);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => set(""), SPOKEN_MS);
  };
  return [text, speak];
}

function verdict(now) {
  if (now.connection !== "live" && now.heard) return ["bad", `No answer from the proxy since ${now.heard.toLocaleTimeString()}: what you see is old`];
  if (!now.pools || !now.status) return ["idle", "Looking…"];
  const servers = now.pools.flatMap((p) => p.servers);
  const down = servers.filter((s) => s.ejected || s.health.status === "down").length;
  const aside = servers.filter((s) => s.state !== "ready").length;
  const working = now.status.workers.filter((w) => w.state === "serving").length;
  const idle = now.status.workers.length - working;
  if (!working) return ["bad", "No worker serves"];
  const words = [];
  if (down) words.push(`${down} of ${servers.length} servers down`);
  if (idle) words.push(`${idle} of ${now.status.workers.length} workers not serving`);
  if (aside) words.push(`${aside} out of rotation`);
  if (words.length) return [down || idle ? "bad" : "warn", words.join(" · ")];
  const fine = servers.filter((s) => s.health.status === "up").length;
  if (!fine) return ["idle", servers.length === 1 ? "The server is not checked" : "No server is checked"];
  if (fine < servers.length) return ["ok", `${fine} of ${servers.length} servers ${fine === 1 ? "is" : "are"} fine, ${servers.length - fine} not checked`];
  return ["ok", servers.length === 1 ? "The server is fine" : `All ${servers.length} servers are fine`];
}

function Top({ now, leave, propose }) {
  const [tone, words] = verdict(now);
  const reload = (event) =>
    propose({
      title: "Reload the configuration file",
      text: "What did not change keeps its connections; a broken file is refused.",
      method: "POST",
      path: RELOAD,
      operation: ["POST", RELOAD],
      body: {},
      apply: "Reload",
      origin: event.currentTarget,
    });
  return html`<header class="top">
    <h1>${Mark} revproxy</h1>
    <p class=${`verdict ${tone}`}><${Icon} tone=${tone} />${words}</p>
    <p class="facts muted">
      ${now.status && html`<span>revision <b>${now.status.revision}</b></span><span>up ${duration(now.status.uptime_seconds)}</span><span>${now.status.version}</span>`}
      <span class=${`link-state ${now.connection}`}>${now.connection === "live" ? "live" : "connecting…"}</span>
    </p>
    <div class="acts">
      ${now.offers.has("POST", RELOAD) && html`<button type="button" class="quiet" onClick=${reload}>Reload file</button>`}
      <button type="button" class="quiet" onClick=${leave}>Forget token</button>
    </div>
  </header>`;
}

const perSecond = (n) => number(n, 0);
const inPercent = (n) => (n === null || n === undefined ? "–" : `${n < 10 && n > 0 ? n.toFixed(1) : n.toFixed(0)} %`);

function Charts({ series }) {
  const now = series.now;
  const { at } = series;
  return html`<div class="charts">
    <${Chart} title="Requests per second" now=${now ? perSecond(now.requests) : "–"} note=${now?.errors ? `${number(now.errors, 1)} failed` : ""} at=${at} format=${perSecond}
      floor=${10} lines=${[{ label: "all", color: "accent", values: series.requests, fill: true }, { label: "failed", color: "bad", values: series.errors, fill: true }]} />
    <${Chart} title="Errors" now=${now ? inPercent(now.ratio) : "–"} note="answers 5xx" at=${at} format=${inPercent}
      floor=${2} lines=${[{ label: "errors", color: "bad", values: series.ratio, fill: true }]} />
    <${Chart} title="Latency p95" now=${milliseconds(now?.p95)} note=${now ? `p50 ${milliseconds(now.p50)}` : ""} at=${at} format=${milliseconds}
      floor=${1} lines=${[{ label: "p95", color: "warn", values: series.p95 }, { label: "p50", color: "accent", values: series.p50 }]} />
    <${Chart} title="Connections" now=${now ? number(now.connections) : "–"} note="from clients, open" at=${at} format=${perSecond}
      floor=${10} lines=${[{ label: "open", color: "accent", values: series.connections, fill: true }]} />
  </div>`;
}

function Workers({ status, rotation, traffic }) {
  return html`<section class="card" aria-labelledby="workers">
    <header><h2 id="workers">Workers</h2></header>
    <${Renewals} upgrade=${status.upgrade} rotation=${rotation} />
    <table class="plain">
      <thead><tr><th scope="col">Worker</th><th scope="col" class="right">Open</th><th scope="col" class="right">Per s</th><th scope="col" class="right">Lag</th><th scope="col" class="right">Rev.</th></tr></thead>
      <tbody>${status.workers.map(
        (w) => html`<tr key=${w.slot}>
          <th scope="row"><span class="worker"><${Icon} tone=${w.state === "serving" ? "ok" : w.state === "lagging" || w.state === "gone" ? "bad" : "warn"} />
            ${w.state} <span class="muted">${w.pid}</span></span></th>
          <td class="right number">${number(w.connections)}</td><td class="right number">${number(traffic.rate(`worker ${w.pid}`), 1)}</td>
          <td class=${`right number ${w.lag_seconds > 0.1 ? "warn" : ""}`}>${milliseconds(1000 * w.lag_seconds)}</td>
          <td class=${`right number ${w.revision < status.revision ? "warn" : "muted"}`}>${w.revision}</td></tr>`,
      )}</tbody>
    </table>
  </section>`;
}

function Listeners({ status, stats, traffic }) {
  const live = new Map((stats?.listeners ?? []).map((l) => [l.address, l.connections]));
  return html`<section class="card" aria-labelledby="listeners">
    <header><h2 id="listeners">Listeners</h2></header>
    <table class="plain">
      <thead><tr><th scope="col">Address</th><th scope="col" class="right">Open</th><th scope="col" class="right">New per s</th></tr></thead>
      <tbody>${status.listeners.map(
        (l) => html`<tr key=${l.address}><th scope="row"><span class="address">${l.address}</span> <span class="badge">${l.kind}</span></th>
          <td class="right number">${number(live.get(l.address) ?? l.connections)}</td>
          <td class="right number">${number(traffic.rate(`listener ${l.address}`), 1)}</td></tr>`,
      )}</tbody>
    </table>
  </section>`;
}

// The first to end comes first.
function Certificates({ certificates }) {
  const inDays = (c) => (Date.parse(c.not_after) - Date.now()) / 86_400_000;
  const sorted = [...certificates].sort((a, b) => inDays(a) - inDays(b));
  const tone = (c) => (c.placeholder || inDays(c) < 3 ? "bad" : inDays(c) < 14 ? "warn" : "ok");
  const end = (c) => (inDays(c) < 0 ? "ended" : inDays(c) < 2 ? `${Math.floor(24 * inDays(c))} hours left` : `${Math.floor(inDays(c))} days left`);
  return html`<section class="card" aria-labelledby="certificates">
    <header><h2 id="certificates">Certificates</h2></header>
    <ul class="certificates">
      ${sorted.map(
        (c) => html`<li key=${`${c.source} ${c.used_by}`}>
          <span><span class="address">${c.used_by.join(", ") || c.names.join(", ")}</span> <span class="muted">${c.placeholder ? "placeholder, not signed yet" : c.issuer}</span></span>
          <span class=${tone(c)} title=${c.not_after}><${Icon} tone=${tone(c)} /> ${end(c)}</span></li>`,
      )}
    </ul>
  </section>`;
}

render(html`<${App} />`, document.getElementById("app"));
