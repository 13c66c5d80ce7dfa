// Two pictures of one subject: the width at which both are shown, and the map of where they differ.

const NEARLY = 0.9; // of the room: so much is filled for the sake of square pixels

/**
 * The width, in CSS pixels, at which pictures of one subject are all shown: a whole multiple of each one's own width,
 * or of the widest that fits, where that nearly fills the room; else the room.
 * @param {{width: number, height: number}[]} sizes
 * @param {number} room for the width
 * @param {number} tallest height
 */
export function shownWidth(sizes, room, tallest) {
  const most = Math.floor(Math.min(room, ...sizes.map(({ width, height }) => (tallest * width) / height)));
  const fitting = sizes.map(({ width }) => width).filter((width) => width <= most);
  if (!fitting.length) return Math.max(1, most);
  /** @param {number} a @param {number} b @returns {number} */
  const divisor = (a, b) => (b ? divisor(b, a % b) : a);
  const common = fitting.reduce((a, b) => (a * b) / divisor(a, b));
  const base = common <= most ? common : Math.max(...fitting);
  const whole = base * Math.floor(most / base);
  return whole >= NEARLY * most ? whole : most;
}

const HEAT = [
  [0, 0, 4],
  [40, 11, 84],
  [101, 21, 110],
  [159, 42, 99],
  [212, 72, 66],
  [245, 125, 21],
  [250, 193, 39],
  [252, 255, 164],
];

/**
 * Colour of a share in [0, 1], dark to bright.
 * @param {number} share
 * @returns {[number, number, number]}
 */
export function heat(share) {
  const place = Math.min(1, Math.max(0, share)) * (HEAT.length - 1);
  const low = Math.min(HEAT.length - 2, Math.floor(place));
  const part = place - low;
  const mix = (/** @type {number} */ channel) =>
    Math.round(HEAT[low][channel] * (1 - part) + HEAT[low + 1][channel] * part);
  return [mix(0), mix(1), mix(2)];
}

/**
 * The absolute difference of two RGBA pictures, mean over the three colours, as a heat map.
 * @param {ArrayLike<number>} one
 * @param {ArrayLike<number>} other
 * @param {number} [most] difference, of 255, that gets the brightest colour; left out, the largest there is
 */
export function errorMap(one, other, most) {
  const count = one.length / 4;
  const errors = new Float32Array(count);
  let largest = 0;
  let sum = 0;
  for (let pixel = 0; pixel < count; pixel += 1) {
    let error = 0;
    for (let channel = 0; channel < 3; channel += 1)
      error += Math.abs(one[4 * pixel + channel] - other[4 * pixel + channel]) / 3;
    errors[pixel] = error;
    largest = Math.max(largest, error);
    sum += error;
  }
  const rgba = new Uint8ClampedArray(4 * count);
  const scale = most ?? largest;
  for (let pixel = 0; pixel < count; pixel += 1) {
    rgba.set(heat(scale ? errors[pixel] / scale : 0), 4 * pixel);
    rgba[4 * pixel + 3] = 255;
  }
  return { rgba, largest, mean: count ? sum / count : 0 };
}
