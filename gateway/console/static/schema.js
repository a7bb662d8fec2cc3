// From the schema of a method's parameters to a form, and from what was typed back to JSON.

/**
 * The fields that a form can have: [{name, kind, required, about, choices, value}], `value` being what its control shows
 * first; null where only JSON will do.
 */
export function fieldsOf(schema) {
  const properties = schema?.properties;
  if (schema?.type !== "object" || properties === null || typeof properties !== "object") return null;
  const required = new Set(Array.isArray(schema.required) ? schema.required : []);
  return Object.entries(properties).map(([name, property]) => fieldOf(name, Object(property), required.has(name)));
}

function fieldOf(name, property, required) {
  const field = { name, required, about: aboutOf(property), kind: kindOf(property), choices: null };
  if (Array.isArray(property.enum)) field.choices = property.enum;
  else if (field.kind === "boolean" && !required && property.default === undefined) field.choices = [true, false];
  if (field.choices) field.kind = "choice";
  return { ...field, value: shown(field, property.default) };
}

function kindOf(property) {
  const type = Array.isArray(property.type) ? property.type.find((one) => one !== "null") : property.type;
  return ["string", "integer", "number", "boolean"].includes(type) ? type : "json";
}

function aboutOf({ title, description, minimum, maximum }) {
  const range = [minimum !== undefined && `from ${minimum}`, maximum !== undefined && `to ${maximum}`].filter(Boolean).join(" ");
  return [title, description, range].filter((text) => typeof text === "string" && text).join(", ");
}

function shown(field, value) {
  if (field.kind === "boolean") return Boolean(value);
  if (value === undefined) return "";
  if (field.kind === "choice") return String(field.choices.indexOf(value));
  return field.kind === "string" ? String(value) : JSON.stringify(value);
}

/** What was typed into all fields, as one object. Throws Error with what is wrong. */
export function typed(fields, values) {
  const params = {};
  for (const field of fields) {
    const value = valueOf(field, values[field.name]);
    if (value !== undefined) params[field.name] = value;
  }
  return params;
}

/** What was typed into one field, as a value; undefined if it is empty. Throws Error with what is wrong. */
export function valueOf(field, text) {
  if (field.kind === "boolean") return text;
  if (text === "") {
    if (field.required && field.kind !== "string") throw new Error(`${field.name} is needed`);
    return field.required ? "" : undefined;
  }
  if (field.kind === "string") return text;
  if (field.kind === "choice") return field.choices[Number(text)];
  if (field.kind === "json") return parsed(field.name, text);
  const number = text.trim() === "" ? NaN : Number(text);
  if (!Number.isFinite(number) || (field.kind === "integer" && !Number.isInteger(number))) {
    throw new Error(`${field.name} must be ${field.kind === "integer" ? "an integer" : "a number"}`);
  }
  return number;
}

/** Parses JSON; throws an Error that names what it was for. */
export function parsed(name, text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${name} is no JSON: ${error.message}`);
  }
}
