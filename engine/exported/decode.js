// From an image to the input of an exported model, and from its outputs to objects with masks.
//
//   import { prepare, decode } from "./decode.js";
//   const { image } = prepare(imageData, meta);         // meta: the content of model.json
//   ... run the model on image, uint8 [1,H,W,3] ...
//   const detections = decode(scores, masks, meta, [imageData.height, imageData.width]);
//
// An ES module without dependencies, for browsers and node. DECODE.md has the arithmetic in words.

const BITS = 22; // of the fixed-point weights of Pillow's resizing, whose bytes `prepare` gives

/**
 * The image inside the canvas of the model: shrunk or enlarged to fit at the top left.
 *
 * @param {{data: ArrayLike<number>, width: number, height: number}} pixels bytes of an image, row
 *   by row, as RGB or as RGBA (ImageData); alpha is not used
 * @param {object} meta the content of model.json
 * @returns {{image: Uint8Array, size: [number, number]}} RGB bytes [1,H,W,3], and the height and
 *   width of the part that is the image
 */
export function prepare(pixels, meta) {
  const size = fit([pixels.height, pixels.width], meta);
  const resized = resize(pixels, size); // [h,w,3]
  const image = new Uint8Array(meta.height * meta.width * 3);
  const pad = meta.pad_colour.map(Math.round);
  for (let at = 0; at < image.length; at++) image[at] = pad[at % 3];
  for (let row = 0; row < size[0]; row++) {
    const line = resized.subarray(row * size[1] * 3, (row + 1) * size[1] * 3);
    image.set(line, row * meta.width * 3);
  }
  return { image, size };
}

/**
 * The objects that a model found, best first.
 *
 * @param {Float32Array} scores output of the model [1,Q,K]
 * @param {Float32Array} masks output of the model [1,Q,h,w]
 * @param {object} meta the content of model.json
 * @param {[number, number]} original height and width of the image, for the masks
 * @param {number} threshold detections with lower scores are left out
 * @returns {{index: number, id: number, name: string, score: number, query: number,
 *   box: [number, number, number, number], area: number, mask: Uint8Array}[]}
 *   index, id, name: of the class. box: x0, y0, x1, y1 in pixels, x1 and y1 exclusive. mask: 1
 *   inside the object, of the pixels in the box, row by row. area: pixels of the object.
 */
export function decode(scores, masks, meta, original, threshold = meta.threshold) {
  const cells = [meta.height / meta.mask_stride, meta.width / meta.mask_stride];
  const length = cells[0] * cells[1];
  const size = fit(original, meta);
  const rows = taps(cells[0], meta.height, size[0], original[0]);
  const columns = taps(cells[1], meta.width, size[1], original[1]);
  const order = [...best(scores, meta.categories.length)].filter(({ score }) => score > threshold);
  order.sort((one, other) => other.score - one.score); // stable
  const found = [];
  for (const { query, index, score } of order.slice(0, meta.config.max_detections)) {
    const grid = masks.subarray(query * length, (query + 1) * length); // [h,w]
    const shape = fullMask(grid, cells[1], rows, columns);
    const { id, name } = meta.categories[index];
    if (shape) found.push({ index, id, name, score, query, grid, ...shape });
  }
  const twice = (one, place) =>
    found
      .slice(0, place)
      .some((better) => better.index === one.index && iou(better.grid, one.grid) > meta.duplicate_iou);
  const kept = found.filter((one, place) => !twice(one, place));
  return kept.map(({ grid, ...detection }) => detection);
}

/** Height and width of an image inside the canvas of the model. */
export function fit(original, meta) {
  const factor = Math.min(meta.height / original[0], meta.width / original[1]);
  return original.map((side) => Math.max(1, roundHalfEven(side * factor)));
}

function roundHalfEven(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + (down % 2) : Math.round(x);
}

/** The class with the highest score of each query [Q,K]. */
function* best(scores, classes) {
  for (let query = 0; query * classes < scores.length; query++) {
    const row = scores.subarray(query * classes, (query + 1) * classes);
    const score = Math.max(...row);
    yield { query, index: row.indexOf(score), score };
  }
}

/** Intersection over union of two masks, where their logits are above zero. */
function iou(one, other) {
  let shared = 0;
  let either = 0;
  for (let at = 0; at < one.length; at++) {
    shared += one[at] > 0 && other[at] > 0;
    either += one[at] > 0 || other[at] > 0;
  }
  return shared / Math.max(1, either);
}

/**
 * One side: from the cells of the mask logits to the canvas, cut to the image, to its original
 * size, all bilinear. Each pixel is the sum of up to three cells from `first` on, times `weights`.
 */
function taps(cells, canvas, size, original) {
  const inner = linear(cells, canvas);
  const outer = linear(size, original);
  const first = new Int32Array(original);
  const weights = new Float32Array(original * 3);
  for (let pixel = 0; pixel < original; pixel++) {
    first[pixel] = inner.low[outer.low[pixel]];
    const parts = [
      [outer.low[pixel], 1 - outer.share[pixel]],
      [outer.high[pixel], outer.share[pixel]],
    ];
    for (const [at, part] of parts) {
      const start = pixel * 3 - first[pixel];
      weights[start + inner.low[at]] += part * (1 - inner.share[at]);
      weights[start + inner.high[at]] += part * inner.share[at];
    }
  }
  return { first, weights };
}

/** Bilinear resizing of one side with half-pixel centres: value = low + share * (high - low). */
function linear(from, to) {
  const low = new Int32Array(to);
  const high = new Int32Array(to);
  const share = new Float64Array(to);
  for (let pixel = 0; pixel < to; pixel++) {
    const place = Math.max(0, ((pixel + 0.5) * from) / to - 0.5);
    low[pixel] = Math.min(Math.floor(place), from - 1);
    high[pixel] = Math.min(low[pixel] + 1, from - 1);
    share[pixel] = place - low[pixel];
  }
  return { low, high, share };
}

/** Logits [h,w] of one mask -> box, area and mask at the original size; null if it is empty. */
function fullMask(grid, width, rows, columns) {
  // A resized logit is a mean of cells, so it is above zero only where one of them is.
  const hotRows = new Uint8Array(grid.length / width + 2);
  const hotColumns = new Uint8Array(width + 2);
  for (let at = 0; at < grid.length; at++) {
    if (grid[at] > 0) hotRows[Math.floor(at / width)] = hotColumns[at % width] = 1;
  }
  const [top, bottom] = reach(hotRows, rows);
  const [left, right] = reach(hotColumns, columns);
  const mask = new Uint8Array(Math.max(0, bottom - top) * Math.max(0, right - left));
  const wide = [-1, -1, -1].map(() => ({ row: -1, values: new Float32Array(right - left) }));
  const box = [right, bottom, left, top];
  let area = 0;
  for (let y = top, at = 0; y < bottom; y++) {
    const lines = [0, 1, 2].map((tap) => {
      const row = rows.first[y] + tap;
      const line = wide[row % 3]; // of the last three rows of cells
      if (line.row !== row && row * width < grid.length) {
        line.row = row;
        widen(grid.subarray(row * width, (row + 1) * width), columns, left, line.values);
      }
      return line.values;
    });
    const [a, b, c] = rows.weights.subarray(y * 3, y * 3 + 3);
    for (let x = left; x < right; x++, at++) {
      const place = x - left;
      if (a * lines[0][place] + b * lines[1][place] + c * lines[2][place] > 0) {
        mask[at] = 1;
        area++;
        box[0] = Math.min(box[0], x);
        box[1] = Math.min(box[1], y);
        box[2] = Math.max(box[2], x + 1);
        box[3] = Math.max(box[3], y + 1);
      }
    }
  }
  if (!area) return null;
  const tight = new Uint8Array((box[3] - box[1]) * (box[2] - box[0]));
  for (let y = box[1]; y < box[3]; y++) {
    const start = (y - top) * (right - left) - left;
    const line = mask.subarray(start + box[0], start + box[2]);
    tight.set(line, (y - box[1]) * (box[2] - box[0]));
  }
  return { box, area, mask: tight };
}

/** The first and one past the last pixel that cells with `hot` touch. */
function reach(hot, { first }) {
  const touched = (pixel) => hot[first[pixel]] || hot[first[pixel] + 1] || hot[first[pixel] + 2];
  let start = 0;
  let stop = first.length;
  while (start < stop && !touched(start)) start++;
  while (stop > start && !touched(stop - 1)) stop--;
  return [start, stop];
}

/** A row of cells at the pixels from `left` on, into `values`. */
function widen(cells, { first, weights }, left, values) {
  for (let at = 0; at < values.length; at++) {
    const pixel = left + at;
    let sum = 0;
    for (let tap = 0; tap < 3; tap++) {
      const weight = weights[pixel * 3 + tap];
      if (weight) sum += weight * cells[first[pixel] + tap];
    }
    values[at] = sum;
  }
}

/**
 * An image resized with a triangle filter that widens as it shrinks, to RGB bytes [h,w,3].
 *
 * The same bytes as Pillow's BILINEAR: columns before rows, weights in fixed point, sums rounded to
 * bytes after each. The filter of a browser's canvas is another one.
 */
export function resize({ data, width, height }, [h, w]) {
  const depth = data.length / (width * height); // 3 or 4 bytes per pixel
  const wide = new Uint8Array(height * w * 3);
  const across = filter(width, w);
  for (let row = 0, to = 0; row < height; row++) {
    for (let column = 0; column < w; column++) {
      const { first, weights } = across[column];
      let from = (row * width + first) * depth;
      let red = 1 << (BITS - 1);
      let green = red;
      let blue = red;
      for (let tap = 0; tap < weights.length; tap++, from += depth) {
        red += data[from] * weights[tap];
        green += data[from + 1] * weights[tap];
        blue += data[from + 2] * weights[tap];
      }
      wide[to++] = red >> BITS;
      wide[to++] = green >> BITS;
      wide[to++] = blue >> BITS;
    }
  }
  const result = new Uint8Array(h * w * 3);
  const sums = new Int32Array(w * 3);
  filter(height, h).forEach(({ first, weights }, row) => {
    sums.fill(1 << (BITS - 1));
    for (let tap = 0; tap < weights.length; tap++) {
      const line = wide.subarray((first + tap) * w * 3, (first + tap + 1) * w * 3);
      for (let at = 0; at < sums.length; at++) sums[at] += line[at] * weights[tap];
    }
    for (let at = 0; at < sums.length; at++) result[row * w * 3 + at] = sums[at] >> BITS;
  });
  return result;
}

/** For each pixel of the result: the first pixel that the filter sees, and its weights. */
function filter(from, to) {
  const scale = from / to;
  const radius = Math.max(1, scale);
  return Array.from({ length: to }, (_, pixel) => {
    const centre = (pixel + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - radius + 0.5));
    const stop = Math.min(from, Math.trunc(centre + radius + 0.5));
    const weights = new Float64Array(stop - first);
    for (let at = 0; at < weights.length; at++) {
      weights[at] = Math.max(0, 1 - Math.abs((first + at - centre + 0.5) / radius));
    }
    const sum = weights.reduce((one, other) => one + other, 0);
    return { first, weights: Int32Array.from(weights, (x) => Math.trunc(0.5 + (x / sum) * 2 ** BITS)) };
  });
}
