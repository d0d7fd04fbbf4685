/**
 * How an update meets grammY's middleware: as `Bot.handleUpdate` does it, except that the API of the context is made when
 * a handler first asks for it. Each update has an API of its own, so that a plugin's transformer ends with the update;
 * making it costs more than all else that grammY does for an update, and most updates that are not answered need none.
 */
import { Api, type ApiClientOptions, type Bot, Context } from "grammy"
import type { Update, UserFromGetMe } from "grammy/types"
import * as Handling from "./Handling.ts"

/** Runs one update through all middleware. */
export const makeRun = (
  bot: Bot,
  client: ApiClientOptions
): (update: Update, handling: Handling.Handling) => Promise<unknown> => {
  const { api, botInfo } = bot
  const makeApi = (handling: Handling.Handling) => {
    const own = new Api(bot.token, client)
    // The last one is asked first: the others learn from it whose call it is.
    own.config.use(
      ...api.config.installedTransformers(),
      (next, method, payload, signal) => Handling.within(handling, () => next(method, payload, signal))
    )
    return own
  }
  const handle = (update: Update, handling: Handling.Handling): Promise<unknown> => {
    try {
      return Promise.resolve(bot.middleware()(new UpdateContext(update, api, botInfo, handling, makeApi), ended))
    } catch (cause) {
      return Promise.reject(cause)
    }
  }
  return (update, handling) => Handling.begin(handling, handle, update)
}

class UpdateContext extends Context {
  readonly handling: Handling.Handling
  private readonly makeApi: (handling: Handling.Handling) => Api
  private own: Api | undefined

  constructor(
    update: Update,
    api: Api,
    me: UserFromGetMe,
    handling: Handling.Handling,
    makeApi: (handling: Handling.Handling) => Api
  ) {
    super(update, api, me)
    this.handling = handling
    this.makeApi = makeApi
    this.own = undefined
  }

  /** Instead of the field that grammY's constructor sets: what it is given is the API of the bot. */
  static {
    Object.defineProperty(UpdateContext.prototype, "api", {
      get(this: UpdateContext) {
        return this.own ??= this.makeApi(this.handling)
      },
      set(this: UpdateContext, api: Api) {
        this.own = api
      }
    })
  }
}

/** The update of a context that `makeRun` has made. Plugins may make others. */
export const handlingOf = (context: Context): Handling.Handling | undefined =>
  context instanceof UpdateContext ? context.handling : undefined

const ended = () => Promise.resolve()
