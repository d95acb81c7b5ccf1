// An upgrade in place, or workers being replaced: how it goes, and for an hour how it ended.

import { html } from "./vendor/htm-preact.js";
import { Icon } from "./pools.js";

const TOLD_FOR_MS = 3_600_000;
const UNDER_WAY = ["starting", "ready", "handed over", "running", "draining"];

const connections = (n) => `${n} connection${n === 1 ? "" : "s"}`;

export function upgradeInWords(upgrade) {
  const words = {
    starting: "a new version starts",
    ready: `version ${upgrade.to} is ready`,
    "handed over": `version ${upgrade.to} takes over`,
    draining: `version ${upgrade.to} serves, the old one finishes ${connections(upgrade.connections)}`,
    done: `version ${upgrade.to} serves, the old one has left`,
    failed: `failed, nothing was changed: ${upgrade.reason}`,
  };
  return `Upgrade: ${words[upgrade.state] ?? upgrade.state}`;
}

export function rotationInWords(rotation) {
  const far = `${rotation.replaced} of ${rotation.total} workers replaced`;
  if (rotation.state === "failed") return `${far}, then it ended: ${rotation.reason}`;
  if (rotation.state === "draining" && rotation.connections) return `${far}, the old ones finish ${connections(rotation.connections)}`;
  return far;
}

function isWorthTelling(renewal) {
  if (!renewal || renewal.state === "none") return false;
  return UNDER_WAY.includes(renewal.state) || Date.now() - Date.parse(renewal.started_at) < TOLD_FOR_MS;
}

export function Renewals({ upgrade, rotation }) {
  const told = [
    [upgrade, upgradeInWords, null],
    [rotation, rotationInWords, "replaced"],
  ].filter(([renewal]) => isWorthTelling(renewal));
  const tone = ({ state }) => (state === "failed" ? "bad" : UNDER_WAY.includes(state) ? "warn" : "ok");
  return told.map(
    ([renewal, inWords, part]) => html`<p class="renewal"><${Icon} tone=${tone(renewal)} /> <span>${inWords(renewal)}
      ${part && renewal.state === "running" && html` <progress max=${renewal.total} value=${renewal[part]} aria-label="Workers replaced"></progress>`}
      <span class="muted"> · ${new Date(renewal.started_at).toLocaleTimeString()}${renewal.by ? ` · ${renewal.by}` : ""}</span></span></p>`,
  );
}
