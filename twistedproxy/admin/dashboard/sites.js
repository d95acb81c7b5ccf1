// Sites: their maintenance switch, the splits of their routes, and the shifts that move a split step by step.

import { html } from "./vendor/htm-preact.js";
import { duration, percent } from "./figures.js";

const SITE = "/api/v1/sites/{site}";
const SHIFT = "/api/v1/shifts/{id}";
const SHIFTS = "/api/v1/shifts";

export function Sites({ sites, offers, exposure, pending, propose }) {
  return html`<section class="card" aria-labelledby="sites">
    <header><h2 id="sites">Sites</h2></header>
    <ul class="sites">
      ${sites.map((site) => html`<${Site} key=${site.name} site=${site} offers=${offers} exposure=${exposure} pending=${pending} propose=${propose} />`)}
    </ul>
  </section>`;
}

function Site({ site, offers, exposure, pending, propose }) {
  const path = SITE.replace("{site}", encodeURIComponent(site.name));
  const isOn = Boolean(site.maintenance);
  const turn = (event) =>
    propose({
      title: `Maintenance of ${site.name}: ${isOn ? "off" : "on"}`,
      text: isOn ? "Everybody is served again." : "Everybody gets 503 with Retry-After, but for the networks of maintenance_allow.",
      method: "PATCH",
      path,
      operation: ["PATCH", SITE],
      body: { maintenance: !isOn },
      apply: isOn ? "End maintenance" : "Begin maintenance",
      origin: event.currentTarget,
    });
  const splits = (site.routes ?? []).filter((route) => route.split?.length);
  return html`<li>
    <div class="site">
      <span class="address">${site.name}</span>
      ${offers.takes("PATCH", SITE, "maintenance") &&
      html`<button type="button" class="switch" role="switch" aria-checked=${String(isOn)} aria-label=${`Maintenance of ${site.name}`} onClick=${turn}>
        <span>maintenance</span><i></i></button>`}
    </div>
    ${splits.map((route) => html`<${Split} key=${route.path} site=${site} route=${route} path=${path} offers=${offers} exposure=${exposure} pending=${pending} propose=${propose} />`)}
  </li>`;
}

function Split({ site, route, path, offers, exposure, pending, propose }) {
  const wish = pending?.path === path && pending.body.split?.path === route.path ? pending.body.split.weights : null;
  const now = Object.fromEntries(route.split.map((side) => [side.pool, side.weight.effective]));
  const weights = { ...now, ...wish };
  const sum = Object.values(weights).reduce((all, n) => all + n, 0);
  const set = (pool) => (event) => {
    const weight = Number.parseInt(event.currentTarget.value, 10);
    if (Number.isNaN(weight)) return;
    const wanted = { ...weights, [pool]: Math.max(0, weight) };
    const written = (all) => Object.entries(all).map(([name, n]) => `${name} ${n}`).join(", ");
    propose({
      title: `Split of ${site.name} ${route.path}: ${written(now)} → ${written(wanted)}`,
      method: "PATCH",
      path,
      operation: ["PATCH", SITE],
      body: { split: { path: route.path, weights: wanted } },
      origin: event.currentTarget,
      keepFocus: true,
    });
  };
  const shift = (event) => {
    const [from, to] = [...route.split].sort((a, b) => b.weight.effective - a.weight.effective).map((side) => side.pool);
    propose({
      title: `Shift of ${site.name} ${route.path}`,
      text: "Step by step, each kept for a while; back to where it began when the condition comes true.",
      form: "shift",
      sides: [from, to],
      method: "POST",
      path: SHIFTS,
      operation: ["POST", SHIFTS],
      body: { from, to, steps: [5, 25, 50, 100], every: "5m", site: site.name, path: route.path },
      abortIf: "errors > 1%",
      apply: "Start the shift",
      origin: event.currentTarget,
    });
  };
  return html`<div class=${`split ${wish ? "pending" : ""}`} role="group" aria-label=${`Split of ${site.name} ${route.path}`}>
    <p class="muted head">${route.path}
      ${route.split.length === 2 && offers.has("POST", SHIFTS) && html`<button type="button" class="quiet" onClick=${shift}>Shift…<span class="sr"> the split of ${site.name} ${route.path} step by step</span></button>`}</p>
    ${route.split.map((side) => {
      const share = sum ? weights[side.pool] / sum : 0;
      const got = exposure(site.name, route.path, side.pool);
      return html`<div class="side-of-split" key=${side.pool}>
        <span class="address">${side.pool}</span>
        <span class=${`share ${wish ? "changing" : ""}`} role="img" aria-label=${`${side.pool}: ${got === null ? "no traffic" : percent(got)} now, ${percent(share)} by weight`}>
          <span class="words" aria-hidden="true"><b>${percent(got)}</b> <span class="muted">of ${percent(share)}</span></span>
          <span class="bar" aria-hidden="true"><i class="got" style=${{ width: `${100 * (got ?? 0)}%` }}></i><i class="mark" style=${{ left: `${100 * share}%` }}></i></span>
        </span>
        <input type="number" min="0" value=${weights[side.pool]} onInput=${set(side.pool)} data-step aria-label=${`Weight of ${side.pool} in the split of ${site.name} ${route.path}`} />
      </div>`;
    })}
  </div>`;
}

export function Shifts({ shifts, offers, propose }) {
  const stop = (shift) => (event) =>
    propose({
      title: `Stop shift ${shift.id}: ${shift.from} → ${shift.to}`,
      text: "The traffic goes back to where it was when the shift began.",
      method: "DELETE",
      path: SHIFT.replace("{id}", encodeURIComponent(shift.id)),
      operation: ["DELETE", SHIFT],
      body: {},
      apply: "Stop and go back",
      isGrave: true,
      origin: event.currentTarget,
    });
  return html`<section class="card" aria-labelledby="shifts">
    <header><h2 id="shifts">Shifts</h2></header>
    <ul class="shifts">
      ${shifts.slice(-5).reverse().map((shift) => {
        const next = shift.next_at ? (Date.parse(shift.next_at) - Date.now()) / 1000 : 0;
        return html`<li key=${shift.id}>
          <div><p><span class="address">${shift.from}</span> → <span class="address">${shift.to}</span> <b>${shift.share ?? 0} %</b>
            ${shift.state === "running" && html` <progress max="100" value=${shift.share ?? 0} aria-label=${`Shift ${shift.id}: share of ${shift.to}`}></progress>`}</p>
            <p class="muted">${shift.going_back ? "goes back" : shift.state}, step ${shift.step + 1} of ${shift.steps.length}${next > 0 ? `, next in ${duration(next)}` : ""}${shift.by ? ` · ${shift.by}` : ""}</p>
            ${shift.note && html`<p>${shift.note}</p>`}</div>
          ${shift.state === "running" && offers.has("DELETE", SHIFT) && html`<button type="button" class="quiet" onClick=${stop(shift)}>Stop<span class="sr"> shift ${shift.id}</span></button>`}
        </li>`;
      })}
    </ul>
  </section>`;
}
