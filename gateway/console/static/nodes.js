// The nodes, their methods, and a form to call one.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Boundary, useFirst } from "./parts.js";
import { fieldsOf, parsed, typed } from "./schema.js";
import { time } from "./rows.js";
import { cut, json, shown } from "./text.js";

const EVERY = 5_000; // ms between two counts of calls in flight
const NODES = 50; // drawn at first
const METHODS = 50; // of a node
const SUMMARY = 2_000; // characters, as the gateway bounds it
const RESULT = 200_000; // characters of a result that are shown
const ERROR = 2_000; // and of what a node says of an error
const VALUES = 100; // of a stream, drawn
const VALUE = 2_000; // characters of each
const REST = 100; // ms between two drawings of them

export function Nodes({ session }) {
  const [chosen, setChosen] = useState(null); // { node, method } as they were when chosen: a node may leave while it is called
  useEffect(() => {
    session.refreshNodes();
    const timer = setInterval(() => session.state === "open" && session.refreshNodes(), EVERY);
    return () => clearInterval(timer);
  }, [session]);
  const node = session.nodes.find((one) => one.name === chosen?.node.name);
  const online = Boolean(node?.methods.some((one) => one.name === chosen.method.name));
  const [some, more] = useFirst(session.nodes, NODES);
  return html`
    <section>
      <h2>Nodes</h2>
      ${session.nodes.length === 0 && html`<p class="quiet">No node is connected. The README shows one of a few lines.</p>`}
      <div class="split">
        <div>${some.map((one) => html`<${Node} key=${one.name} node=${one} chosen=${chosen} onChoose=${setChosen} />`)} ${more}</div>
        <div>
          ${chosen
            ? html`<${Boundary} key=${`${chosen.node.name} ${chosen.method.name}`} what="This method"><${Chosen} session=${session} node=${chosen.node} method=${chosen.method} online=${online} /><//>`
            : session.nodes.length > 0 && html`<p class="quiet">Choose a method to call it.</p>`}
        </div>
      </div>
    </section>
  `;
}

function Node({ node, chosen, onChoose }) {
  const [methods, more] = useFirst(node.methods, METHODS);
  const isChosen = (method) => node.name === chosen?.node.name && method.name === chosen.method.name;
  return html`
    <article class="node" aria-label=${node.name}>
      <h3>${node.name}</h3>
      <p class="quiet">${node.remote}${node.member && ` at ${node.member}`}, since ${time(node.since)}, ${node.inFlight} in flight${node.held && html`, <span class="warn">its link is lost, and it may come back</span>`}</p>
      <ul class="list">
        ${methods.map(
          (method) => html`
            <li key=${method.name}>
              <button type="button" aria-current=${isChosen(method) ? "true" : undefined} onClick=${() => onChoose({ node, method })}>
                <span class="mono">${method.name}</span>
              </button>
            </li>
          `,
        )}
      </ul>
      ${more}
    </article>
  `;
}

// Asks the node what it says of the method, then shows the form. A list of nodes has only the methods' names.
function Chosen({ session, node, method, online }) {
  const [{ told, problem }, setState] = useState({});
  useEffect(() => {
    let shown = true;
    session.described(node, method).then(
      (found) => shown && setState({ told: found }),
      (error) => shown && setState({ problem: error.message }),
    );
    return () => (shown = false);
  }, []);
  if (told) return html`<${CallForm} session=${session} node=${node} method=${told} online=${online} />`;
  return html`<p class=${problem ? "bad-text" : "quiet"} role="status">${problem ?? "loading…"}</p>`;
}

function CallForm({ session, node, method, online }) {
  const [fields] = useState(() => fieldsOf(method.params));
  const [values, setValues] = useState(() => Object.fromEntries((fields ?? []).map((field) => [field.name, field.value])));
  const [text, setText] = useState("{}");
  const { callTimeoutMs, maxCallTimeoutMs } = session.client.welcome.limits;
  const [seconds, setSeconds] = useState(String(callTimeoutMs / 1000));
  const [state, setState] = useState({ running: false });
  const stop = useRef(null);
  useEffect(() => () => stop.current?.abort(), []); // the result would not be shown
  const call = async (event) => {
    event.preventDefault();
    let params;
    try {
      params = fields ? typed(fields, values) : parsed("params", text);
    } catch (error) {
      setState({ error: error.message });
      return;
    }
    stop.current = new AbortController();
    setState({ running: true });
    const tell = (more) => setState((before) => ({ ...before, ...more }));
    const options = { node: node.name, timeout: Number(seconds) * 1000, signal: stop.current.signal };
    const begun = performance.now();
    const took = () => `${Math.round(performance.now() - begun)} ms`;
    try {
      const result = await (method.streams ? streamed : called)(session.client, method, params, options, tell);
      tell({ running: false, result: json(result, { most: RESULT, indent: 2 }), took: took() });
    } catch (error) {
      tell({ running: false, error: failed(error, stop.current.signal), took: took() });
    }
  };
  return html`
    <h3><span class="mono">${method.name}</span> on ${node.name}</h3>
    <p class="quiet">${shown(method.summary, SUMMARY)}</p>
    <form onSubmit=${call}>
      ${fields
        ? fields.map((field, index) => html`<${Field} key=${index} id=${`field-${index}`} field=${field} value=${values[field.name]} onInput=${(value) => setValues({ ...values, [field.name]: value })} />`)
        : html`<label for="params">Parameters, in JSON</label><textarea id="params" spellcheck="false" value=${text} onInput=${(event) => setText(event.target.value)}></textarea>`}
      ${!method.streams &&
      html`
        <label for="seconds">Time limit, in seconds</label>
        <input id="seconds" type="number" min="1" max=${maxCallTimeoutMs / 1000} step="any" required value=${seconds} onInput=${(event) => setSeconds(event.target.value)} />
      `}
      <p class="bar">
        <button disabled=${state.running || !online}>Call</button>
        ${state.running && html`<button type="button" class="plain" onClick=${() => stop.current.abort()}>Cancel</button>`}
        ${!online && html`<span class="warn">${node.name} does not serve it now.</span>`}
      </p>
    </form>
    <${Boundary} tries=${state} what="The outcome"><${Outcome} state=${state} /><//>
  `;
}

function called(client, method, params, options, tell) {
  return client.call(method.name, params, { ...options, onProgress: (progress) => tell({ progress }) });
}

/** Call it as a stream, and tell of its last values, a few times a second. Returns the result. */
async function streamed(client, method, params, options, tell) {
  const stream = client.stream(method.name, params, options);
  let values = [];
  let count = 0;
  let progress;
  let timer = null;
  const show = () => {
    timer = null;
    tell({ progress, values, count });
  };
  try {
    for await (const value of stream) {
      progress = value;
      values = [...values, { number: ++count, text: json(value, { most: VALUE }) }].slice(-VALUES);
      timer ??= setTimeout(show, REST);
    }
  } finally {
    clearTimeout(timer);
    show();
  }
  return stream.result();
}

function failed(error, signal) {
  if (signal.aborted) return "Cancelled.";
  const said = `${cut(error.message, ERROR)} (${shown(error.name)}, ${shown(error.code)}).`;
  if (error.outcome === "not_delivered") return `${said} The node did not get the call.`;
  return error.outcome === "unknown" ? `${said} The node may have run it all the same.` : said;
}

function Outcome({ state }) {
  const { running, progress, values = [], count, error, result, took } = state;
  const share = typeof progress === "number" && progress >= 0 && progress <= 1;
  return html`
    <div role="status">
      ${running && html`<p>Running… ${progress !== undefined && json(progress)}</p>`}
      ${running && share && html`<progress value=${progress} aria-label="Progress"></progress>`}
      ${error && html`<p class="bad-text">${error}</p>`}
      ${took && html`<p class="quiet">${error ? "Ended" : "Answered"} after ${took}</p>`}
    </div>
    ${values.length > 0 &&
    html`
      <p class="quiet">${count} values${count > VALUES && `, the last ${VALUES} are shown`}</p>
      <div class="log values" tabindex="0" role="region" aria-label="Values">
        <ol>${values.map(({ number, text }) => html`<li key=${number}><code>${text}</code></li>`)}</ol>
      </div>
    `}
    ${result !== undefined && html`<pre tabindex="0" role="region" aria-label="Result">${result}</pre>`}
  `;
}

function Field({ id, field, value, onInput }) {
  const about = field.about && html`<span class="quiet" id=${`${id}-about`}>${field.about}</span>`;
  const label = html`<label for=${id}>${shown(field.name)}${field.required ? " (needed)" : ""}</label>`;
  const named = { id, "aria-describedby": field.about ? `${id}-about` : undefined, "aria-required": field.required ? "true" : undefined };
  const onText = (event) => onInput(event.target.value);
  if (field.kind === "boolean") {
    return html`<div class="field">${label}<input ...${{ ...named, "aria-required": undefined }} type="checkbox" checked=${value} onChange=${(event) => onInput(event.target.checked)} /> ${about}</div>`;
  }
  if (field.kind === "choice") {
    return html`<div class="field">${label}<select ...${named} onChange=${onText}>
      <option value="" selected=${value === ""}>–</option>
      ${field.choices.map((choice, index) => html`<option value=${String(index)} selected=${value === String(index)}>${shown(choice)}</option>`)}
    </select> ${about}</div>`;
  }
  if (field.kind === "json") {
    return html`<div class="field">${label}<textarea ...${named} spellcheck="false" placeholder="JSON" value=${value} onInput=${onText}></textarea> ${about}</div>`;
  }
  const mode = { string: "text", integer: "numeric", number: "decimal" }[field.kind];
  return html`<div class="field">${label}<input ...${named} autocomplete="off" inputmode=${mode} value=${value} onInput=${onText} /> ${about}</div>`;
}
