// The configuration file against what is running: live values that the file does not have, and the way to write them into it.

import { html } from "./vendor/htm-preact.js";

const ADOPT = "/api/v1/config/adopt";

const written = (value) => (value === null || value === undefined ? "–" : typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k} ${v}`).join(", ") : String(value));

export function Differences({ differences, offers, propose }) {
  const adopt = (event) =>
    propose({
      title: "Write the live values into the file",
      text: "Comments and layout stay. The file is then read again, so that both say the same.",
      form: "adopt",
      method: "POST",
      path: ADOPT,
      operation: ["POST", ADOPT],
      body: {},
      apply: "Write the file",
      origin: event.currentTarget,
    });
  return html`<section class="card" aria-labelledby="differences">
    <header>
      <h2 id="differences">Not in the file</h2>
      ${differences.length > 0 && offers.has("POST", ADOPT) && html`<button type="button" class="quiet" onClick=${adopt}>Adopt<span class="sr">: write the live values into the file</span></button>`}
    </header>
    ${differences.length === 0 && html`<p class="empty">The file says what is running.</p>`}
    <ul class="differences">
      ${differences.map(
        (d) => html`<li key=${d.path}><span class="address">${d.path}</span>
          <span class="values"><s>${written(d.file)}</s><span class="sr"> in the file, running </span><span aria-hidden="true"> → </span><b>${written(d.running)}</b></span></li>`,
      )}
    </ul>
  </section>`;
}

// What mirrors saw: how many copies were answered alike, and in what the others differed.
export function Mirrors({ mirrors }) {
  const counts = (table) =>
    Object.entries(table)
      .sort(([, a], [, b]) => b - a)
      .map(([kind, n]) => `${n} ${kind}`)
      .join(", ");
  return html`<section class="card" aria-labelledby="mirrors">
    <header><h2 id="mirrors">Mirrors</h2></header>
    <ul class="mirrors">
      ${mirrors.map(
        (m) => html`<li key=${`${m.site} ${m.path} ${m.pool}`}>
          <p><span class="address">${m.site}${m.path}</span> → <span class="address">${m.pool}</span></p>
          <p class="muted">${counts(m.results)}</p>
          ${Object.keys(m.differences).length > 0 && html`<p class="warn">differs: ${counts(m.differences)}</p>`}
        </li>`,
      )}
    </ul>
  </section>`;
}
