/** One colour per region, the same as in the pictures of asyndm_core/pictures.py, whose table the server sends. */

/**
 * The colour of a region as [r, g, b] bytes. After the table's end the colours come again, paler, then darker.
 * @param {number} index of the region; table: [r, g, b] bytes each
 */
export function regionColour(index, table) {
  const round = Math.floor(index / table.length);
  const towards = round % 2 === 0 ? 255 : 0;
  const share = round > 0 ? 0.4 : 0;
  return table[index % table.length].map((byte) => Math.round(byte + share * (towards - byte)));
}

/** A colour as CSS, with an opacity in [0, 1]. */
export const css = ([r, g, b], opacity = 1) => `rgba(${r}, ${g}, ${b}, ${opacity})`;
