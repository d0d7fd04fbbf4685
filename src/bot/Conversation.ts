/**
 * What Soloist's own bot says: answers from the knowledge folder with the place they come from, and what operators may
 * ask. A host brings handlers of its own instead (`telegram/UpdateHandler.ts`). The invariants: whatever is said of the
 * documents is cited; `/status` is for the numeric ids of the admins alone, because names change hands.
 */
import { Effect, type Layer } from "effect"
import type { Context as GrammyContext } from "grammy"
import { type Answer, Answers, type Citation } from "../knowledge/Answers.ts"
import type { RagIndexError } from "../knowledge/RagIndex.ts"
import { Health } from "../operations/Health.ts"
import type { BotApiError } from "../telegram/BotApiError.ts"
import { BotSession } from "../telegram/BotSession.ts"
import { render, split } from "../telegram/MessageText.ts"
import { command, on, reply, UpdateHandler } from "../telegram/UpdateHandler.ts"
import { version } from "../version.ts"

export interface ConversationOptions {
  /** Numeric ids of the users who may ask `/status`. */
  readonly adminIds: ReadonlyArray<number>
  /** In the sandbox everybody is an admin: whoever reaches it is on this machine. */
  readonly isSandbox: boolean
}

/** The handlers of Soloist's own bot. */
export const layer = (options: ConversationOptions): Layer.Layer<UpdateHandler, never, BotSession | Answers | Health> =>
  UpdateHandler.layer(Effect.gen(function*() {
    const { call, me } = yield* BotSession
    // The menu is a convenience: nobody waits for it, and without it every command still works.
    yield* call("setMyCommands", (api, signal) => api.setMyCommands([...commands], undefined, signal)).pipe(
      Effect.catch((error) =>
        Effect.logWarning("The command menu could not be set").pipe(Effect.annotateLogs({ reason: error.message }))
      ),
      Effect.forkScoped
    )
    yield* command("start", (ctx) => say(ctx, greeting(me.first_name)))
    yield* command("help", (ctx) => say(ctx, help))
    yield* command("ask", (ctx) => ctx.match.trim() === "" ? say(ctx, howToAsk) : answer(ctx, ctx.match))
    yield* command("status", (ctx) => isAdmin(options, ctx) ? status(ctx) : say(ctx, notForYou))
    yield* on("message:text", (ctx, next) => {
      if (ctx.chat.type !== "private") return next
      return ctx.msg.text.startsWith("/") ? say(ctx, unknownCommand) : answer(ctx, ctx.msg.text)
    })
  }))

/** The commands as Telegram shows them in its menu. */
const commands = [
  { command: "ask", description: "Ask the documents" },
  { command: "help", description: "What this bot can do" },
  { command: "status", description: "How the service is doing (admins)" }
] as const

const greeting = (name: string) =>
  `Hello, I am **${name}**. Ask me something, or send /ask with your question in a group. ` +
  "I answer from my documents and say where it is written. /help shows what else I can do."

const help = `I answer questions from my documents, with the file and heading where it is written.

- Write to me in private, or send \`/ask\` with your question.
- \`/status\` shows admins how the service is doing.

If nothing in the documents fits, I say so.`

const howToAsk = "Put your question behind the command, like this: `/ask How do I restart the bot?`"
const unknownCommand = "I do not know that command. /help shows what I can do."
const notForYou = "Only admins may ask that. Their numeric ids are in ADMIN_IDS."
const unknown = {
  empty: "I don't know: I have no documents yet. Put Markdown, text or HTML files into the knowledge folder.",
  unfit: "I don't know. Nothing in my documents answers that."
} as const

// Answers quote documents and users, so they go out as they are: nothing in them is taken for markup.
const answer = Effect.fnUntraced(function*(
  ctx: GrammyContext,
  question: string
): Effect.fn.Return<void, BotApiError | RagIndexError, BotSession | Answers> {
  const answers = yield* Answers
  yield* Effect.ignore(typing(ctx))
  const found: Answer = yield* answers.ask(question)
  if (found._tag === "Unknown") return yield* say(ctx, unknown[found.reason])
  const sources = found.citations.map((citation) => `[${citation.id}] ${place(citation)}`).join("\n")
  const notice = found.notice === undefined ? "" : `\n\n${found.notice}`
  yield* send(ctx, { text: `${found.text}\n\n${sources}${notice}`, entities: [] })
})

const place = ({ file, heading, lines: [first, last] }: Citation): string => {
  const where = first === last ? `line ${first}` : `lines ${first}-${last}`
  return heading.length === 0 ? `${file}, ${where}` : `${file}, "${heading.join(" / ")}", ${where}`
}

const status = Effect.fnUntraced(function*(ctx: GrammyContext) {
  const health = yield* Health
  const { checks, status } = yield* health.current
  const rows = Object.entries(checks).map(([key, check]) => {
    const value = check.observedValue === undefined
      ? ""
      : `: ${check.observedValue} ${check.observedUnit ?? ""}`.trimEnd()
    return `${marks[check.status]} ${key}${value}${check.output === undefined ? "" : `\n    ${check.output}`}`
  })
  yield* send(ctx, { text: [`Soloist ${version}: ${status}`, ...rows].join("\n"), entities: [] })
})

const marks = { pass: "ok  ", warn: "warn", fail: "FAIL" } as const

const isAdmin = ({ adminIds, isSandbox }: ConversationOptions, ctx: GrammyContext): boolean =>
  isSandbox || (ctx.from !== undefined && ctx.senderChat === undefined && adminIds.includes(ctx.from.id))

const typing = (ctx: GrammyContext) =>
  Effect.flatMap(
    BotSession,
    ({ call }) => call("sendChatAction", (_, signal) => ctx.replyWithChatAction("typing", {}, signal))
  )

/** Says Markdown that we wrote ourselves. */
const say = (ctx: GrammyContext, markdown: string) => send(ctx, render(markdown))

const send = Effect.fnUntraced(function*(ctx: GrammyContext, message: ReturnType<typeof render>) {
  for (const part of split(message)) {
    yield* reply(ctx, part.text, {
      entities: [...part.entities],
      link_preview_options: { is_disabled: true },
      ...(ctx.msgId === undefined
        ? {}
        : { reply_parameters: { message_id: ctx.msgId, allow_sending_without_reply: true } })
    })
  }
})
