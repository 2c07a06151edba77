// Definitions on the spot: hovering or focusing a metric's name shows its card; the name itself links to the definitions page.
const DELAY_MS = 250;
let shown = null;
let timer = 0;

function place(card, anchor) {
  const box = anchor.getBoundingClientRect();
  const width = card.offsetWidth;
  const height = card.offsetHeight;
  const below = box.bottom + 8 + height <= window.innerHeight;
  card.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - width - 8))}px`;
  card.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - height - 8)}px`;
}

function hide() {
  clearTimeout(timer);
  if (shown) shown.hidePopover();
  shown = null;
}

function show(anchor) {
  const card = document.getElementById(`def-${anchor.dataset.metric}`);
  if (!card || card === shown) return;
  hide();
  card.showPopover();
  place(card, anchor);
  shown = card;
}

export function startPopovers() {
  const anchorOf = (event) => event.target.closest?.("a.metric");
  document.addEventListener("mouseover", (event) => {
    const anchor = anchorOf(event);
    clearTimeout(timer);
    if (anchor) timer = setTimeout(() => show(anchor), DELAY_MS);
    else if (shown && !shown.contains(event.target)) timer = setTimeout(hide, DELAY_MS);
  });
  document.addEventListener("focusin", (event) => (anchorOf(event) ? show(anchorOf(event)) : hide()));
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("scroll", hide, { passive: true });
}
