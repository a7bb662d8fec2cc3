// The console: the connections, the nodes and what they serve, the events, and the state of the gateway and of its cluster.

import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Charts, Recorder } from "./charts.js";
import { Connections, History } from "./connections.js";
import { Events } from "./events.js";
import { Absences, Members } from "./members.js";
import { Nodes } from "./nodes.js";
import { Boundary } from "./parts.js";
import { Session } from "./session.js";

const VIEWS = [
  { name: "connections", title: "Connections", view: Connections, allowed: (session) => session.may("admin") },
  { name: "history", title: "History", view: History, allowed: (session) => session.may("admin") },
  { name: "nodes", title: "Nodes", view: Nodes, allowed: (session) => session.mayCall() },
  { name: "members", title: "Members", view: Members, allowed: (session) => session.cluster.several },
  { name: "events", title: "Events", view: Events, allowed: () => true },
  { name: "charts", title: "Charts", view: Charts, allowed: () => true },
];
const STATES = {
  open: ["good", "connected"],
  connecting: ["warn", "connecting…"],
  away: ["warn", "away, coming back…"],
  waiting: ["warn", "connection lost, trying again…"],
  closed: ["bad-text", "disconnected"],
};
const ROOT = document.getElementById("console"); // data-login: a token is needed
const THEME = "theme"; // its key in the local storage

function App() {
  const [session, setSession] = useState(null);
  const [problem, setProblem] = useState(ROOT.dataset.login ? "" : null); // null: no attempt yet
  const [theme, setTheme] = useTheme();
  const enter = async (token) => {
    const next = new Session(token);
    try {
      await next.open();
      setSession(next);
    } catch (error) {
      await next.close();
      setProblem(token === undefined && next.ending.startsWith("4500") ? "" : refusal(next, error));
    }
  };
  const leave = async () => {
    setProblem("");
    setSession(null);
    await session.close();
  };
  useEffect(() => void (problem === null && enter(undefined)), []); // without a login if no credential is needed
  if (session) return html`<${Page} session=${session} theme=${theme} onTheme=${setTheme} onLeave=${leave} />`;
  if (problem === null) return html`<main><p role="status">Connecting…</p></main>`;
  return html`<${Login} problem=${problem} onEnter=${enter} />`;
}

function refusal(session, error) {
  if (session.ending.startsWith("4500")) return "The gateway does not take this token.";
  return session.ending ? `The gateway refuses: ${session.ending}` : `No connection: ${error.message}`;
}

/** The theme of the reader's system, until a button sets another. */
function useTheme() {
  const [theme, setTheme] = useState(() => localStorage.getItem(THEME) ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  document.documentElement.dataset.theme = theme;
  const choose = (next) => {
    localStorage.setItem(THEME, next);
    setTheme(next);
  };
  return [theme, choose];
}

function Login({ problem, onEnter }) {
  const field = useRef(null);
  const [token, setToken] = useState("");
  const [busy, setBusy] = useState(false);
  useEffect(() => field.current.focus(), []);
  useEffect(() => void (document.title = "Log in – Gateway console"), []);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    await onEnter(token.trim());
    setBusy(false);
    field.current?.focus();
  };
  return html`
    <main>
      <form class="login" onSubmit=${submit}>
        <h1>Gateway console</h1>
        <label for="token">Token</label>
        <input id="token" ref=${field} type="password" autocomplete="off" required aria-describedby="token-stays token-problem"
          value=${token} onInput=${(event) => setToken(event.target.value)} />
        <p class="quiet" id="token-stays">It stays in this page, and is gone with it.</p>
        <p class="bad-text" id="token-problem" role="alert">${busy ? "" : problem}</p>
        <button disabled=${busy}>${busy ? "Logging in…" : "Log in"}</button>
      </form>
    </main>
  `;
}

function Page({ session, theme, onTheme, onLeave }) {
  const [, redraw] = useState(0);
  const [at, setAt] = useState(location.hash.slice(1));
  const [recorder] = useState(() => new Recorder(session));
  useEffect(() => {
    const changed = () => redraw((count) => count + 1);
    const moved = () => setAt(location.hash.slice(1));
    session.addEventListener("change", changed);
    addEventListener("hashchange", moved);
    recorder.start();
    return () => {
      session.removeEventListener("change", changed);
      removeEventListener("hashchange", moved);
      recorder.stop();
    };
  }, [session]);
  const views = VIEWS.filter((view) => view.allowed(session));
  const current = views.find((view) => view.name === at) ?? views[0];
  useEffect(() => void (document.title = `${current.title} – Gateway console`), [current]);
  const [look, words] = STATES[session.state];
  const other = theme === "dark" ? "light" : "dark";
  return html`
    <header>
      <h1>Gateway console</h1>
      <nav aria-label="Views">
        <ul>
          ${views.map((view) => html`<li><a href=${`#${view.name}`} aria-current=${view === current ? "page" : undefined}>${view.title}</a></li>`)}
        </ul>
      </nav>
      <div class="state">
        <span class=${`lamp ${look}`} role="status" id="state">${words}</span>
        <span class="quiet">${session.client.principal.name}${session.cluster.several && ` at ${session.cluster.here}`}, version ${session.client.welcome.server.version}</span>
        <button type="button" class="plain" onClick=${() => onTheme(other)}>${other === "dark" ? "Dark" : "Light"} theme</button>
        <button type="button" class="plain" onClick=${onLeave}>Log out</button>
      </div>
    </header>
    <${Boundary} what="The state of the gateway"><${Notices} session=${session} onLeave=${onLeave} /><//>
    <main>
      <${Boundary} key=${current.name} what=${current.title}><${current.view} session=${session} recorder=${recorder} theme=${theme} /><//>
    </main>
  `;
}

function Notices({ session, onLeave }) {
  const { draining, news, problem, ending, state } = session;
  const goes = draining && (state === "open" ? `is draining, and goes within ${Math.round(draining.deadlineMs / 1000)} s` : "has drained");
  return html`
    <div role="status">
      ${draining && html`<p class="notice warn">The gateway ${goes}. This page comes back to its successor.</p>`}
      ${news && html`<p class="notice good">${news}</p>`}
    </div>
    <div role="alert">
      ${problem && html`<p class="notice bad-text">${problem}</p>`}
      ${state === "closed" && html`<p class="notice bad-text">The gateway has ended this connection: ${ending}. <button type="button" class="plain" onClick=${onLeave}>Log in again</button></p>`}
      <${Absences} cluster=${session.cluster} />
    </div>
  `;
}

render(html`<${App} />`, ROOT);
