// From strokes of a pen to the image that the network reads. No canvas is involved: node draws the same pixels.
//
// The training digits fill 26 of the 32 rows, whatever their size was on paper, are seldom wider than 22 columns, and their
// pens are about 4 to 5 pixels wide with an edge that fades over one pixel. A drawing is brought to the same measures.

export const SIDE = 32;
export const TALL = 26; // pixels of ink from top to bottom
export const WIDE = 22; // at most, from left to right
export const PEN = 4; // width of a stroke

/**
 * Strokes, each a list of [x, y] in any unit, y downwards, as 32 x 32 pixels in [0, 1], ink 1 on paper 0.
 * Moved to the centre, scaled to the height, squeezed where too wide, drawn with one pen.
 */
export function rasterise(strokes, { tall = TALL, wide = WIDE, pen = PEN } = {}) {
  const pixels = new Float32Array(SIDE * SIDE);
  const points = strokes.flat();
  if (!points.length) return pixels;
  const [left, right] = range(points.map(([x]) => x));
  const [top, bottom] = range(points.map(([, y]) => y));
  const height = Math.max(bottom - top, (right - left) / 2, 1e-6); // a flat line is not blown up to the full height
  const down = (tall - pen) / height;
  const across = Math.min(down, (wide - pen) / Math.max(right - left, 1e-6));
  const place = ([x, y]) => [SIDE / 2 + (x - (left + right) / 2) * across, SIDE / 2 + (y - (top + bottom) / 2) * down];
  for (const stroke of strokes) {
    const path = stroke.map(place);
    for (let i = 0; i < path.length; i++) segment(pixels, path[Math.max(i - 1, 0)], path[i], pen / 2);
  }
  return pixels;
}

function range(values) {
  return [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
}

/** One straight piece of a stroke with round ends; a pixel is covered by how far its centre lies inside. */
function segment(pixels, [x0, y0], [x1, y1], radius) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const length2 = dx * dx + dy * dy;
  for (let row = 0; row < SIDE; row++) {
    for (let column = 0; column < SIDE; column++) {
      const [x, y] = [column + 0.5 - x0, row + 0.5 - y0];
      const along = length2 ? Math.min(1, Math.max(0, (x * dx + y * dy) / length2)) : 0;
      const distance = Math.hypot(x - along * dx, y - along * dy);
      const covered = Math.min(1, Math.max(0, radius - distance + 0.5));
      if (covered > pixels[row * SIDE + column]) pixels[row * SIDE + column] = covered;
    }
  }
}
