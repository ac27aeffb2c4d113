"use strict";
// Opens pictures large; a pair gets a slider between before and after. Without this script the page still shows all.
(() => {
  const make = (tag, name, text) => {
    const found = document.createElement(tag);
    if (name) found.className = name;
    if (text) found.textContent = text;
    return found;
  };
  const shown = [...document.querySelectorAll(".seed, .picture")];
  const dialog = make("dialog"), bar = make("div", "bar"), title = make("strong"), view = make("div", "view");
  let current = 0;
  const button = (text, label, act) => {
    const found = make("button", "", text);
    found.type = "button";
    found.ariaLabel = label;
    found.addEventListener("click", act);
    return found;
  };
  const copy = (picture, name) => {
    const found = picture.cloneNode();
    found.className = `${name} ${picture.width < 500 ? "small" : ""}`;
    return found;
  };
  const wipe = (before, after) => {
    const box = make("div", "wipe"), range = make("input"), ends = make("div", "ends");
    const cut = () => box.style.setProperty("--cut", `${range.value}%`);
    Object.assign(range, { type: "range", min: 0, max: 100, value: 50, ariaLabel: "how much of the picture before" });
    range.addEventListener("input", cut);
    cut();
    box.append(copy(after, "after"), copy(before, "before"), make("i"), range);
    ends.append(make("span", "", "before"), make("span", "", "after"));
    view.replaceChildren(box, ends);
    range.focus();
  };
  const show = (place) => {
    current = (place + shown.length) % shown.length;
    const figure = shown[current], pictures = figure.querySelectorAll("img");
    title.textContent = figure.querySelector("figcaption")?.textContent || pictures[0].alt;
    if (!dialog.open) dialog.showModal();
    if (pictures.length === 2) wipe(...pictures);
    else view.replaceChildren(copy(pictures[0], "whole"));
  };
  bar.append(
    button("‹", "previous", () => show(current - 1)), title,
    button("›", "next", () => show(current + 1)), button("×", "close", () => dialog.close()),
  );
  dialog.append(bar, view);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  document.documentElement.classList.add("js");
  shown.forEach((figure, place) => {
    figure.tabIndex = 0;
    figure.setAttribute("role", "button");
    figure.addEventListener("click", () => show(place));
    figure.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); show(place); }
    });
  });
})();
