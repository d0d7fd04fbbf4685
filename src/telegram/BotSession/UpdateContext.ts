/**
 * How an update meets grammY's middleware: as `Bot.handleUpdate` does it, except that the API of the context is made when
 * a handler first asks for it. Each update has an API of its own, so that a plugin's transformer ends with the update;
 * making it costs more than all else that grammY does for an update, and most updates that are not answered need none.
 */
import { Api, type ApiClientOptions, type Bot, Context } from "grammy"
import type { Update } from "grammy/types"

/** Runs one update through all middleware. */
export const makeRun = (bot: Bot, client: ApiClientOptions): (update: Update) => Promise<unknown> => {
  const make = () => {
    const api = new Api(bot.token, client)
    api.config.use(...bot.api.config.installedTransformers())
    return api
  }
  class UpdateContext extends Context {
    private own: Api | undefined
    /** Instead of the field that grammY's constructor sets: what it is given is the API of the bot. */
    static {
      Object.defineProperty(UpdateContext.prototype, "api", {
        get(this: UpdateContext) {
          return this.own ??= make()
        },
        set(this: UpdateContext, api: Api) {
          this.own = api === bot.api ? undefined : api
        }
      })
    }
  }
  return async (update) => bot.middleware()(new UpdateContext(update, bot.api, bot.botInfo), ended)
}

const ended = () => Promise.resolve()
