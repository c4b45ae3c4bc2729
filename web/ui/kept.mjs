/**
 * The last runs, in the browser's own database, so that they are shown after a reload of the page too. Where a browser
 * has none (a private window), they are gone then.
 */

const NAME = "asyndm";
const MOST = 8;
const DAY = 24 * 60 * 60 * 1000;

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function store(mode) {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("runs", { keyPath: "key" });
  return (await settled(opening)).transaction("runs", mode).objectStore("runs");
}

/** The runs that were kept within a day, the oldest first. */
export async function keptRuns() {
  try {
    const all = await settled((await store("readonly")).getAll());
    return all.filter(({ time }) => Date.now() - time < DAY).sort((a, b) => a.time - b.time).map(({ run }) => run);
  } catch {
    return [];
  }
}

/** Keep a run in place of the last one of its tab and node; the oldest of too many, and those of yesterday, go. */
export async function keep(run) {
  try {
    const runs = await store("readwrite");
    await settled(runs.put({ key: `${run.tab} ${run.node}`, time: Date.now(), run }));
    const all = (await settled(runs.getAll())).sort((a, b) => b.time - a.time);
    all.forEach(({ key, time }, place) => {
      if (place >= MOST || Date.now() - time >= DAY) runs.delete(key);
    });
  } catch {
    // It is shown until the page is loaded anew.
  }
}
