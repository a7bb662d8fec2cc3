// The events of a pattern, as they come.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { time } from "./rows.js";
import { json } from "./text.js";

const MOST = 500;
const LONGEST = 2_000; // characters of an event that are shown
const REST = 100; // ms between two drawings

export function Events({ session }) {
  const [pattern, setPattern] = useState(">");
  const [shown, setShown] = useState({ lines: [], count: 0 });
  const [state, setState] = useState({ on: false, problem: "" });
  const stop = useRef(null);
  useEffect(() => () => stop.current?.abort(), []);
  const listen = async (event) => {
    event.preventDefault();
    stop.current?.abort();
    const mine = (stop.current = new AbortController());
    const topics = pattern.split(/[\s,]+/).filter(Boolean);
    setShown({ lines: [], count: 0 });
    setState({ on: true, problem: "" });
    try {
      await read(session.client.subscribe(topics, { signal: mine.signal }), setShown);
      if (stop.current === mine) setState({ on: false, problem: "" });
    } catch (error) {
      if (stop.current === mine) setState({ on: false, problem: mine.signal.aborted ? "" : error.message });
    }
  };
  const doing = !state.on ? "not listening" : session.state === "open" ? "listening" : "waiting for the connection";
  return html`
    <section>
      <h2>Events</h2>
      <form class="bar" onSubmit=${listen}>
        <div>
          <label for="pattern">Topics and patterns, such as <code>a.b a.* a.${">"}</code></label>
          <input id="pattern" required spellcheck="false" autocomplete="off" value=${pattern} onInput=${(event) => setPattern(event.target.value)} />
        </div>
        <button>Listen</button>
        ${state.on && html`<button type="button" class="plain" onClick=${() => stop.current.abort()}>Stop</button>`}
        <p class="quiet"><span role="status">${doing}</span>, ${shown.count} events${shown.count > MOST && `, the last ${MOST} are shown`}</p>
      </form>
      <p class="bad-text" role="alert">${state.problem}</p>
      <div class="log" tabindex="0" role="region" aria-label="Events, the newest first">
        <ol>${shown.lines.map((line) => html`<${Line} key=${line.number} line=${line} />`)}</ol>
        ${shown.lines.length === 0 && html`<p class="quiet empty">${state.on ? "Nothing yet." : "Listen, and they appear here."}</p>`}
      </div>
    </section>
  `;
}

/** Show the events, the newest first, a few times a second. */
async function read(events, setShown) {
  let count = 0;
  let waiting = [];
  let timer = null;
  const show = () => {
    const fresh = waiting.reverse();
    [waiting, timer] = [[], null];
    setShown((before) => ({ lines: [...fresh, ...before.lines].slice(0, MOST), count }));
  };
  try {
    for await (const event of events) {
      const text = event.gap ? "" : json(event.data, { most: LONGEST });
      waiting.push({ ...event, data: undefined, number: ++count, text });
      if (waiting.length > MOST) waiting.shift();
      timer ??= setTimeout(show, REST);
    }
  } finally {
    clearTimeout(timer);
  }
}

function Line({ line }) {
  if (line.gap) return html`<li class="warn">Messages of <span class="mono">${line.topic}</span> are gone.</li>`;
  return html`
    <li>
      <span class="quiet">${time(line.time)}</span> <strong class="mono">${line.topic}</strong> <span class="quiet">#${line.offset}</span>${" "}
      <code>${line.text}</code>
    </li>
  `;
}
