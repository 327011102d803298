"use strict";

// The tabs of curves and settings, and the light or dark scheme.

{
  const tabs = Array.from(document.querySelectorAll("[role=tab]"));

  function open(tab) {
    for (const other of tabs) {
      other.setAttribute("aria-selected", String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = other !== tab;
    }
  }

  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const next = tabs[(place + step + tabs.length) % tabs.length];
      open(next);
      next.focus();
      event.preventDefault();
    });
  });
  if (tabs.length) open(tabs[0]);

  const button = document.getElementById("scheme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const scheme = () => document.documentElement.style.colorScheme || (dark.matches ? "dark" : "light");
  const other = () => (scheme() === "dark" ? "light" : "dark");
  const name = () => (button.textContent = other() === "dark" ? "Dark" : "Light");

  button.addEventListener("click", () => {
    document.documentElement.style.colorScheme = other();
    name();
  });
  dark.addEventListener("change", name);
  name();
}
