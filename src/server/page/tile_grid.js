// Which grid of tiles the model cuts a picture into. The same rule as src/vision/tile_grid.cc; a test compares the two
// over many sizes, so a change there is a change here.
"use strict";

// All {columns, rows} with minNum <= columns * rows <= maxNum, by area, then columns.
function tileGrids(minNum, maxNum) {
  const grids = [];
  for (let columns = 1; columns <= maxNum; ++columns)
    for (let rows = 1; rows <= maxNum; ++rows)
      if (columns * rows >= minNum && columns * rows <= maxNum) grids.push({columns, rows});
  return grids.sort((a, b) => a.columns * a.rows - b.columns * b.rows || a.columns - b.columns);
}

// The grid whose aspect ratio is nearest; between equal ones a later (larger) grid wins when the picture fills more
// than half of it. `tiles` counts the thumbnail.
function chooseTileGrid(width, height, tileSize, minNum, maxNum, useThumbnail) {
  const ratio = width / height;
  let best = {columns: 1, rows: 1};
  let nearest = Infinity;
  for (const grid of tileGrids(minNum, maxNum)) {
    const distance = Math.abs(ratio - grid.columns / grid.rows);
    if (distance < nearest) {
      nearest = distance;
      best = grid;
    } else if (distance === nearest && width * height > 0.5 * tileSize * tileSize * grid.columns * grid.rows) {
      best = grid;
    }
  }
  const count = best.columns * best.rows;
  return {columns: best.columns, rows: best.rows, tiles: count + (useThumbnail && count !== 1 ? 1 : 0)};
}
