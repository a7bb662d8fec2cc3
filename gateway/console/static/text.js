// Text of whatever a peer has sent. Nothing here raises, and nothing gets longer or deeper than it is to be.

const LONGEST = 300; // characters of a single value
const DEEPEST = 50; // objects and arrays in each other

/** The beginning of a text, with a mark if there is more. */
export function cut(text, most = LONGEST) {
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

/** A value as JSON, up to `most` characters. What is deeper than 50 is a mark; so is what JSON does not have. */
export function json(value, { most = LONGEST, indent = 0 } = {}) {
  let text = "";
  const write = (one, depth) => {
    if (one === null || typeof one !== "object") {
      text += leaf(one, most);
      return;
    }
    const [open, close] = Array.isArray(one) ? "[]" : "{}";
    const keys = Object.keys(one);
    if (keys.length > 0 && depth === DEEPEST) {
      text += `${open}…${close}`;
      return;
    }
    text += open;
    for (let at = 0; at < keys.length && text.length <= most; at++) {
      text += `${at > 0 ? "," : ""}${line(indent, depth + 1)}`;
      if (open === "{") text += `${leaf(keys[at], most)}:${indent > 0 ? " " : ""}`;
      write(one[keys[at]], depth + 1);
    }
    text += `${keys.length > 0 ? line(indent, depth) : ""}${close}`;
  };
  write(value, 0);
  return cut(text, most);
}

function leaf(value, most) {
  if (typeof value === "string") return JSON.stringify(value.slice(0, most));
  return value === null || typeof value === "number" || typeof value === "boolean" ? JSON.stringify(value) : "…";
}

function line(indent, depth) {
  return indent > 0 ? `\n${" ".repeat(indent * depth)}` : "";
}

/** A value as people read it: a text as it is, anything else as JSON; empty for undefined. */
export function shown(value, most = LONGEST) {
  if (value === undefined) return "";
  return typeof value === "string" ? cut(value, most) : json(value, { most });
}
