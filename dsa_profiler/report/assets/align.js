"use strict";
/* The alignment's page: a slot lights up in both lanes and in the table; ranges are copied. */
(() => {
  const slots = () => document.querySelectorAll("[data-slot]");

  function light(slot) {
    for (const node of slots()) node.classList.toggle("on", slot !== null && node.dataset.slot === slot);
  }

  function slotOf(event) {
    const node = event.target.closest?.("[data-slot]");
    return node && node.dataset.slot !== "-1" ? node.dataset.slot : null;
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.addEventListener("mouseover", (event) => light(slotOf(event)));
    document.querySelector(".lanes")?.addEventListener("click", (event) => {
      const slot = slotOf(event);
      if (slot !== null) document.getElementById(`slot-${slot}`).scrollIntoView({ block: "center" });
    });
    document.querySelectorAll("code[data-copy]").forEach((code) => {
      code.title = "Copy";
      code.addEventListener("click", () => DSA.copy(code.textContent, "the time range"));
    });
  });
})();
