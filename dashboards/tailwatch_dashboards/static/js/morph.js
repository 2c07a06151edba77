// Makes an element look like a piece of HTML with as few changes as possible: focus, selection, open <details> and hover survive,
// and nothing flickers. Children are matched by position, or by data-key where they carry one. The HTML comes from our own
// service, which escapes what it prints.
export function morph(element, html) {
  const parsed = document.createElement("template");
  parsed.innerHTML = html;
  morphChildren(element, parsed.content);
}

function morphChildren(into, from) {
  const keyed = new Map();
  for (const child of into.children) if (child.dataset?.key) keyed.set(child.dataset.key, child);
  let old = into.firstChild;
  for (const fresh of [...from.childNodes]) {
    const match = fresh.dataset?.key ? keyed.get(fresh.dataset.key) : null;
    if (match && match !== old) {
      into.insertBefore(match, old);
      morphNode(match, fresh);
      continue;
    }
    if (!old) {
      into.appendChild(fresh);
      continue;
    }
    const next = old.nextSibling;
    if (alike(old, fresh)) morphNode(old, fresh);
    else if (fresh.dataset?.key) {
      into.insertBefore(fresh, old);
      continue;
    } else into.replaceChild(fresh, old);
    old = next;
  }
  while (old) {
    const next = old.nextSibling;
    old.remove();
    old = next;
  }
}

function alike(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && a.dataset?.key === b.dataset?.key;
}

function morphNode(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(old.nodeName === "DETAILS" && name === "open")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  morphChildren(old, fresh);
}
