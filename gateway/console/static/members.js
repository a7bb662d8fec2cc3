// The gateways of the cluster, and what is told on every page while one of them, or NATS, is away.

import { html } from "./vendor/htm-preact.js";
import { Rows, time } from "./rows.js";

const COLUMNS = [
  { title: "Member", look: "wide" },
  { title: "State", look: "text" },
  { title: "Connections", number: true, look: "wide" },
  { title: "Nodes", number: true },
  { title: "Since", look: "wide" },
  { title: "Version" },
  { title: "Instance", look: "id" },
];

export function Members({ session }) {
  const { members, missing, gone } = session.cluster;
  const rows = [
    ...members,
    ...missing.map((member) => ({ member, told: "no answer" })),
    ...[...gone].map(([member, since]) => ({ member, told: `gone since ${time(since)}` })),
  ];
  const own = session.client.welcome?.server.instance;
  const cells = (row) => [
    row.member,
    row.told ? html`<span class="warn">${row.told}</span>` : row.instance === own ? "this page is here" : "",
    row.connections,
    row.nodes,
    time(row.since),
    row.version,
    html`<span class="mono">${row.instance}</span>`,
  ];
  return html`
    <section>
      <h2>Members</h2>
      <p class="quiet" role="status" id="member-count">${members.length} of ${rows.length} gateways answer</p>
      <${Rows} caption="Members" columns=${COLUMNS} rows=${rows} cells=${cells} keyOf=${(row) => row.instance ?? `${row.told} ${row.member}`} empty="None." />
    </section>
  `;
}

/** What is not as it should be in the cluster, as the parts of an alert. */
export function Absences({ cluster }) {
  const { lost, deaf, missing, gone } = cluster;
  return html`
    ${lost && html`<p class="notice bad-text">This gateway has lost NATS. Connections at other gateways are not shown, their nodes cannot be called, and there are no events.</p>`}
    ${deaf && html`<p class="notice bad-text">Events are out of reach: JetStream, a part of NATS, does not answer. Lists are renewed all the same.</p>`}
    ${!lost && missing.length > 0 && html`<p class="notice warn">No answer of ${missing.join(", ")}: what is there is not shown.</p>`}
    ${gone.size > 0 && html`<p class="notice warn">Gone: ${[...gone].map(([name, since]) => `${name} since ${time(since)}`).join(", ")}. <button type="button" class="plain" onClick=${() => cluster.forget()}>Dismiss</button></p>`}
  `;
}
