// Live charts: a heading with the figure of now, and the five minutes before it.

import { html, useEffect, useRef } from "./vendor/htm-preact.js";

const HEIGHT = 92;
const SPAN_S = 300;
const SYNC = "charts"; // pointing at one chart points at the same second in all
const dark = matchMedia("(prefers-color-scheme: dark)");

const clock = (at, withSeconds) => {
  const d = new Date(at * 1000);
  const two = (n) => String(n).padStart(2, "0");
  return `${two(d.getHours())}:${two(d.getMinutes())}${withSeconds ? `:${two(d.getSeconds())}` : ""}`;
};

function draw(box, lines, format, floor, pointed) {
  const css = getComputedStyle(box);
  const color = (name) => css.getPropertyValue(`--${name}`).trim();
  const axis = { stroke: color("muted"), font: `10px ${css.fontFamily}`, ticks: { show: false } };
  const grid = { stroke: color("line"), width: 1 };
  return new uPlot(
    {
      width: box.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      padding: [6, 14, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 5 }, sync: { key: SYNC } },
      scales: { x: { range: (_, __, last) => [last - SPAN_S, last] }, y: { range: (_, __, high) => [0, Math.max(floor, (high ?? 0) * 1.1)] } },
      axes: [
        { ...axis, size: 18, gap: 3, space: 44, incrs: [60, 120, 300], grid: { show: false }, values: (u, splits) => splits.map((at) => (at - u.scales.x.min < 30 ? "" : clock(at, false))) },
        { ...axis, size: 42, gap: 4, space: 26, grid, values: (_, splits) => splits.map(format) },
      ],
      series: [
        {},
        ...lines.map(({ color: name, fill }) => ({
          stroke: color(name),
          width: 1.5,
          points: { show: false },
          fill: fill ? `${color(name)}26` : undefined,
        })),
      ],
      hooks: { setCursor: [(u) => pointed(u.cursor.idx)] },
    },
    [[], ...lines.map(() => [])],
    box,
  );
}

// `lines`: {label, color, values, fill}; `now`: what to show large; `floor`: the least height of the scale.
export function Chart({ title, now, note, at, lines, format, floor = 1 }) {
  const box = useRef();
  const plot = useRef();
  const hint = useRef();
  const latest = useRef();
  latest.current = { at, lines };

  useEffect(() => {
    const pointed = (index) => {
      const { at, lines } = latest.current;
      const known = index !== null && index !== undefined && at[index] !== undefined;
      hint.current.textContent = known
        ? `${clock(at[index], true)}  ${lines.map((l) => `${lines.length > 1 ? `${l.label} ` : ""}${format(l.values[index])}`).join("  ")}`
        : "";
      box.current?.parentElement.classList.toggle("pointed", known);
    };
    const make = () => {
      plot.current?.destroy();
      plot.current = draw(box.current, latest.current.lines, format, floor, pointed);
      fill();
    };
    const fill = () => plot.current.setData([latest.current.at, ...latest.current.lines.map((l) => l.values)]);
    make();
    const sizes = new ResizeObserver(() => plot.current.setSize({ width: box.current.clientWidth, height: HEIGHT }));
    sizes.observe(box.current);
    dark.addEventListener("change", make);
    return () => {
      sizes.disconnect();
      dark.removeEventListener("change", make);
      plot.current.destroy();
    };
  }, []);

  useEffect(() => {
    plot.current?.setData([at, ...lines.map((l) => l.values)]);
  });

  return html`<section class="chart" aria-label=${`${title}: ${now}${note ? `, ${note}` : ""}`}>
    <header>
      <h2>${title}</h2>
      <p class="figure">${now}</p>
      <p class="note">${note}</p>
      <p class="hint" ref=${hint} aria-hidden="true"></p>
    </header>
    <div class="plot" ref=${box} aria-hidden="true"></div>
  </section>`;
}
