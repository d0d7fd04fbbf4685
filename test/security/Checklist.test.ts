/**
 * The index of this folder: eighteen risks, what must hold, and which tests show it, here and elsewhere. A test that is
 * named here and gone, or renamed, fails this file.
 */
import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"

interface Row {
  readonly risk: string
  readonly holds: string
  /** A file below `test/` with words of the names of tests in it. */
  readonly shownBy: Readonly<Record<string, ReadonlyArray<string>>>
}

const rows: ReadonlyArray<Row> = [
  {
    risk: "1 the token in logs, errors and spans",
    holds: "it is in nothing that is written, whatever the Bot API answers and whatever debugging is on",
    shownBy: {
      "security/Token.test.ts": [
        "is in no line and no file when the Bot API",
        "is in no log and no span when a handler fails"
      ],
      "operations/Logging.test.ts": ["lets no token through as"],
      "telegram/BotApiError.test.ts": ["never holds the token, whatever it was made of"],
      "ai/Secrets.test.ts": ["stay out of errors, logs and spans"]
    }
  },
  {
    risk: "2 the token in argv and environment dumps",
    holds: "it is read from the environment or a file, never from argv; probes and pages do not show it",
    shownBy: {
      "security/Token.test.ts": ["and not in argv", "is in no line, file, probe or report of a bot that works"],
      "SoloistConfig.test.ts": ["reads the token from a file"]
    }
  },
  {
    risk: "3 the lock file in a shared folder",
    holds: "links, FIFOs and files of others are neither followed, waited for nor overwritten, and are explained",
    shownBy: {
      "security/LockFile.test.ts": ["a link: its target", "a FIFO: refused", "a file of another user"],
      "lock/FileLock.test.ts": ["a link is replaced, its target untouched", "publishes the PID alone"],
      "lock/FileLock/LockFile.test.ts": ["opens neither a link nor a FIFO that was put there after the look"]
    }
  },
  {
    risk: "4 trust in a wrong PID, or a signal to it",
    holds: "no PID from a file is ever signalled, and one that was given to another program is recognised",
    shownBy: {
      "security/LockFile.test.ts": ["never signalled", "a PID that was given to another program since"],
      "lock/FileLock.test.ts": [
        "a former holder of this host whose PID lives again",
        "another container with a heartbeat"
      ],
      "lock/ProcessIdentity.test.ts": ["asks the kernel about nothing that is not a positive PID"]
    }
  },
  {
    risk: "5 forged webhooks",
    holds: "does not apply: there is no receiver, and nothing listens that could be one",
    shownBy: { "security/Exposure.test.ts": ["with a token listens nowhere"] }
  },
  {
    risk: "6 what health and metrics tell",
    holds: "they are bound to the loopback address and tell nothing of host, token, paths or people",
    shownBy: {
      "security/Exposure.test.ts": ["on the loopback address alone", "tells in its probes no token"],
      "operations/Probes.test.ts": ["answer what health knows, and no more"],
      "sandbox/SandboxServer.test.ts": ["a request of the control API with a foreign Host is refused"]
    }
  },
  {
    risk: "7 paths and links out of the knowledge folder",
    holds: "only regular files below it are read, also when one is exchanged between look and read",
    shownBy: {
      "security/KnowledgeFolder.test.ts": ["is all that is read", "offers no file that is not in it"],
      "knowledge/RagObserver.test.ts": ["links, hidden files, devices, FIFOs and sibling folders"]
    }
  },
  {
    risk: "8 requests to addresses that others choose",
    holds: "no address of a message, a document, an answer or a redirect is asked",
    shownBy: { "security/Injection.test.ts": ["are never asked"] }
  },
  {
    risk: "9 admins by name",
    holds: "admins are numeric ids that wrote the message themselves",
    shownBy: {
      "security/Injection.test.ts": ["are for a numeric id that wrote the message itself"],
      "bot/Conversation.test.ts": ["shows /status to the numeric ids of admins alone"]
    }
  },
  {
    risk: "10 instructions in documents",
    holds: "documents are delimited data, no secret is in the context, and an answer that obeys is not shown",
    shownBy: {
      "security/Injection.test.ts": ["neither get a secret nor are shown"],
      "knowledge/Answers.test.ts": [
        "delimited as data by a mark that it cannot know",
        "a model that obeys it is not shown"
      ]
    }
  },
  {
    risk: "11 markup in replies",
    holds: "answers go out as text with entities, so that nothing can fail to parse; splits tear no character",
    shownBy: {
      "security/Injection.test.ts": ["is text, split where Telegram takes it"],
      "bot/Conversation.test.ts": ["sends what documents say as text, whatever markup it looks like"]
    }
  },
  {
    risk: "12 forged lines and terminal commands in logs",
    holds: "one event is one line or indented, without control characters, whoever wrote the text",
    shownBy: {
      "security/LogInjection.test.ts": ["has no forged line", "is not ended by a value", "written to by strangers"],
      "operations/Logging.test.ts": ["lets a text forge no line as"]
    }
  },
  {
    risk: "13 slow expressions",
    holds: "what reads documents, posts and questions costs what their length is worth",
    shownBy: {
      "security/Pathological.test.ts": ["costs what its length is worth: ${name}", "of a document of the largest size"],
      "security/Floods.test.ts": ["end nothing: each is passed over"],
      "telegram/MessageText.test.ts": ["hostile input of 64 kB takes a moment"]
    }
  },
  {
    risk: "14 bombs and bottomless documents",
    holds: "they are left out by name or cut; the others are answered from, awake and in bounded memory",
    shownBy: {
      "security/Pathological.test.ts": ["is read around them", "is a failure that says so, and nothing worse"],
      "knowledge/Html.test.ts": ["refuses pages that nest too deep or grow too large"]
    }
  },
  {
    risk: "15 Redis and Postgres",
    holds: "errors quote no password; the bot needs a few commands on its own keys, and its user can do no more",
    shownBy: {
      "lock/RedisLock.test.ts": [
        "explains a refused password, a replica and a missing server, and quotes no secret",
        "is content with the rights that the README names"
      ],
      "lock/PostgresLock.test.ts": ["refuses a URL that is none, a user and a database that do not exist"]
    }
  },
  {
    risk: "16 the supply chain",
    holds: "every package is locked with a checksum, few are installed, none needs a script",
    shownBy: {
      "security/SupplyChain.test.ts": [
        "has a checksum of 512 bits",
        "a production install has at most",
        "runs a script"
      ]
    }
  },
  {
    risk: "17 floods",
    holds: "a user has one turn at a time, so that others wait for none of their messages",
    shownBy: {
      "security/Floods.test.ts": ["takes one turn at a time", "another user is answered within five seconds"],
      "telegram/Outgoing.test.ts": ["a chat that floods delays no other chat"]
    }
  },
  {
    risk: "18 secrets in reports of a crash",
    holds: "the token is in no diagnostic report, whether it came from a file or the environment",
    shownBy: { "security/Token.test.ts": ["report of a bot that works and has read it from"] }
  }
]

describe("the security checklist", () => {
  for (const { holds, risk, shownBy } of rows) {
    it(`${risk}: ${holds}`, () => {
      for (const [file, names] of Object.entries(shownBy)) {
        const text = readFileSync(new URL(`../${file}`, import.meta.url), "utf8")
        for (const name of names) assert.include(text, name, file)
      }
    })
  }
})
