// The change the operator is about to make: what it is, what it would do, why; nothing happens before "Apply".

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Refused, ask } from "./api.js";
import { percent } from "./figures.js";

const PREVIEW_AFTER_MS = 250;
const WAITS = [["", "– (stays)"], ["1m", "within 1 minute"], ["5m", "within 5 minutes"], ["15m", "within 15 minutes"]];

// Sends the change; gives the proxy's answer or throws Refused.
export async function send(proposal, etag) {
  const { method, path, reason, confirmWithin, abortIf, now } = proposal;
  const body = { ...proposal.body };
  if (reason.trim()) body.reason = reason.trim();
  if (confirmWithin) body.confirm_within = confirmWithin;
  if (abortIf.trim()) body.abort_if = abortIf.trim();
  return (await ask(method, now ? `${path}?now=1` : path, { body, etag })).data;
}

export function Proposal({ proposal, offers, update, apply, cancel }) {
  const { title, text, form, operation, message, isSending, isConflict } = proposal;
  const reason = useRef();
  const first = useRef();
  const takes = (name) => offers.takes(...operation, name);
  const preview = usePreview(proposal, takes("preview"));

  useEffect(() => {
    if (!proposal.keepFocus) (first.current ?? reason.current)?.focus();
  }, [proposal.id]);

  const submit = (event) => {
    event.preventDefault();
    if (!isSending) apply();
  };
  const edit = (changes) => update({ body: { ...proposal.body, ...changes } });
  return html`<form class="proposal" aria-labelledby="proposal-title" onSubmit=${submit}>
    <div class="about">
      <h2 id="proposal-title">${title}</h2>
      ${text && html`<p class="muted">${text}</p>`}
      ${preview && html`<${Preview} preview=${preview} />`}
    </div>
    ${form === "limit" && html`<div class="fields">
      <label>Most connections <input ref=${first} type="number" min="1" max="1000000" required=${proposal.body.max_connections !== null} disabled=${proposal.body.max_connections === null}
        value=${proposal.body.max_connections ?? ""} onInput=${(e) => edit({ max_connections: Number.parseInt(e.currentTarget.value, 10) || 0 })} /></label>
      <label class="tick"><input type="checkbox" checked=${proposal.body.max_connections === null}
        onChange=${(e) => edit({ max_connections: e.currentTarget.checked ? null : 256 })} /> As the file says</label>
    </div>`}
    ${form === "shift" && html`<div class="fields">
      <label>To <select ref=${first} value=${proposal.body.to} onChange=${(e) => edit({ to: e.currentTarget.value, from: proposal.sides.find((side) => side !== e.currentTarget.value) })}>
        ${proposal.sides.map((side) => html`<option value=${side} selected=${side === proposal.body.to}>${side}</option>`)}</select></label>
      <label class="wide">Its share, step by step, in % <input required pattern="[0-9., ]+" autocomplete="off" defaultValue=${proposal.body.steps.join(", ")}
        onInput=${(e) => edit({ steps: inSteps(e.currentTarget.value) })} /></label>
      <label>Time between steps <input required maxlength="20" size="6" autocomplete="off" value=${proposal.body.every} onInput=${(e) => edit({ every: e.currentTarget.value.trim() })} /></label>
    </div>`}
    ${form === "add" && html`<div class="fields">
      <label class="wide">Address <input ref=${first} required placeholder="10.0.0.7:8080" autocomplete="off" spellcheck="false" value=${proposal.body.address}
        onInput=${(e) => edit({ address: e.currentTarget.value.trim() })} /></label>
      <label>Weight <input type="number" min="0" max="1000" required value=${proposal.body.weight}
        onInput=${(e) => edit({ weight: Number.parseInt(e.currentTarget.value, 10) || 0 })} /></label>
      <label class="tick"><input type="checkbox" checked=${proposal.body.backup} onChange=${(e) => edit({ backup: e.currentTarget.checked })} /> Backup</label>
    </div>`}
    <div class="fields">
      <label class="wide">Reason, for the journal
        <input ref=${reason} id="reason" maxlength="500" autocomplete="off" value=${proposal.reason} onInput=${(e) => update({ reason: e.currentTarget.value })} /></label>
      ${takes("confirm_within") && html`<label>Undone unless confirmed
        <select value=${proposal.confirmWithin} onChange=${(e) => update({ confirmWithin: e.currentTarget.value })}>
          ${WAITS.map(([value, label]) => html`<option value=${value}>${label}</option>`)}
        </select></label>`}
      ${takes("abort_if") && html`<label>Undone if
        <input class="guard" placeholder="errors > 1% or p95 > +20%" maxlength="200" autocomplete="off" spellcheck="false" value=${proposal.abortIf}
          onInput=${(e) => update({ abortIf: e.currentTarget.value })} /></label>`}
      ${form === "remove" && html`<label class="tick"><input type="checkbox" checked=${proposal.now} onChange=${(e) => update({ now: e.currentTarget.checked })} />
        Cut what is open at once</label>`}
      <div class="buttons">
        <button type="button" class="quiet" onClick=${cancel}>Cancel</button>
        <button type="submit" class=${proposal.isGrave ? "grave" : "main"} disabled=${isSending}>
          ${isSending ? "Applying…" : isConflict ? "Apply all the same" : (proposal.apply ?? "Apply")}</button>
      </div>
    </div>
    <p class="message" role="alert">${message}</p>
  </form>`;
}

const inSteps = (text) =>
  text
    .split(",")
    .map((step) => Number.parseFloat(step))
    .filter((step) => !Number.isNaN(step));

// What the proxy says the change would do; null while it is not asked or does not answer.
function usePreview(proposal, isOffered) {
  const [preview, show] = useState(null);
  const { method, path, body } = proposal;
  const asked = JSON.stringify([method, path, body]);
  useEffect(() => {
    if (!isOffered || (body.address === "" && proposal.form === "add")) {
      show(null);
      return undefined;
    }
    const end = new AbortController();
    const timer = setTimeout(() => {
      ask(method, `${path}?preview=1`, { body, signal: end.signal }).then(
        ({ data }) => show(data.preview ?? data),
        (e) => end.signal.aborted || show(e instanceof Refused ? { problem: e.message } : null),
      );
    }, PREVIEW_AFTER_MS);
    return () => {
      clearTimeout(timer);
      end.abort();
    };
  }, [asked, isOffered]);
  return preview;
}

function Preview({ preview }) {
  if (preview.problem) return html`<p class="warn">${preview.problem}</p>`;
  if (preview.edit !== undefined) return html`<pre class="edit" tabindex="0" aria-label="The edit of the file">${preview.edit || "The file says what is running."}</pre>`;
  const { shares = [], splits = [], replays = [], closing } = preview;
  return html`<p class="preview" role="status">
    ${shares.map((s) => html`<span><span class="address">${s.server}</span> ${percent(s.before)} → <b>${percent(s.after)}</b></span>`)}
    ${splits.map((s) => html`<span>${s.pool} in ${s.site} ${s.path} ${percent(s.before)} → <b>${percent(s.after)}</b></span>`)}
    ${replays.map((r) => html`<span>${r.requests ? html`<b>${percent(r.moved)}</b> of the ${r.requests} requests recorded lately move` : "no requests were recorded lately"}</span>`)}
    ${shares.length + splits.length === 0 && html`<span class="muted">No share of traffic changes</span>`}
    ${closing !== undefined && html`<span class=${closing ? "warn" : "muted"}>closes ${closing ? `${closing} open sessions` : "nothing that is open"}</span>`}
  </p>`;
}
