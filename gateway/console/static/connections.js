// The open connections, and the ended ones with their cause.

import { html, useEffect, useMemo, useState } from "./vendor/htm-preact.js";
import { Details } from "./details.js";
import { Boundary } from "./parts.js";
import { Rows, away, span, time } from "./rows.js";

const EVERY = 10_000; // ms between two counts of messages
const FEW = 2_000; // with more connections, messages are counted only on request

const MEMBER = { name: "member", title: "Member", look: "wide" }; // only in a cluster, before the last column

const COLUMNS = [
  { name: "name", title: "Name", look: "wider" },
  { name: "role", title: "Role" },
  { name: "remote", title: "From", look: "wide" },
  { name: "openedAt", title: "Since", look: "wide" },
  { name: "messagesIn", title: "In", number: true, look: "short" },
  { name: "messagesOut", title: "Out", number: true, look: "short" },
  { name: "inFlight", title: "In flight", number: true },
  { name: "connId", title: "connId", look: "id" },
];

export function Connections({ session }) {
  const [filter, setFilter] = useState("");
  const [sort, setSort] = useState({ name: "openedAt", down: true });
  const [chosen, setChosen] = useState(null);
  const [told, setTold] = useState("");
  useEffect(() => {
    const timer = setInterval(() => session.state === "open" && session.connections.size <= FEW && session.reload(), EVERY);
    return () => clearInterval(timer);
  }, [session]);
  const everybody = useMemo(() => sorted(session.connections.values(), sort), [session.connections, session.changes, sort]);
  const rows = useMemo(() => matching(everybody, filter), [everybody, filter]);
  const own = session.client.welcome?.connId;
  const { several } = session.cluster;
  const cells = (row) => [
    html`<button type="button" class="link" aria-haspopup="dialog" onClick=${() => setChosen(row)}>${row.name}</button>${row.connId === own && html` <span class="quiet">this page</span>`}${row.held && html` <span class="warn">${away(row)}</span>`}`,
    row.role,
    row.remote,
    time(row.openedAt),
    row.messagesIn,
    row.messagesOut,
    row.inFlight,
    ...(several ? [row.member] : []),
    html`<span class="mono">${row.connId}</span>`,
  ];
  const done = (message) => {
    setChosen(null);
    setTold(message ?? "");
  };
  return html`
    <section>
      <h2>Connections</h2>
      <div class="bar">
        <div>
          <label for="filter">Filter by name, role, address${several && ", member"} or connId</label>
          <input id="filter" type="search" value=${filter} onInput=${(event) => setFilter(event.target.value)} />
        </div>
        <button type="button" class="plain" disabled=${session.loading} onClick=${() => session.reload()}>Refresh</button>
        <p class="quiet" role="status" id="count">${rows.length} of ${session.connections.size} connections</p>
        <p class="quiet">${session.loading ? "loading…" : session.listedAt && `messages counted ${time(session.listedAt)}`}</p>
      </div>
      <p role="status" class="told">${told}</p>
      <${Rows} caption="Connections" columns=${columnsOf(COLUMNS, several)} rows=${rows} cells=${cells} keyOf=${(row) => row.connId} sort=${sort}
        onSort=${(name) => setSort({ name, down: sort.name === name && !sort.down })} empty="No connection matches." />
      ${chosen && html`<${Boundary} key=${chosen.connId} what="This connection"><${Details} session=${session} connection=${chosen} onDone=${done} /><//>`}
    </section>
  `;
}

function columnsOf(columns, several) {
  return several ? [...columns.slice(0, -1), MEMBER, columns.at(-1)] : columns;
}

function matching(rows, filter) {
  const wanted = filter.trim().toLowerCase();
  if (!wanted) return rows;
  return rows.filter((one) => `${one.name} ${one.role} ${one.remote} ${one.member ?? ""} ${one.connId}`.toLowerCase().includes(wanted));
}

function sorted(connections, { name, down }) {
  const sign = down ? -1 : 1;
  const keyed = Array.from(connections, (one) => ({ key: one[name], one })); // read once, compared often
  keyed.sort((a, b) => (a.key < b.key ? -sign : a.key > b.key ? sign : 0));
  return keyed.map(({ one }) => one);
}

const PAST = [
  { title: "Ended", look: "wide" },
  { title: "Name", look: "wide" },
  { title: "Cause", look: "wider" },
  { title: "Code", number: true, look: "short" },
  { title: "Reason", look: "wide" },
  { title: "Lasted", number: true, look: "short" },
  { title: "From", look: "wide" },
  { title: "connId", look: "id" },
];

export function History({ session }) {
  const [filter, setFilter] = useState("");
  const { several } = session.cluster;
  const rows = useMemo(() => {
    const wanted = filter.trim().toLowerCase();
    const text = (one) => `${one.name} ${one.cause} ${one.code} ${one.reason} ${one.remote} ${one.member ?? ""} ${one.connId}`.toLowerCase();
    return session.history.filter((one) => !wanted || text(one).includes(wanted));
  }, [session.history, filter]);
  const cells = (row) => [
    time(row.closedAt),
    row.name,
    row.cause,
    row.code,
    row.reason,
    span(row.duration),
    row.remote,
    ...(several ? [row.member] : []),
    html`<span class="mono">${row.connId}</span>`,
  ];
  return html`
    <section>
      <h2>Why did it disconnect?</h2>
      <div class="bar">
        <div>
          <label for="past-filter">Filter by name, cause, code, reason, address${several && ", member"} or connId</label>
          <input id="past-filter" type="search" value=${filter} onInput=${(event) => setFilter(event.target.value)} />
        </div>
        <p class="quiet" role="status">the last ${rows.length} that have ended</p>
      </div>
      <${Rows} caption="Connections that have ended" columns=${columnsOf(PAST, several)} rows=${rows} cells=${cells} keyOf=${(row) => row.connId} empty="None." />
    </section>
  `;
}
