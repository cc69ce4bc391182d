// Draws the curves of a figure again below it, to hover over, with a box to hide each group.
// It reads the data-curves attribute: a list of {label, colour, dash, x, y}. Text is never HTML.
(() => {
  const W = 720, H = 340, LEFT = 56, RIGHT = 12, TOP = 12, BOTTOM = 36;
  const node = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const ticks = (low, high) => {
    const raw = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++)
      found.push(Number((n * step).toPrecision(12)));
    return found;
  };
  const decades = (low, high) => {
    const found = [];
    for (let k = Math.floor(Math.log10(low)); 10 ** k <= high; k++)
      for (const factor of high / low > 300 ? [1] : [1, 2, 5])
        if (factor * 10 ** k >= low * 0.999 && factor * 10 ** k <= high * 1.001)
          found.push(Number((factor * 10 ** k).toPrecision(12)));
    return found.length > 1 ? found : ticks(low, high);
  };
  const show = (figure) => {
    const lines = JSON.parse(figure.dataset.curves), hidden = new Set();
    const box = document.createElement("details");
    box.className = "curves";
    const summary = document.createElement("summary");
    summary.textContent = "Hover over the curves, hide groups";
    const svg = node("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
    const value = document.createElement("p");
    value.className = "value";
    const choices = document.createElement("div");
    box.append(summary, choices, value, svg);
    const log = lines.some((line) => line.log), of = log ? Math.log10 : (y) => y;
    let points = [];
    const draw = () => {
      svg.replaceChildren();
      points = [];
      value.textContent = "\u00a0";
      const shown = lines.filter((line) => !hidden.has(line.label));
      const xs = shown.flatMap((line) => line.x), ys = shown.flatMap((line) => line.y);
      if (!xs.length) return;
      const high = Math.max(...xs) || 1, bottom = Math.min(...ys), top = Math.max(...ys);
      const range = of(top) - of(bottom), pad = 0.05 * (range || 1);
      const px = (x) => LEFT + (x / high) * (W - LEFT - RIGHT);
      const py = (y) => H - BOTTOM - ((of(y) - of(bottom) + pad) / (range + 2 * pad))
        * (H - TOP - BOTTOM);
      for (const y of (log ? decades : ticks)(bottom, top)) {
        svg.append(node("path", { d: `M${LEFT} ${py(y)}H${W - RIGHT}`, stroke: "#d9d9d9" }));
        svg.append(node("text", { x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" }, y));
      }
      for (const x of ticks(0, high))
        svg.append(node("text", { x: px(x), y: H - 20, "text-anchor": "middle" }, x));
      svg.append(node("text", { x: W / 2, y: H - 4, "text-anchor": "middle" }, "epoch"));
      for (const line of shown) {
        const place = line.x.map((x, i) => [px(x), py(line.y[i])]);
        svg.append(node("path", { d: "M" + place.map((at) => at.join(" ")).join("L"),
          fill: "none", stroke: line.colour, "stroke-width": 2, "stroke-dasharray": line.dash }));
        place.forEach((at, i) => points.push({ line, i, at }));
      }
    };
    svg.addEventListener("mousemove", (event) => {
      const place = svg.getBoundingClientRect(), scale = W / place.width;
      const x = (event.clientX - place.left) * scale, y = (event.clientY - place.top) * scale;
      const far = (point) => Math.hypot(point.at[0] - x, point.at[1] - y);
      const near = points.reduce((a, b) => (a && far(a) <= far(b) ? a : b), null);
      svg.querySelectorAll("circle").forEach((circle) => circle.remove());
      if (!near) return;
      svg.append(node("circle", { cx: near.at[0], cy: near.at[1], r: 5, fill: near.line.colour }));
      const { label } = near.line, at = near.line.x[near.i], reached = near.line.y[near.i];
      value.textContent = `${label}: ${reached} at epoch ${at}`;
    });
    for (const label of new Set(lines.map((line) => line.label))) {
      const choice = document.createElement("label"), tick = document.createElement("input");
      tick.type = "checkbox";
      tick.checked = true;
      tick.addEventListener("change", () => {
        hidden[tick.checked ? "delete" : "add"](label);
        draw();
      });
      choice.style.color = lines.find((line) => line.label === label).colour;
      choice.append(tick, label);
      choices.append(choice);
    }
    draw();
    figure.append(box);
  };
  document.querySelectorAll("figure[data-curves]").forEach(show);
})();
