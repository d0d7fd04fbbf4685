/**
 * The page in a real browser, on the real server, with a bot that knows nothing of either. Every test also proves that
 * the page loads nothing from elsewhere and that the browser's console stays free of errors.
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import { Bot, InlineKeyboard } from "grammy"
import { existsSync } from "node:fs"
import { type Browser, chromium, type Locator, type Page } from "playwright-core"
import { BotApiSandbox, sandboxToken } from "../../src/sandbox/BotApiSandbox.ts"
import { SandboxServer } from "../../src/sandbox/SandboxServer.ts"

const executable = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync)
const title = executable === undefined ? "the sandbox page (skipped: no Chromium in /usr/bin)" : "the sandbox page"
const testTimeout = 60_000
const inBrowser = <A, E>(name: string, test: Effect.Effect<A, E>) =>
  it.live.skipIf(executable === undefined)(name, () => test, testTimeout)
const switches =
  ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking " +
    "--disable-component-update --disable-sync").split(" ")
/** What a page may wait for, in milliseconds; the machine may be busy. */
const patience = 15_000
const server = SandboxServer.layer({ port: 0 })

// One browser for all tests, because starting it takes longer than most of them. Each page has a context of its own.
let browser: Browser | undefined
beforeAll(async () => {
  if (executable !== undefined) browser = await chromium.launch({ executablePath: executable, args: switches })
})
afterAll(() => browser?.close())

/** Opens the page and, when the test ends, fails it for what must not have happened meanwhile. */
const open = Effect.fnUntraced(function*(
  url: string,
  options: { readonly width?: number; readonly height?: number; readonly allows?: RegExp } = {}
) {
  const complaints: Array<string> = []
  const viewport = { width: options.width ?? 1280, height: options.height ?? 800 }
  const page = yield* Effect.acquireRelease(
    Effect.promise(() => browser!.newPage({ viewport })),
    (page) => Effect.promise(() => page.close())
  )
  page.setDefaultTimeout(patience)
  page.on("pageerror", (error) => complaints.push(`error: ${error.stack ?? error.message}`))
  page.on("dialog", (dialog) => complaints.push(`dialog: ${dialog.message()}`))
  page.on("console", (message) => {
    const isBad = message.type() === "error" || message.type() === "warning"
    if (isBad && options.allows?.test(message.text()) !== true) complaints.push(`console: ${message.text()}`)
  })
  page.on("request", (request) => {
    if (!request.url().startsWith(`${url}/`) && !request.url().startsWith("data:")) {
      complaints.push(`request: ${request.url()}`)
    }
  })
  yield* Effect.promise(() => page.goto(`${url}/`))
  return { page, complaints }
})

/** A grammY bot that polls as long as the test runs, and polls again after a conflict. */
const startBot = (url: string) =>
  Effect.gen(function*() {
    const bot = new Bot(sandboxToken, { client: { apiRoot: url } })
    bot.command("start", (ctx) =>
      ctx.reply("<b>Welcome</b>, pick one", {
        parse_mode: "HTML",
        reply_markup: new InlineKeyboard().text("More", "more").text("Less", "less")
      }))
    bot.callbackQuery("more", async (ctx) => {
      await ctx.editMessageText("More it is")
      await ctx.answerCallbackQuery("You want more")
    })
    bot.on("message:text", (ctx) => ctx.reply(`echo ${ctx.message.text}`))
    // A call that a fault refuses is part of the test; without this grammY stops the bot.
    bot.catch(() => {})
    yield* Effect.promise(() => bot.api.setMyCommands([{ command: "start", description: "Say hello" }]))
    yield* Effect.tryPromise(() => bot.start()).pipe(Effect.retry(Schedule.spaced("400 millis")), Effect.forkScoped)
    yield* Effect.addFinalizer(() => Effect.promise(() => bot.stop()))
  })

const composerOf = (page: Page): Locator => page.getByRole("textbox", { name: "Message", exact: true })
const logOf = (page: Page): Locator => page.getByRole("log")
const isFocused = (locator: Locator): Promise<boolean> => locator.evaluate((element) => element.matches(":focus"))

describe(title, () => {
  inBrowser(
    "a person chats with the bot and presses its button",
    Effect.gen(function*() {
      const { url } = yield* SandboxServer
      yield* startBot(url)
      const { complaints, page } = yield* open(url)
      yield* Effect.promise(async () => {
        const composer = composerOf(page)
        await page.getByText("Nothing here yet").waitFor()
        assert.isTrue(await isFocused(composer), "the composer has the focus at once")

        await composer.pressSequentially("/st")
        await page.getByRole("option", { name: "/start" }).waitFor()
        await page.keyboard.press("Enter")
        await logOf(page).locator("strong", { hasText: "Welcome" }).waitFor()

        await page.getByRole("button", { name: "More" }).click()
        await logOf(page).getByText("More it is").waitFor()
        await logOf(page).getByText("edited").waitFor()
        await page.getByRole("status").getByText("You want more").waitFor()
        assert.isTrue(await isFocused(composer), "a press leaves the focus in the composer")

        await composer.fill("first line\nsecond line")
        await page.keyboard.press("Enter")
        await logOf(page).getByText("echo first line").waitFor()
        assert.strictEqual(await composer.inputValue(), "")

        await page.getByRole("tabpanel").getByRole("button", { name: /sendMessage 200/ }).first().click()
        const parameters = page.getByLabel("Parameters")
        assert.deepStrictEqual(JSON.parse(await parameters.innerText()), {
          chat_id: 1,
          text: "echo first line\nsecond line"
        })
      })
      assert.deepStrictEqual(complaints, [])
    }).pipe(Effect.scoped, Effect.provide(server))
  )

  inBrowser(
    "a second poller is played and its conflict told",
    Effect.gen(function*() {
      const { url } = yield* SandboxServer
      const { complaints, page } = yield* open(url)
      const pill = page.getByRole("status").first()
      yield* Effect.promise(() => pill.getByText("Nobody polls").waitFor())
      yield* startBot(url)
      yield* Effect.promise(async () => {
        await pill.getByText("polling").waitFor()
        await page.getByRole("tab", { name: "Poller" }).click()
        await page.getByText(/has waited .* of 30 s/).waitFor()
        await page.getByRole("button", { name: "Play a second poller" }).click()
        await pill.getByText("conflict").waitFor()
        await page.getByText("got 409 Conflict").waitFor()
        await page.getByText(/It polled again, after/).waitFor()
        await page.getByRole("img", { name: /1 conflicts/ }).waitFor()
        await pill.getByText("polling").waitFor()
      })
      assert.deepStrictEqual(complaints, [])
    }).pipe(Effect.scoped, Effect.provide(server))
  )

  inBrowser(
    "a fault is switched on, used up and off again",
    Effect.gen(function*() {
      const { url } = yield* SandboxServer
      yield* startBot(url)
      const { complaints, page } = yield* open(url)
      yield* Effect.promise(async () => {
        await page.getByRole("tab", { name: "Faults" }).click()
        await page.getByLabel("Of method").selectOption("sendMessage")
        const fault = page.getByRole("switch", { name: "500, server error" })
        const other = page.getByRole("switch", { name: "Slow answer" })
        await fault.click()
        await other.click()
        await page.getByRole("switch", { name: "Slow answer", checked: true }).waitFor()
        await other.click()
        await page.getByRole("switch", { name: "Slow answer", checked: false }).waitFor()
        assert.strictEqual(await fault.getAttribute("aria-checked"), "true", "the other fault stays")

        await composerOf(page).fill("are you there?")
        await page.keyboard.press("Enter")
        await page.getByRole("switch", { name: "500, server error", checked: false }).waitFor()
        await page.getByRole("tab", { name: "Calls" }).click()
        await page.getByRole("button", { name: /sendMessage 500/ }).waitFor()
      })
      assert.deepStrictEqual(complaints, [])
    }).pipe(Effect.scoped, Effect.provide(server))
  )

  inBrowser(
    "fits a screen of 390 px as tabs",
    Effect.gen(function*() {
      const { url } = yield* SandboxServer
      yield* startBot(url)
      const { complaints, page } = yield* open(url, { width: 390, height: 844 })
      yield* Effect.promise(async () => {
        await composerOf(page).fill("w".repeat(300))
        await page.keyboard.press("Enter")
        await logOf(page).getByText("echo www").waitFor()
        for (const [tab, seen] of [["Chats", "New chat"], ["Inspector", "Filter calls"], ["Chat", "Send"]] as const) {
          await page.getByRole("tab", { name: tab, exact: true }).click()
          await page.getByRole(tab === "Inspector" ? "searchbox" : "button", { name: seen }).waitFor()
          assert.isAtMost(await page.evaluate<number>("document.documentElement.scrollWidth"), 390, tab)
        }
        await page.keyboard.press("ArrowLeft")
        assert.isFalse(await logOf(page).isVisible(), "one part at a time")
        await page.getByRole("button", { name: "New chat" }).click()
        await page.getByLabel("Name of the person").fill("Bert")
        await page.keyboard.press("Enter")
        await page.getByRole("heading", { name: "Bert" }).waitFor()
        await composerOf(page).fill("it's me")
        await page.keyboard.press("Enter")
        await logOf(page).getByText("echo it's me").waitFor()
      })
      assert.deepStrictEqual(complaints, [])
    }).pipe(Effect.scoped, Effect.provide(server))
  )

  inBrowser(
    "a thousand messages stay usable and markup stays text",
    Effect.gen(function*() {
      const { url } = yield* SandboxServer
      const sandbox = yield* BotApiSandbox
      const { complaints, page } = yield* open(url)
      const attack = "<img src=x onerror=alert(1)><script>alert(2)</script>"
      yield* Effect.promise(() => page.getByText("Nothing here yet").waitFor())
      for (let count = 1; count <= 1000; count++) yield* sandbox.userWrites({ text: `message ${count}` })
      yield* sandbox.userWrites({ text: attack, firstName: attack.slice(0, 64) })
      yield* Effect.promise(async () => {
        const api = new Bot(sandboxToken, { client: { apiRoot: url } }).api
        await api.sendMessage(1, "a trap", {
          entities: [{ type: "text_link", offset: 0, length: 6, url: "javascript:alert(3)" }]
        })
        await logOf(page).getByText("a trap").waitFor()
        await logOf(page).getByText(attack).waitFor()
        assert.isAtMost(await page.getByRole("article").count(), 200, "only the newest are drawn")
        assert.strictEqual(await logOf(page).locator("a, img, script").count(), 0)
        await page.getByRole("button", { name: /Show earlier messages/ }).click()
        await logOf(page).getByText("message 800", { exact: true }).waitFor()
        await composerOf(page).pressSequentially("still quick")
        assert.strictEqual(await composerOf(page).inputValue(), "still quick")
      })
      assert.deepStrictEqual(complaints, [])
    }).pipe(Effect.scoped, Effect.provide(server))
  )

  inBrowser(
    "a lost server is told, and what was missed is read when it is back",
    Effect.gen(function*() {
      const { complaints, page, port } = yield* Effect.gen(function*() {
        const { port, url } = yield* SandboxServer
        const { complaints, page } = yield* open(url, { allows: /net::ERR_/ })
        yield* Effect.promise(() => page.getByText("Nothing here yet").waitFor())
        return { complaints, page, port }
      }).pipe(Effect.provide(server))
      yield* Effect.promise(async () => {
        await page.getByRole("alert").getByText("does not answer").waitFor()
        await composerOf(page).fill("not lost")
        await page.keyboard.press("Enter")
      })
      yield* Effect.gen(function*() {
        const { url } = yield* SandboxServer
        const sandbox = yield* BotApiSandbox
        yield* sandbox.userWrites({ text: "written meanwhile" })
        yield* Effect.promise(async () => {
          await logOf(page).getByText("written meanwhile").waitFor()
          await page.getByRole("alert").waitFor({ state: "detached" })
          assert.strictEqual(await composerOf(page).inputValue(), "not lost", "what could not be sent is still there")
          await composerOf(page).press("Enter")
          await logOf(page).getByText("not lost").waitFor()
        })
        assert.include(page.url(), url)
      }).pipe(Effect.provide(SandboxServer.layer({ port })))
      assert.deepStrictEqual(complaints, [])
    }).pipe(Effect.scoped)
  )
})
