// The script of the pages: remembers the colour theme, updates the figures, copies text.
"use strict";

const root = document.documentElement;
const remembered = {
  get() { try { return localStorage.getItem("theme"); } catch { return null; } },
  set(theme) {
    try {
      if (theme) localStorage.setItem("theme", theme);
      else localStorage.removeItem("theme");
    } catch { /* without storage the theme lasts only for this page */ }
  },
};
// Set the theme before the first paint.
if (remembered.get()) root.dataset.theme = remembered.get();

function offerColours() {
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const say = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    const asSystem = (theme === "dark") === system.matches;
    if (asSystem) delete root.dataset.theme;
    else root.dataset.theme = theme;
    remembered.set(asSystem ? null : theme);
    say();
  });
  system.addEventListener("change", say);
  say();
  button.hidden = false;
}

// Changes an element into a fresh one, but keeps existing nodes: bars move, and focus stays.
function become(old, fresh) {
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name); // the reader opens
  }
  const named = new Map([...old.children].filter((each) => each.id).map((each) => [each.id, each]));
  let next = old.firstChild;
  for (const node of [...fresh.childNodes]) {
    const same = node.id ? named.get(node.id) : next?.id ? null : next;
    if (same?.nodeName !== node.nodeName) {
      old.insertBefore(document.importNode(node, true), next);
      continue;
    }
    if (same === next) next = next.nextSibling;
    else old.insertBefore(same, next);
    if (node.nodeType === Node.ELEMENT_NODE) become(same, node);
    else if (same.nodeValue !== node.nodeValue) same.nodeValue = node.nodeValue;
  }
  while (next) {
    const after = next.nextSibling;
    next.remove();
    next = after;
  }
}

// Requests the figures while the page is visible: every second during a fill, else every five.
function keepLive() {
  const live = document.getElementById("live");
  if (!live) return;
  const lost = document.getElementById("lost");
  let timer = 0;
  let answered = new Date();
  const wait = (seconds) => {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(ask, seconds * 1000);
  };
  async function ask() {
    let seconds = 5;
    try {
      const response = await fetch("live", { signal: AbortSignal.timeout(10_000) });
      if (!response.ok) throw new Error(`${response.status}`);
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
      become(live, fresh.getElementById("live"));
      answered = new Date();
      lost.hidden = true;
      if (live.querySelector("progress")) seconds = 1;
    } catch {
      lost.textContent = `The mirror does not answer; these figures are from ${answered.toLocaleTimeString()}.`;
      lost.hidden = false;
    }
    wait(seconds);
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : ask()));
  wait(1);
}

// Over plain http, browsers support only the old clipboard command.
async function copy(source) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(source.textContent);
    return;
  }
  const selection = getSelection();
  selection.selectAllChildren(source);
  document.execCommand("copy");
  selection.removeAllRanges();
}

function offerCopies() {
  const said = document.getElementById("copied");
  for (const button of document.querySelectorAll("button[data-copies]")) {
    const label = button.firstChild;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      try {
        await copy(source);
        label.nodeValue = "Copied";
        said.textContent = `${source.getAttribute("aria-label")} is copied`;
      } catch {
        getSelection().selectAllChildren(source);
        label.nodeValue = "Selected";
        said.textContent = "The text is selected: copy it with the keyboard";
      }
      setTimeout(() => { label.nodeValue = "Copy"; }, 2000);
    });
    button.hidden = false;
  }
}

document.addEventListener("DOMContentLoaded", () => {
  offerColours();
  keepLive();
  offerCopies();
});
