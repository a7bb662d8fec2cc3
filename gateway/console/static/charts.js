// Charts of the values in /metrics, since the page was opened.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import uPlot from "./vendor/uplot.js";
import { buckets, parse, quantile, sum } from "./metrics.js";

const EVERY = 2000;
const MOST = 900;
const HEIGHT = 200; // px
const DIGITS = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

const CHARTS = [
  { title: "Connections", unit: "open", series: ["connections"] },
  { title: "Requests", unit: "a second", series: ["requests"] },
  { title: "Time of a request", unit: "ms", series: ["p50", "p99"] },
  { title: "Lag of the event loop", unit: "ms", series: ["lag"] },
];

/** Scrapes while the page is open and the gateway can be reached, so that the charts have a past. */
export class Recorder extends EventTarget {
  #before = null;

  constructor(session) {
    super();
    this.session = session;
    this.samples = [];
    this.member = undefined; // the gateway of the cluster that has answered last
    this.problem = "";
  }

  /** Begin to scrape. May be called again after stop(). */
  start() {
    this.#scrape();
    this.timer = setInterval(() => this.#scrape(), EVERY);
  }

  stop() {
    clearInterval(this.timer);
  }

  async #scrape() {
    if (this.session.state !== "open") {
      this.#before = null;
      this.#keep({}); // a gap in the line
      return;
    }
    try {
      const answer = await fetch(new URL("metrics", document.baseURI), { signal: AbortSignal.timeout(EVERY) });
      if (!answer.ok) throw new Error(`/metrics answered ${answer.status}`);
      this.problem = "";
      this.#take(parse(await answer.text()), performance.now() / 1000);
    } catch (error) {
      this.#before = null;
      this.problem = error.message;
      this.#keep({});
    }
  }

  #take(families, at) {
    const { member } = families.get("gateway_cluster_member_info")?.[0].labels ?? {};
    const now = { at, member, requests: sum(families, "gateway_requests_total"), times: buckets(families, "gateway_request_seconds") };
    const before = this.#before;
    this.#before = now;
    const lag = sum(families, "gateway_loop_lag_seconds");
    const sample = { connections: sum(families, "gateway_connections"), lag: inMillis(lag) };
    this.member = member; // gateways that share a port answer as the kernel chooses: another one's counts are no successor
    if (before && member === before.member && now.requests >= before.requests) {
      sample.requests = (now.requests - before.requests) / (at - before.at);
      sample.p50 = inMillis(quantile(0.5, now.times, before.times));
      sample.p99 = inMillis(quantile(0.99, now.times, before.times));
    }
    this.#keep(sample);
  }

  #keep(sample) {
    this.samples.push({ time: Date.now() / 1000, ...sample });
    if (this.samples.length > MOST) this.samples.shift();
    this.dispatchEvent(new Event("change"));
  }
}

function inMillis(seconds) {
  return seconds === undefined || seconds === null ? null : seconds * 1000;
}

export function Charts({ recorder, theme }) {
  const [, redraw] = useState(0);
  useEffect(() => {
    const changed = () => redraw((count) => count + 1);
    recorder.addEventListener("change", changed);
    return () => recorder.removeEventListener("change", changed);
  }, [recorder]);
  return html`
    <section>
      <h2>Charts</h2>
      <p class="quiet">Since this page was opened, the last half hour at most${recorder.member && `; of the gateway ${recorder.member}`}.</p>
      <p class="bad-text" role="alert">${recorder.problem}</p>
      <div class="charts">
        ${CHARTS.map((chart) => html`<${Chart} key=${`${chart.title} ${theme}`} chart=${chart} samples=${recorder.samples} />`)}
      </div>
    </section>
  `;
}

function Chart({ chart, samples }) {
  const place = useRef(null);
  const plot = useRef(null);
  const data = [samples.map((sample) => sample.time), ...chart.series.map((name) => samples.map((sample) => sample[name] ?? null))];
  useEffect(() => {
    plot.current = new uPlot(optionsOf(chart, place.current), data, place.current);
    const sized = new ResizeObserver(() => plot.current.setSize({ width: place.current.clientWidth, height: HEIGHT }));
    sized.observe(place.current);
    return () => {
      sized.disconnect();
      plot.current.destroy();
    };
  }, []);
  useEffect(() => plot.current.setData(data));
  const last = samples.at(-1) ?? {};
  const figure = (name) => (typeof last[name] === "number" ? DIGITS.format(last[name]) : "–");
  const words = chart.series.map((name) => (chart.series.length > 1 ? `${name} ${figure(name)}` : figure(name))).join(", ");
  return html`
    <figure>
      <figcaption>
        <strong>${chart.title}</strong>
        ${chart.series.map((name, index) => html`<span class="figure">${chart.series.length > 1 && html`<span class=${`swatch swatch-${index}`}></span>${name} `}${figure(name)} ${chart.unit}</span>`)}
      </figcaption>
      <div ref=${place} role="img" aria-label=${`${chart.title}: ${words} ${chart.unit}`}></div>
    </figure>
  `;
}

function optionsOf(chart, place) {
  const style = getComputedStyle(document.documentElement);
  const [text, line, ...strokes] = ["--quiet", "--line", "--accent", "--warn"].map((name) => style.getPropertyValue(name).trim());
  const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  return {
    width: place.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    axes: [{ ...axis, size: 32, space: 90, values: (_, splits) => splits.map((at) => CLOCK.format(at * 1000)) }, { ...axis, size: 60 }],
    scales: { y: { range: (_, low, high) => [0, Math.max(1, (high ?? 1) * 1.1)] } },
    series: [{}, ...chart.series.map((name, index) => ({ label: name, stroke: strokes[index], width: 2 }))],
  };
}
