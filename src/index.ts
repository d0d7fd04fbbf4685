/**
 * The library, in three tiers. Everything is a layer or an effect: no signal handlers, no `process.env`, no `console`;
 * the host's logger, tracer, clock, config and services are used. `soloist/testing` has the laws that a lock store of
 * your own has to keep.
 */

// To run a bot.

export { ApiClient } from "./ai/ApiClient.ts"
export { ApiError, type ApiReason } from "./ai/ApiError.ts"
export { Answers } from "./knowledge/Answers.ts"
export { RagIndex } from "./knowledge/RagIndex.ts"
export { RagObserver } from "./knowledge/RagObserver.ts"
export { Autoposter } from "./schedule/Autoposter.ts"
export { Scheduler } from "./schedule/Scheduler.ts"
export * as Soloist from "./Soloist.ts"
export { ConfigurationInvalid, type Settings, SoloistConfig, TokenMalformed } from "./SoloistConfig.ts"
export { BotApiError, type BotApiReason } from "./telegram/BotApiError.ts"
export { BotSession, HandlerFailed } from "./telegram/BotSession.ts"
export {
  ChatState,
  ChatStateError,
  type ChatStateReason,
  type ChatValue,
  type ChatValueOptions
} from "./telegram/ChatState.ts"
export { DeadLetters } from "./telegram/DeadLetters.ts"
export { render, split } from "./telegram/MessageText.ts"
export { Outgoing, type OutgoingOptions } from "./telegram/Outgoing.ts"
export { type Limit, type Limits, telegramLimits } from "./telegram/Outgoing/Limits.ts"
export { UpdateDispatcher } from "./telegram/UpdateDispatcher.ts"
export {
  callbackQuery,
  command,
  effectMiddleware,
  hears,
  on,
  reply,
  UpdateHandler,
  use
} from "./telegram/UpdateHandler.ts"
export { UpdatePoller } from "./telegram/UpdatePoller.ts"

// To bring your own backend. Those that need a driver are entry points of their own, so that nobody loads what they do not
// use: `soloist/RedisLock`, `soloist/PostgresLock`, `soloist/PostgresStorage`.

export * as FileLock from "./lock/FileLock.ts"
export { HandlersOutlivedLease, HandoverRequested, InstanceLock } from "./lock/InstanceLock.ts"
export {
  type Grant,
  type Handover,
  Holder,
  LeaseLost,
  LockHeld,
  type LockStatus,
  LockStore,
  LockStoreError
} from "./lock/LockStore.ts"
export * as ExitCode from "./operations/ExitCode.ts"
export { Health, type HealthCheck, type HealthReport } from "./operations/Health.ts"
export * as Probes from "./operations/Probes.ts"
export { Supervisor, WorkerFailed } from "./operations/Supervisor.ts"
export * as Storage from "./storage/Storage.ts"
export { UpdateInbox } from "./telegram/UpdateInbox.ts"

// To test your bot.

export { BotApiSandbox } from "./sandbox/BotApiSandbox.ts"
export { SandboxServer } from "./sandbox/SandboxServer.ts"
