"use strict";
const frames = [...document.querySelectorAll("#leaf figure")];
const slider = document.getElementById("leaf-z");
const told = document.getElementById("leaf-told");
function show(place) {
  const chosen = Math.min(Math.max(place, 0), frames.length - 1);
  frames.forEach((frame, n) => { frame.hidden = n !== chosen; });
  const name = frames[chosen].dataset.name;
  slider.value = chosen;
  slider.setAttribute("aria-valuetext", name);
  told.textContent = name;
}
slider.addEventListener("input", () => show(Number(slider.value)));
document.getElementById("leaf-back").addEventListener("click", () => show(Number(slider.value) - 1));
document.getElementById("leaf-on").addEventListener("click", () => show(Number(slider.value) + 1));
document.getElementById("leaf-control").hidden = false;
show(Number(slider.value));
