{
  const NEAR_PX = 16;
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  let current = null;

  const hide = () => {
    current?.classList.remove("on");
    current = null;
    tip.hidden = true;
  };

  const nearest = (circles, event) => {
    let best = null, least = NEAR_PX;
    for (const circle of circles) {
      const box = circle.getBoundingClientRect();
      const dx = box.x + box.width / 2 - event.clientX;
      const distance = Math.hypot(dx, box.y + box.height / 2 - event.clientY);
      if (distance < least) [best, least] = [circle, distance];
    }
    return best;
  };

  const text = (mark, event) => {
    if (!mark.dataset.cells) return mark.dataset.tip;
    const cells = mark.dataset.cells.split(" ");
    const box = mark.getBoundingClientRect();
    const at = Math.floor((event.clientX - box.x) / box.width * cells.length);
    const cell = Math.min(Math.max(at, 0), cells.length - 1);
    return `${mark.dataset.tip}\nblock of rows ${cell + 1} of ${cells.length}: ${cells[cell]}`;
  };

  document.querySelectorAll("svg").forEach(svg => {
    const circles = [...svg.querySelectorAll(".marks circle")];
    const show = event => {
      const mark = event.target.closest(".marks rect") ?? nearest(circles, event);
      if (mark !== current) hide();
      if (!mark) return;
      current = mark;
      mark.classList.add("on");
      tip.textContent = text(mark, event);
      tip.hidden = false;
      // Beside the pointer, and within the window.
      const { width, height } = tip.getBoundingClientRect();
      const right = document.documentElement.clientWidth - width - 4;
      const below = event.clientY + 16;
      const above = event.clientY - height - 10;
      tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, right))}px`;
      tip.style.top = `${below + height > innerHeight && above > 0 ? above : below}px`;
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    // A finger that is lifted leaves what it touched; the text stays until the next touch.
    svg.addEventListener("pointerleave", event => event.pointerType === "mouse" && hide());
  });
  document.addEventListener("pointerdown", event => event.target.closest("svg") || hide());
  document.addEventListener("scroll", hide, { capture: true, passive: true });
}
