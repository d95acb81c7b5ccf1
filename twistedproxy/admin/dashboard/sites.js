// Sites: their maintenance switch and the splits of their routes.

import { html } from "./vendor/htm-preact.js";

const SITE = "/api/v1/sites/{site}";

export function Sites({ sites, offers, propose }) {
  const canSwitch = offers.has("PATCH", SITE) && offers.takes("PATCH", SITE, "maintenance");
  const turn = (site) => (event) =>
    propose({
      title: `Maintenance of ${site.name}: ${site.maintenance ? "off" : "on"}`,
      text: site.maintenance ? "Everybody is served again." : "Everybody gets 503 with Retry-After, but for the networks of maintenance_allow.",
      method: "PATCH",
      path: SITE.replace("{site}", encodeURIComponent(site.name)),
      operation: ["PATCH", SITE],
      body: { maintenance: !site.maintenance },
      apply: site.maintenance ? "End maintenance" : "Begin maintenance",
      origin: event.currentTarget,
    });
  return html`<section class="card" aria-labelledby="sites">
    <header><h2 id="sites">Sites</h2></header>
    <ul class="sites">
      ${sites.map(
        (site) => html`<li key=${site.name}>
          <span class="address">${site.name}</span>
          ${site.maintenance && !canSwitch && html`<span class="badge warn">maintenance</span>`}
          ${canSwitch &&
          html`<button type="button" class="switch" role="switch" aria-checked=${String(Boolean(site.maintenance))} aria-label=${`Maintenance of ${site.name}`} onClick=${turn(site)}>
            <i></i><span>${site.maintenance ? "maintenance" : "serving"}</span></button>`}
        </li>`,
      )}
    </ul>
  </section>`;
}
