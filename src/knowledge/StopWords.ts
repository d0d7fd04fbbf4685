/**
 * Words that a question is built with and that say nothing about its subject. Ranking needs no such list, because such
 * words are common; but a small folder may hold none of them, where they would look rare and make every question look
 * unanswerable. So they do not count when it is decided whether a passage answers a question.
 */

const english =
  `a about above after again all also am an and any are as at be because been before being below between both but by can
  could did do does doing don during each few for from further get give had has have having he her here hers him his how
  i if in into is it its itself just know let ll m many may me might more most much must my no nor not of off on once
  only or other our out over own please re s same shall she should show so some such t tell than that the their them
  then there these they this those through to too under until up us ve very was we were what when where whether which
  while who whom whose why will with would you your`

const russian =
  `а без более больше будет будут бы был была были было быть в вам вас ваш вдруг ведь весь во вот все всего всех вы где
  да даже два для до его ее если есть еще ж же за зачем здесь и из или им иногда их к как какая какие каким какими каких
  какова каково какой какого какую каком когда кого ком кому которая которого которое которой которую которые который
  которых кто куда ли либо лучше между меня мне много может можно мой моя мы на над надо наконец нас не него нее ней
  нельзя нет ни нибудь никогда ним них ничего но ну о об один он она они оно опять от ото откуда перед по под подскажи
  подскажите пожалуйста после потому почему почти при про раз разве расскажи расскажите с сам сами свой свою себе себя
  сейчас скажи скажите со совсем так такие такой там тебя тем теперь то тогда того тоже только том тот тут ты у уж уже
  хоть чего чей чем через что чтоб чтобы чье чья эта эти этих это этого этой этом этот эту я`

const words = new Set(`${english} ${russian}`.split(/\s+/))

/** `word` in lower case, with `е` for `ё`. */
export const isStopWord = (word: string): boolean => words.has(word)
