"use strict";
// Before the page is drawn, so that it does not flash in the other colours.
const root = document.documentElement;
const THEMES = ["system", "light", "dark"];
const remembered = () => {
  try { return localStorage.getItem("mmtransfer-theme"); } catch { return null; }
};
const use = (theme) => {
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  else delete root.dataset.theme;
};
use(remembered());

function switchable(button) {
  const name = button.querySelector("span");
  name.textContent = root.dataset.theme ?? "system";
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
    use(next);
    name.textContent = next;
    try { localStorage.setItem("mmtransfer-theme", next); } catch { /* a private window forgets */ }
  });
}

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const head = heads[column];
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => {
    const cell = row.cells[column];
    const number = cell.dataset.value ?? "";
    return { row, number: number === "" ? NaN : Number(number), text: cell.textContent.trim() };
  });
  const numeric = keyed.some(({ number }) => !Number.isNaN(number));
  const before = head.getAttribute("aria-sort");
  // The first click puts the largest numbers on top, and words in their order.
  const down = before === null ? numeric : before === "ascending";
  const sign = down ? -1 : 1;
  keyed.sort((a, b) => {
    if (!numeric) return sign * a.text.localeCompare(b.text, undefined, { numeric: true });
    if (Number.isNaN(a.number) || Number.isNaN(b.number)) {
      return Number.isNaN(a.number) - Number.isNaN(b.number); // what has no number stays below
    }
    return sign * (a.number - b.number);
  });
  body.append(...keyed.map(({ row }) => row));
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent.trim() || "name";
    button.addEventListener("click", () => sortBy(table, column));
    head.replaceChildren(button);
  });
}

document.addEventListener("DOMContentLoaded", () => {
  switchable(document.getElementById("theme"));
  document.querySelectorAll("table[data-sortable]").forEach(sortable);
});
