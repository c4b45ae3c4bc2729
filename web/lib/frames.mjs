/** Maps of a run as pixels: what the live view paints. Pure functions, no DOM. */

/** Bytes of a base64 string. */
export function bytes(base64) {
  const text = atob(base64);
  return Uint8ClampedArray.from({ length: text.length }, (_, n) => text.charCodeAt(n));
}

/** RGB bytes (w h 3) as RGBA bytes (w h 4), opaque. */
export function opaque(rgb) {
  const out = new Uint8ClampedArray((rgb.length / 3) * 4).fill(255);
  for (let from = 0, to = 0; from < rgb.length; from += 3, to += 4) {
    out[to] = rgb[from];
    out[to + 1] = rgb[from + 1];
    out[to + 2] = rgb[from + 2];
  }
  return out;
}

/** Regions as RGBA bytes: every pixel in its owner's colour; owners are index + 1, 0 is nobody. Only one if lit >= 0. */
export function ownerPixels(owner, colours, opacity, lit = -1) {
  const out = new Uint8ClampedArray(owner.length * 4);
  owner.forEach((value, n) => {
    const index = value - 1;
    if (index < 0 || (lit >= 0 && index !== lit) || !colours[index]) return;
    out.set([...colours[index], 255 * opacity], n * 4);
  });
  return out;
}

/** One heat map (0..255) as RGBA bytes: the colour, as opaque as it is hot. */
export function heatPixels(heat, colour, opacity) {
  const out = new Uint8ClampedArray(heat.length * 4);
  heat.forEach((value, n) => out.set([...colour, value * opacity], n * 4));
  return out;
}

/** At most limit of the frames, evenly thinned out; the first and the newest stay. */
export function thinned(frames, limit) {
  if (frames.length <= limit) return frames;
  const last = frames.length - 1;
  return Array.from({ length: limit }, (_, n) => frames[Math.round((n * last) / (limit - 1))]);
}
