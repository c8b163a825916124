// Says how long the way back is still open. Without this script the page gives the time alone.
"use strict";
for (const place of document.querySelectorAll("[data-until]")) {
  const minutes = Math.floor((Date.parse(place.dataset.until) - Date.now()) / 60000);
  if (!Number.isNaN(minutes)) {
    place.textContent = minutes >= 0 ? `${minutes} minutes left` : "the window is closed";
    place.hidden = false;
    if (minutes < 0) {
      place.parentElement.className = "answer warn";
      place.parentElement.querySelector(".headline").textContent = "Not any more";
    }
  }
}
