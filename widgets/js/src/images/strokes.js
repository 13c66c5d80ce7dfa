// What strokes do to codes, and the lines drawn around cells: functions of plain values.

/**
 * @typedef {{rows: number, columns: number}} Shape of a grid
 * @typedef {{key: number, number: number, stroke: string, cells: number[], codes: number | number[]}} Edit
 */

/**
 * The cells under a square brush.
 * @param {number} row of its middle, in cells and parts of them
 * @param {number} column
 * @param {number} size of its sides, in cells
 * @param {Shape} shape
 */
export function brushed(row, column, size, { rows, columns }) {
  const [top, left] = [Math.round(row - size / 2), Math.round(column - size / 2)];
  const cells = [];
  for (let y = Math.max(0, top); y < Math.min(rows, top + size); y += 1)
    for (let x = Math.max(0, left); x < Math.min(columns, left + size); x += 1) cells.push(y * columns + x);
  return cells;
}

/**
 * Places on the way from one to another, the last one included, so close that a brush leaves no gap.
 * @param {[number, number]} from
 * @param {[number, number]} to
 * @returns {[number, number][]}
 */
export function between(from, to) {
  const steps = Math.max(1, Math.ceil(2 * Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]))));
  return Array.from({ length: steps }, (_, step) => {
    const part = (step + 1) / steps;
    return [from[0] + part * (to[0] - from[0]), from[1] + part * (to[1] - from[1])];
  });
}

/**
 * The cells of the same code that hang together with one, by their sides.
 * @param {ArrayLike<number>} codes
 * @param {number} at
 * @param {Shape} shape
 */
export function connected(codes, at, { rows, columns }) {
  const reached = new Set([at]);
  for (const cell of reached) {
    const [row, column] = [Math.floor(cell / columns), cell % columns];
    const beside = [
      row > 0 && cell - columns,
      row < rows - 1 && cell + columns,
      column > 0 && cell - 1,
      column < columns - 1 && cell + 1,
    ];
    for (const next of beside) if (next !== false && codes[next] === codes[at]) reached.add(next);
  }
  return [...reached].sort((one, other) => one - other);
}

/** @param {number} count @param {(cell: number) => boolean} holds */
export const cellsWhere = (count, holds) => Array.from({ length: count }, (_, cell) => cell).filter(holds);

/**
 * The cells of the rectangle that has two cells in opposite corners.
 * @param {number} one
 * @param {number} other
 * @param {Shape} shape
 */
export function rectangle(one, other, { rows, columns }) {
  const [rowsOf, columnsOf] = [
    [one, other].map((cell) => Math.floor(cell / columns)),
    [one, other].map((cell) => cell % columns),
  ];
  const inside = (/** @type {number} */ value, /** @type {number[]} */ ends) =>
    value >= Math.min(...ends) && value <= Math.max(...ends);
  return cellsWhere(
    rows * columns,
    (cell) => inside(Math.floor(cell / columns), rowsOf) && inside(cell % columns, columnsOf),
  );
}

/**
 * Codes with edits written over them.
 * @param {Int32Array} codes
 * @param {Iterable<Edit>} edits
 */
export function replay(codes, edits) {
  const painted = codes.slice();
  for (const { cells, codes: fresh } of edits)
    cells.forEach((cell, index) => (painted[cell] = typeof fresh === "number" ? fresh : fresh[index]));
  return painted;
}

/** @param {ArrayLike<number>} codes */
export function tally(codes) {
  const counts = /** @type {Map<number, number>} */ (new Map());
  for (let cell = 0; cell < codes.length; cell += 1) counts.set(codes[cell], (counts.get(codes[cell]) ?? 0) + 1);
  return counts;
}

/**
 * Random codes, the same for the same seed (the generator is mulberry32).
 * @param {number} seed
 * @param {number} count
 * @param {number} codebook
 */
export function randomCodes(seed, count, codebook) {
  let state = seed >>> 0;
  return Array.from({ length: count }, () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * codebook);
  });
}

/**
 * The outline of cells, as the data of an SVG path in units of cells.
 * @param {Iterable<number>} cells
 * @param {Shape} shape
 */
export function outline(cells, { columns }) {
  const inside = new Set(cells);
  let path = "";
  for (const cell of inside) {
    const [row, column] = [Math.floor(cell / columns), cell % columns];
    if (!inside.has(cell - columns)) path += `M${column} ${row}h1`;
    if (!inside.has(cell + columns)) path += `M${column} ${row + 1}h1`;
    if (column === 0 || !inside.has(cell - 1)) path += `M${column} ${row}v1`;
    if (column === columns - 1 || !inside.has(cell + 1)) path += `M${column + 1} ${row}v1`;
  }
  return path;
}

/** @param {Iterable<number>} cells @param {Shape} shape */
export const squares = (cells, { columns }) =>
  [...cells].map((cell) => `M${cell % columns} ${Math.floor(cell / columns)}h1v1h-1z`).join("");

/** @param {Shape} shape */
export const lines = ({ rows, columns }) =>
  Array.from({ length: rows - 1 }, (_, row) => `M0 ${row + 1}h${columns}`).join("") +
  Array.from({ length: columns - 1 }, (_, column) => `M${column + 1} 0v${rows}`).join("");

/**
 * The file of exported codes, one row of the grid in a line.
 * @param {ArrayLike<number>} codes
 * @param {Shape} shape
 * @param {number | null} codebook
 */
export function codesFile(codes, { rows, columns }, codebook) {
  const row = (/** @type {number} */ at) =>
    `  [${Array.from(codes)
      .slice(at * columns, (at + 1) * columns)
      .join(", ")}]`;
  const body = Array.from({ length: rows }, (_, at) => row(at)).join(",\n");
  return `{"codes": [\n${body}\n], "codebook": ${codebook}}\n`;
}

/**
 * What is in a file of codes. Throws an Error written for the person who chose it; the kernel checks the codes.
 * @param {string} text
 * @param {string} name
 * @returns {{codes: unknown, codebook?: unknown}}
 */
export function readCodes(text, name) {
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    throw new Error(`“${name}” is not JSON. Codes come as {"codes": [[3, 1], [2, 3]], "codebook": 512}.`);
  }
  const { codes, codebook } = Array.isArray(content) ? { codes: content, codebook: null } : (content ?? {});
  if (!Array.isArray(codes))
    throw new Error(`“${name}” holds no codes. They come as {"codes": [[3, 1], [2, 3]], "codebook": 512}.`);
  return { codes, codebook: codebook ?? null };
}
