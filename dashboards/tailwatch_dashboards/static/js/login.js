// Exchanges the key for a cookie and goes on to where the visitor wanted to be.
import { startThemeSwitch } from "./theme-switch.js";

startThemeSwitch();
const form = document.getElementById("login");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch(form.action, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ key: form.elements.key.value }),
  });
  if (answer.ok) {
    const next = form.dataset.next;
    window.location.assign(next.startsWith("/") && !next.startsWith("//") ? next : "/");
    return;
  }
  let banner = document.querySelector(".banner");
  if (!banner) {
    banner = document.createElement("p");
    banner.className = "banner";
    banner.setAttribute("role", "alert");
    form.before(banner);
  }
  banner.textContent = answer.status === 401 || answer.status === 403 ? "This key is not known, or it was revoked." : `The service answered ${answer.status}.`;
});
