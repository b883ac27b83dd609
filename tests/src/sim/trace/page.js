"use strict";
const events = [...document.querySelectorAll(".event")];
for (const box of document.querySelectorAll("input[type=checkbox]")) {
  const apply = () => document.body.classList.toggle("no-" + box.value, !box.checked);
  box.addEventListener("change", apply);
  apply();
}
const search = document.querySelector("input[type=search]");
search.addEventListener("input", () => {
  const text = search.value.toLowerCase();
  for (const event of events) {
    event.classList.toggle("hidden", !event.textContent.toLowerCase().includes(text));
  }
});
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
