// From the schema of a method's parameters to a form, and from what was typed back to JSON. A node says the schema: it
// may be anything.

import { json, shown } from "./text.js";

const MOST_FIELDS = 100; // of a form; with more, JSON is typed
const MOST_CHOICES = 100; // of a field; with more, the value is typed
const LONGEST = 10_000; // characters of a value that a control shows first

/**
 * The fields that a form can have: [{name, kind, required, about, choices, value}], `value` being what its control shows
 * first; null where only JSON will do.
 */
export function fieldsOf(schema) {
  const properties = schema?.properties;
  if (schema?.type !== "object" || properties === null || typeof properties !== "object") return null;
  if (Object.keys(properties).length > MOST_FIELDS) return null;
  const required = new Set(Array.isArray(schema.required) ? schema.required : []);
  return Object.entries(properties).map(([name, property]) => fieldOf(name, Object(property), required.has(name)));
}

function fieldOf(name, property, required) {
  const field = { name, required, about: aboutOf(property), kind: kindOf(property), choices: null };
  if (Array.isArray(property.enum) && property.enum.length <= MOST_CHOICES) field.choices = property.enum;
  else if (field.kind === "boolean" && !required && property.default === undefined) field.choices = [true, false];
  if (field.choices) field.kind = "choice";
  return { ...field, value: first(field, property.default) };
}

function kindOf(property) {
  const type = Array.isArray(property.type) ? property.type.find((one) => one !== "null") : property.type;
  return ["string", "integer", "number", "boolean"].includes(type) ? type : "json";
}

function aboutOf({ title, description, minimum, maximum }) {
  const range = [minimum !== undefined && `from ${shown(minimum)}`, maximum !== undefined && `to ${shown(maximum)}`];
  const texts = [title, description, range.filter(Boolean).join(" ")].filter((text) => typeof text === "string" && text);
  return texts.map((text) => shown(text)).join(", ");
}

function first(field, value) {
  if (field.kind === "boolean") return Boolean(value);
  if (value === undefined) return "";
  if (field.kind === "choice") return field.choices.includes(value) ? String(field.choices.indexOf(value)) : "";
  if (field.kind === "string" && typeof value === "string") return value.slice(0, LONGEST);
  const text = json(value, { most: LONGEST });
  return isJson(text) ? text : ""; // too long or too deep, it would have lost something
}

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** What was typed into all fields, as one object. Throws Error with what is wrong. */
export function typed(fields, values) {
  const params = fields.map((field) => [field.name, valueOf(field, values[field.name])]);
  return Object.fromEntries(params.filter(([, value]) => value !== undefined)); // a name may be __proto__
}

/** What was typed into one field, as a value; undefined if it is empty. Throws Error with what is wrong. */
export function valueOf(field, text) {
  if (field.kind === "boolean") return text;
  if (text === "") {
    if (field.required && field.kind !== "string") throw new Error(`${shown(field.name)} is needed`);
    return field.required ? "" : undefined;
  }
  if (field.kind === "string") return text;
  if (field.kind === "choice") return field.choices[Number(text)];
  if (field.kind === "json") return parsed(field.name, text);
  const number = text.trim() === "" ? NaN : Number(text);
  if (!Number.isFinite(number) || (field.kind === "integer" && !Number.isInteger(number))) {
    throw new Error(`${shown(field.name)} must be ${field.kind === "integer" ? "an integer" : "a number"}`);
  }
  return number;
}

/** Parses JSON; throws an Error that names what it was for. */
export function parsed(name, text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${shown(name)} is no JSON: ${error.message}`);
  }
}
