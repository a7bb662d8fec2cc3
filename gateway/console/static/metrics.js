// Reads Prometheus' text format, as far as the gateway writes it, and turns two scrapes into rates and quantiles.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** name → [{labels, value}] */
export function parse(text) {
  const families = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    if (!families.has(match[1])) families.set(match[1], []);
    families.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return families;
}

/** The sum of a family's values, undefined if it has none. */
export function sum(families, name) {
  return families.get(name)?.reduce((total, sample) => total + sample.value, 0);
}

/** The buckets of a histogram over all of its labels: [[upper bound, cumulative count]], by bound. */
export function buckets(families, name) {
  const counts = new Map();
  for (const { labels, value } of families.get(`${name}_bucket`) ?? []) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return [...counts].sort(([one], [other]) => one - other);
}

/** The quantile of what was observed between two scrapes, as in Prometheus' histogram_quantile; null for nothing. */
export function quantile(share, now, before) {
  const counts = now.map(([bound, count], index) => [bound, count - (before[index]?.[1] ?? 0)]);
  const total = counts.at(-1)?.[1] ?? 0;
  if (!total) return null;
  const rank = share * total;
  let low = 0;
  let below = 0;
  for (const [bound, count] of counts) {
    if (count >= rank) {
      if (bound === Infinity) return low;
      return low + ((bound - low) * (rank - below)) / Math.max(1, count - below);
    }
    low = bound;
    below = count;
  }
  return low;
}
