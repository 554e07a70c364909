"use strict";
(function () {
  // The table: a heading's button sorts by its column, numbers as numbers, what is missing always last.
  const table = document.getElementById("numbers");
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[1].cells);
  function key(row, column) {
    const value = row.cells[column].dataset.v;
    return value === undefined ? NaN : Number(value);
  }
  function sortBy(column, sign) {
    const rows = Array.from(body.rows, (row, at) => ({ row, at, value: key(row, column) }));
    rows.sort((a, b) => {
      if (Number.isNaN(a.value) || Number.isNaN(b.value)) {
        return Number.isNaN(a.value) - Number.isNaN(b.value) || a.at - b.at;
      }
      return sign * (a.value - b.value) || a.at - b.at;
    });
    body.append(...rows.map((entry) => entry.row));
  }
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const next = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      sortBy(column, next === "ascending" ? 1 : -1);
    });
  });

  // A link to a site opens it.
  const parts = Array.from(document.querySelectorAll(".site > details"));
  function reveal() {
    const target = location.hash ? document.getElementById(location.hash.slice(1)) : null;
    const inner = target ? target.querySelector(":scope > details") : null;
    if (inner && !inner.open) {
      inner.open = true;
      target.scrollIntoView();
    }
  }
  window.addEventListener("hashchange", reveal);
  reveal();
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#site-"], a[href^="#pair-"]');
    if (link && link.hash === location.hash) reveal();
  });
  const toggle = document.getElementById("toggle");
  toggle.hidden = false;
  function openAll(open) {
    parts.forEach((part) => { part.open = open; });
    toggle.textContent = open ? "Close all" : "Open all";
    toggle.setAttribute("aria-pressed", String(open));
  }
  toggle.addEventListener("click", () => openAll(toggle.getAttribute("aria-pressed") !== "true"));
  if (parts.every((part) => part.open)) openAll(true);
  window.addEventListener("beforeprint", () => openAll(true));

  // A heat map says what is under the pointer.
  const readout = document.getElementById("readout");
  function say(event) {
    const title = event.target.querySelector ? event.target.querySelector(":scope > title") : null;
    if (title) readout.textContent = title.textContent;
  }
  if (readout) {
    for (const heat of document.querySelectorAll(".heat")) {
      ["pointerover", "click"].forEach((kind) => heat.addEventListener(kind, say));
    }
  }
})();
