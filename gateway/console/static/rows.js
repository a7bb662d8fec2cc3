// A table of very many rows: only the visible ones are in the page.

import { html, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";

const ROW = 34; // px, as in console.css
const AROUND = 10; // rows above and below the visible ones

/** `columns`: [{name, title, number, look}], `cells(row)`: a value for each; with `onSort` the table can be sorted by those with a name. */
export function Rows({ caption, columns, rows, cells, keyOf, sort, onSort, empty }) {
  const box = useRef(null);
  const [seen, setSeen] = useState({ from: 0, to: 3 * AROUND });
  useLayoutEffect(() => {
    const look = () => {
      const from = Math.max(0, Math.floor(box.current.scrollTop / ROW) - AROUND);
      const to = from + Math.ceil(box.current.clientHeight / ROW) + 2 * AROUND;
      setSeen((before) => (before.from === from && before.to === to ? before : { from, to }));
    };
    const place = box.current;
    const sized = new ResizeObserver(look);
    sized.observe(place);
    place.addEventListener("scroll", look, { passive: true });
    return () => {
      sized.disconnect();
      place.removeEventListener("scroll", look);
    };
  }, []);
  const from = Math.min(seen.from, Math.max(0, rows.length - 1));
  const shown = rows.slice(from, seen.to);
  return html`
    <div class="table" ref=${box} tabindex="0" role="region" aria-label=${caption}>
      <table aria-rowcount=${rows.length + 1}>
        <thead>
          <tr aria-rowindex="1">
            ${columns.map((column) => html`<${Head} column=${column} sort=${sort} onSort=${onSort} />`)}
          </tr>
        </thead>
        <tbody>
          ${gap("above", from, columns.length)}
          ${shown.map(
            (row, index) => html`
              <tr key=${keyOf(row)} class="row" aria-rowindex=${from + index + 2}>
                ${cells(row).map((cell, at) => html`<td class=${columns[at].number ? "number" : ""} title=${typeof cell === "string" ? cell : undefined}>${cell}</td>`)}
              </tr>
            `,
          )}
          ${gap("below", rows.length - from - shown.length, columns.length)}
        </tbody>
      </table>
      ${rows.length === 0 && html`<p class="quiet empty">${empty}</p>`}
    </div>
  `;
}

function Head({ column, sort, onSort }) {
  const { name, title, number, look } = column;
  const order = sort?.name === name && onSort ? (sort.down ? "descending" : "ascending") : undefined;
  const arrow = order && html`<span aria-hidden="true">${sort.down ? " ▼" : " ▲"}</span>`;
  return html`
    <th scope="col" class=${`${look ?? ""} ${number ? "number" : ""}`} aria-sort=${order}>
      ${onSort && name ? html`<button type="button" onClick=${() => onSort(name)}>${title}${arrow}</button>` : title}
    </th>
  `;
}

function gap(key, count, width) {
  return count > 0 && html`<tr key=${key} aria-hidden="true"><td class="gap" colspan=${width} style=${{ height: `${count * ROW}px` }}></td></tr>`;
}

const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "medium" });

/** A moment, RFC 3339 or a Date, in the reader's time zone; with the date unless it is today. */
export function time(moment) {
  if (!moment) return "";
  const at = new Date(moment);
  if (Number.isNaN(at.getTime())) return "";
  return (at.toDateString() === new Date().toDateString() ? CLOCK : MOMENT).format(at);
}

/** Seconds in words. */
export function span(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
}

/** For how much longer a connection that has lost its link is held, in words. */
export function away({ holdLeftMs }) {
  return `away, held for ${span((holdLeftMs ?? 0) / 1000)} more`;
}

/** Bytes in words. */
export function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`;
}
