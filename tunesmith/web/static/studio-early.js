// Repeat what was pressed before the scripts of the page were ready: until then htmx sends no form, so the browser
// would send it itself, to an address of no use, and buttons would do nothing. Loaded first, and not deferred.
"use strict";

{
  const pressed = new Set(); // buttons, and forms that were sent without one
  const keep = (event) => {
    const element = event.type === "submit" ? event.target : event.target.closest("button");
    if (!element) return;
    event.preventDefault();
    event.stopPropagation();
    pressed.add(element);
  };
  for (const type of ["click", "submit"]) document.addEventListener(type, keep, true);

  // Deferred scripts and modules have run by this event, and htmx reads the page in a timer that it has set by then.
  document.addEventListener("DOMContentLoaded", () => setTimeout(() => {
    for (const type of ["click", "submit"]) document.removeEventListener(type, keep, true);
    for (const element of pressed) element instanceof HTMLFormElement ? element.requestSubmit() : element.click();
  }));
}
