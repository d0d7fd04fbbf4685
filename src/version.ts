/** The version of this package, as told to `--version`, the lock's metadata and the logs. Tested against package.json. */
export const version = "0.1.0"
