/** Errors of a run, as the server tells them. */

/** Whether an error was raised in the files of the node pack of this folder: the innermost frame of its traceback tells. */
export function raisedIn(folder, traceback) {
  const file = /File "([^"]+)"/.exec(traceback?.at(-1) ?? "")?.[1] ?? "";
  return file.split(/[\\/]/).includes(folder);
}
