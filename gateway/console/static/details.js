// One connection: what it does now, or how it ended, and the way to close it.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { away, size, span, time } from "./rows.js";

const EVERY = 2_000;

/** A dialog; calls `onDone(message)` when it is closed. */
export function Details({ session, connection, onDone }) {
  const { connId } = connection;
  const dialog = useRef(null);
  const told = useRef("");
  const [seen, setSeen] = useState(connection);
  const [missed, setMissed] = useState(false);
  const [reason, setReason] = useState("");
  const [problem, setProblem] = useState("");
  useEffect(() => {
    dialog.current.showModal();
    const stop = new AbortController();
    watch(session, connId, setSeen, setProblem, stop.signal).then(() => setMissed(true), () => {});
    return () => stop.abort();
  }, []);
  const end = async (event) => {
    event.preventDefault();
    try {
      await session.client.call("connection.close", { connId, reason });
      told.current = `Closed the connection of ${seen.name}.`;
      dialog.current.close();
    } catch (error) {
      setProblem(error.message);
    }
  };
  const past = session.history.find((one) => one.connId === connId);
  const gone = Boolean(past) || missed;
  return html`
    <dialog ref=${dialog} aria-labelledby="details-title" onClose=${() => onDone(told.current)}>
      <h2 id="details-title">${seen.name}</h2>
      <dl>
        <dt>connId</dt><dd class="mono">${connId}</dd>
        <dt>Role</dt><dd>${seen.role}</dd>
        <dt>From</dt><dd>${seen.remote}</dd>
        ${seen.member && html`<dt>At</dt><dd>${seen.member}</dd>`}
        <dt>Open since</dt><dd>${time(seen.openedAt)}</dd>
        ${seen.held && html`<dt>Link</dt><dd class="warn">${away(seen)}</dd>`}
        <dt>Last byte</dt><dd>${time(seen.lastSeenAt)}</dd>
        <dt>Messages</dt><dd>${seen.messagesIn} in, ${seen.messagesOut} out</dd>
        <dt>Bytes</dt><dd>${seen.bytesIn === undefined ? "" : `${size(seen.bytesIn)} in, ${size(seen.bytesOut)} out`}</dd>
        <dt>In flight</dt><dd>${seen.inFlight} requests</dd>
        <dt>Waiting for it</dt><dd>${size(seen.outboxBytes ?? 0)}</dd>
      </dl>
      <p class="bad-text" role="alert">${problem}</p>
      <p class="warn" role="status">${gone && `It has ended. ${past ? `${past.cause}, code ${past.code} ${past.reason}, after ${span(past.duration)}` : ""}`}</p>
      <form onSubmit=${end}>
        <label for="reason">Reason, which its client sees</label>
        <input id="reason" class="whole" maxlength="120" value=${reason} readonly=${gone} onInput=${(event) => setReason(event.target.value)} />
        <p class="bar">
          <button class="bad" disabled=${gone}>Close this connection</button>
          <button type="button" class="plain" onClick=${() => dialog.current.close()}>Back</button>
        </p>
      </form>
    </dialog>
  `;
}

/** Poll; resolves when the connection has ended. */
async function watch(session, connId, onSeen, onProblem, signal) {
  for (;;) {
    try {
      onSeen(await session.client.call("connection.get", { connId }, { signal }));
      onProblem("");
    } catch (error) {
      signal.throwIfAborted();
      const missing = error.data?.missing ?? []; // gateways that have not answered, one of which may have it
      if (error.name === "not_found" && missing.length === 0) return;
      onProblem(missing.length > 0 ? `No answer of ${missing.join(", ")}.` : error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY));
    signal.throwIfAborted();
  }
}
