// The texts of the demos in the language of the page. Only that language is fetched, and nothing is drawn before it is there.
const language = document.documentElement.lang.startsWith("zh") ? "zh" : "en";
export const { strings } = await import(`./strings.${language}.js`);
