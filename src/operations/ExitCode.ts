/**
 * What the process tells its service manager when it ends. The numbers are those of sysexits(3), so that systemd
 * prints their names. An error carries its own code under `Runtime.errorExitCode`; whatever does not is a defect.
 */

/** Stopped as asked. */
export const stopped = 0
/** The command line is wrong. Restarting does not help. */
export const usage = 64
/** A service that the bot needs is down. */
export const unavailable = 69
/** A defect in this program. */
export const software = 70
/** Try again later: another instance holds the lock, or the conflict budget is spent. */
export const temporary = 75
/** Telegram refused the token. Restarting does not help. */
export const refused = 77
/** The configuration is wrong. Restarting does not help. */
export const configuration = 78
