/** What is used of `snowball-stemmers`, which ships no types. */
declare module "snowball-stemmers" {
  const snowball: {
    readonly newStemmer: (language: string) => { readonly stem: (word: string) => string }
  }
  export default snowball
}
