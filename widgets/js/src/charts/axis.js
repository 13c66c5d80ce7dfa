// Axes: where ticks stand, and how numbers read beside them.

/** @param {number} span @param {number} count */
function unitOf(span, count) {
  const power = 10 ** Math.floor(Math.log10(span / count));
  return power * ([1, 2, 5, 10].find((each) => span / (power * each) <= count) ?? 10);
}

/**
 * Round numbers between two, about `count` of them and at least two.
 * @param {number} low @param {number} high @param {number} count
 */
export function linearTicks(low, high, count) {
  if (!(high > low)) return [low];
  const unit = unitOf(high - low, count);
  const first = Math.ceil(low / unit - 1e-9);
  const length = Math.floor(high / unit + 1e-9) - first + 1;
  if (length < 2 && count < 20) return linearTicks(low, high, count + 1); // a single one says nothing of the scale
  return Array.from({ length }, (_, at) => Number(((first + at) * unit).toPrecision(12)));
}

/**
 * Powers of ten between two positive numbers, thinned to about `count`; 1, 2 and 5 of each where there are few.
 * @param {number} low @param {number} high @param {number} count
 */
export function logTicks(low, high, count) {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.max(1, Math.ceil((to - from) / count));
  for (const parts of to - from <= Math.max(1, count / 3) ? [[1, 2, 5]] : [[1], [1, 3], [1, 2, 5]]) {
    const values = [];
    for (let power = Math.ceil(from / every) * every; power <= to; power += every)
      for (const part of parts) values.push(Number(`${part}e${power}`));
    const inside = values.filter((each) => each >= low * (1 - 1e-9) && each <= high * (1 + 1e-9));
    if (inside.length >= 2) return inside;
  }
  return linearTicks(low, high, count).filter((each) => each > 0);
}

/** A measured value in at most four digits. @param {number} value */
export function figure(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "not a number" : value > 0 ? "infinite" : "−infinite";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6))
    return value
      .toExponential(size < 1e-3 ? 1 : 2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e")
      .replace("-", "−")
      .replace("e-", "e−");
  if (size >= 10000) return grouped(value).replace("-", "−");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

/** A step on the axis. @param {number} step */
export const stepText = (step) => (step >= 1e6 ? `${Number((step / 1e6).toPrecision(4))}M` : grouped(step));

/** What is left, in words. @param {number} seconds */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const [minutes, hours] = [Math.floor(whole / 60), Math.floor(whole / 3600)];
  if (minutes < 10) return `${minutes} min ${whole % 60} s`;
  return minutes < 60 ? `${minutes} min` : `${hours} h ${minutes % 60} min`;
}

/** @param {number} value */
export const grouped = (value) => Math.round(value).toLocaleString("en-GB");

/** For the ticks of an axis. @param {number} value */
export const short = (value) =>
  value < 10000 ? grouped(value) : value.toLocaleString("en-GB", { notation: "compact" });

/** A share as a percentage: two digits behind the point below 1 %. @param {number} value */
export const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.01 ? 2 : 1)} %`;
