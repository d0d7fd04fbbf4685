/**
 * Loaded before a bot (`--import`), tells its parent how far the heap has been: a backlog that is read at once shows here
 * also when it is gone again before the first handler. Looks every 10 ms, and is blind while the loop is blocked.
 */
let told = 0
setInterval(() => {
  const { heapUsed } = process.memoryUsage()
  if (heapUsed < told + 2 ** 18) return
  told = heapUsed
  process.send({ sample: { heapUsed } })
}, 10).unref()
