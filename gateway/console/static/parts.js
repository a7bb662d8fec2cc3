// What keeps a page alive and small: a part that fails says so in its place, and of a long list few are drawn.

import { Component, html, useState } from "./vendor/htm-preact.js";
import { shown } from "./text.js";

/**
 * Shows its children; if one of them cannot be drawn, says that instead. `what` names them. A new `key` tries again, and
 * so does another value of `tries`.
 */
export class Boundary extends Component {
  static getDerivedStateFromError(error) {
    return { problem: shown(error?.message) || "a defect" };
  }

  componentDidUpdate({ tries }) {
    if (tries !== this.props.tries && this.state.problem !== undefined) this.setState({ problem: undefined });
  }

  render({ what, children }, { problem }) {
    if (problem === undefined) return children;
    return html`<p class="bad-text" role="alert">${what} cannot be shown: ${problem}</p>`;
  }
}

/** The first `page` of a list, and a button that shows as many again, if there are more. */
export function useFirst(items, page) {
  const [most, setMost] = useState(page);
  const left = items.length - most;
  const more = left > 0 && html`<button type="button" class="plain" onClick=${() => setMost(most + page)}>${left} more</button>`;
  return [items.slice(0, most), more];
}
