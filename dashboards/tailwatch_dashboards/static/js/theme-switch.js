// The theme button: auto -> light -> dark. Tells listeners with a "themechange" event on window.
const NEXT = { auto: "light", light: "dark", dark: "auto" };
const media = window.matchMedia("(prefers-color-scheme: dark)");

function choice() {
  return document.documentElement.dataset.theme ?? "auto";
}

export function theme() {
  const chosen = choice();
  return chosen === "auto" ? (media.matches ? "dark" : "light") : chosen;
}

function label(button) {
  const chosen = choice();
  button.textContent = `Theme: ${chosen}`;
  button.setAttribute("aria-label", chosen === "auto" ? "Colour theme: follows the system" : `Colour theme: ${chosen}`);
}

export function startThemeSwitch() {
  const button = document.getElementById("theme-switch");
  const tell = () => window.dispatchEvent(new CustomEvent("themechange"));
  label(button);
  button.addEventListener("click", () => {
    const next = NEXT[choice()];
    if (next === "auto") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("tailwatch-theme");
    } else {
      document.documentElement.dataset.theme = next;
      localStorage.setItem("tailwatch-theme", next);
    }
    label(button);
    tell();
  });
  media.addEventListener("change", tell);
}
