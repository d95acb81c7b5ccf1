// Questions to the proxy: where would this request go, and what became of that one?

import { html, useState } from "./vendor/htm-preact.js";
import { Refused, ask } from "./api.js";
import { milliseconds } from "./figures.js";

const METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

// One answer at a time, or what is wrong with the question.
function useAnswer() {
  const [state, set] = useState({});
  const put = async (path) => {
    set({ isAsking: true });
    try {
      set({ answer: (await ask("GET", path)).data });
    } catch (e) {
      if (!(e instanceof Refused)) throw e;
      set({ problem: e.message });
    }
  };
  return [state, put, () => set({})];
}

const field = (form, name) => form.elements.namedItem(name).value.trim();

export function Lookup({ offers }) {
  return html`<section class="card lookup" aria-labelledby="lookup">
    <header><h2 id="lookup">Ask the proxy</h2></header>
    ${offers.has("GET", "/api/v1/explain") && html`<${Explain} />`}
    ${offers.has("GET", "/api/v1/why/{id}") && html`<${Why} />`}
  </section>`;
}

function Explain() {
  const [state, put, forget] = useAnswer();
  const submit = (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    const query = new URLSearchParams({ method: field(form, "method"), url: field(form, "url") });
    if (field(form, "client")) query.set("client", field(form, "client"));
    for (const line of field(form, "headers").split("\n")) if (line.trim()) query.append("header", line.trim());
    put(`/api/v1/explain?${query}`);
  };
  const { answer, problem, isAsking } = state;
  return html`<details>
    <summary>Where would this request go?</summary>
    <form onSubmit=${submit} aria-label="Explain a request">
      <div class="fields">
        <label>Method <select name="method">${METHODS.map((m) => html`<option value=${m}>${m}</option>`)}</select></label>
        <label class="wide">Whole URL <input name="url" required maxlength="8192" type="url" autocomplete="off" spellcheck="false" /></label>
        <label>Client IP <input name="client" maxlength="45" placeholder="127.0.0.1" autocomplete="off" spellcheck="false" /></label>
        <label class="whole">Header fields, one a line <textarea name="headers" rows="2" placeholder="X-Beta: 1" autocomplete="off" spellcheck="false"></textarea></label>
        <div class="buttons"><button type="submit" class="main" disabled=${isAsking}>Explain</button></div>
      </div>
    </form>
    <div class="answer" role="status">
      ${problem && html`<p class="bad">${problem}</p>`}
      ${answer && html`<p class="outcome"><b>${outcome(answer)}</b> <button type="button" class="link" onClick=${forget}>clear</button></p>
        <ol class="steps">${answer.steps.map((step) => html`<li>${step}</li>`)}</ol>
        ${answer.request && html`<dl class="fields-sent">${answer.request.headers.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`}`}
    </div>
  </details>`;
}

function outcome(answer) {
  if (answer.server) return `${answer.server} in ${answer.pool}`;
  if (answer.response?.status) return `answered here: ${answer.response.status}`;
  return "no server";
}

function Why() {
  const [latest, list] = useAnswer();
  const [state, put] = useAnswer();
  const [id, setId] = useState("");
  const tell = (wanted) => {
    setId(wanted);
    put(`/api/v1/why/${encodeURIComponent(wanted)}`);
  };
  const submit = (event) => {
    event.preventDefault();
    tell(id.trim());
  };
  const rows = latest.answer?.latest;
  return html`<details onToggle=${(e) => e.currentTarget.open && list("/api/v1/why")}>
    <summary>What happened to this request?</summary>
    <form onSubmit=${submit} aria-label="Story of a request">
      <div class="fields">
        <label class="wide">Id, from X-Request-Id of its answer <input required maxlength="200" autocomplete="off" spellcheck="false" value=${id}
          onInput=${(e) => setId(e.currentTarget.value)} /></label>
        <div class="buttons"><button type="submit" class="main" disabled=${state.isAsking}>Tell</button></div>
      </div>
    </form>
    ${latest.problem && html`<p class="answer bad">${latest.problem}</p>`}
    ${rows && html`<p class="answer muted">${rows.length ? "The newest failed and slow requests:" : "No request failed or was slow since the workers started."}</p>
      <ul class="latest">${rows.slice(0, 8).map(
        (row) => html`<li key=${row.id}><button type="button" class="link address" onClick=${() => tell(row.id)}>${row.id}</button>
          <span><b>${row.status}</b> ${row.reason ?? "slow"} <span class="muted">${row.site ?? ""}${row.path ?? ""}</span></span></li>`,
      )}</ul>`}
    <div class="answer" role="status">
      ${state.problem && html`<p class="bad">${state.problem}</p>`}
      ${state.answer?.stories?.map((story) => html`<${Story} story=${story} />`)}
    </div>
  </details>`;
}

function Story({ story }) {
  const about = [story.site, story.route, story.pool && `pool ${story.pool}`, story.server].filter(Boolean).join(" · ");
  return html`<article class="story">
    <p><b>${story.status}</b> ${story.method ?? ""} <span class="address">${story.host ?? ""}${story.path ?? ""}</span> in ${milliseconds(1000 * story.duration_seconds)}</p>
    <p class="muted">${story.at} · client ${story.client} ${about && html`· ${about}`}</p>
    ${story.reason && html`<p class="bad">${story.cause}, ${story.phase}: ${story.reason}${story.detail ? ` – ${story.detail}` : ""}</p>`}
    <ol class="steps">
      ${story.attempts.map((attempt, i) => html`<li>attempt ${i + 1}: ${inWords(attempt)}</li>`)}
      ${story.skipped.map((s) => html`<li>${s.server} was not asked: ${s.why}</li>`)}
      ${story.health.map((h) => html`<li>${after(h.seconds)} ${h.server} in ${h.pool} was ${h.health ?? (h.ejected ? "ejected" : "back")}${h.reason ? `: ${h.reason}` : ""}</li>`)}
      ${story.changes.map((c) => html`<li>${after(c.seconds)} revision ${c.revision} by ${c.by}: ${c.change.kind.replaceAll("_", " ")}</li>`)}
    </ol>
  </article>`;
}

const after = (seconds) => (seconds < 0 ? `${(-seconds).toFixed(1)} s before` : `${seconds.toFixed(1)} s after`);

const inWords = (attempt) =>
  Object.entries(attempt)
    .filter(([, value]) => value !== null && value !== "")
    .map(([key, value]) => (key === "server" ? value : `${key.replaceAll("_", " ")} ${value}`))
    .join(", ");
