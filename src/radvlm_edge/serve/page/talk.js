// Questions and answers as cards.

export function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

function make(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export class Card {
  // `onShow` is called with this card when its boxes are wanted on the film.
  constructor(log, question, onShow) {
    this.node = make("article", "card");
    this.title = make("h2", "", question);
    this.answer = make("div", "answer writing");
    this.answer.setAttribute("aria-busy", "true");
    this.node.append(this.title, this.answer);
    this.onShow = onShow;
    this.boxes = [];
    log.append(this.node);
    this.log = log;
    this.follow();
  }

  write(piece) {
    this.answer.append(piece);
    this.follow();
  }

  // Keep the end in sight, unless the reader has scrolled away from it.
  follow() {
    this.node.scrollIntoView({ block: "nearest" });
  }

  ended() {
    this.answer.classList.remove("writing");
    this.answer.removeAttribute("aria-busy");
  }

  stopped(reason) {
    this.ended();
    this.node.append(make("p", "meta", reason));
    this.follow();
  }

  finish(result, wall) {
    this.ended();
    if (result.decisions?.length) this.decisions(result.decisions);
    else this.answer.textContent = result.text;
    const chips = make("ul", "chips");
    for (const label of result.decisions?.length ? [] : result.labels) chips.append(make("li", "", label));
    this.boxes = result.boxes ?? [];
    if (this.boxes.length) {
      const count = this.boxes.length;
      const show = make("button", "", `Show ${count === 1 ? "box" : `${count} boxes`}`);
      show.type = "button";
      show.addEventListener("click", () => this.onShow(this));
      chips.append(show);
    }
    if (chips.childElementCount) this.node.append(chips);
    this.node.append(make("p", "meta", timing(result, wall)));
    this.follow();
  }

  decisions(decisions) {
    this.answer.textContent = "";
    const table = make("table", "decisions");
    const body = table.createTBody();
    let on = "";
    for (const { question, text, probabilities, calibrated, calibrated_on } of decisions) {
      const shares = calibrated ?? probabilities;
      const share = shares.Yes ?? Math.max(...Object.values(shares));
      if (calibrated) on = calibrated_on;
      const row = body.insertRow();
      row.className = text === "Yes" ? "yes" : "";
      const name = make("th", "", question.replace(/^Is there /, "").replace(/\?$/, ""));
      name.scope = "row";
      const meter = make("meter");
      [meter.min, meter.max, meter.value] = [0, 1, share];
      meter.setAttribute("aria-hidden", "true");
      row.append(name);
      row.insertCell().append(meter);
      row.insertCell().textContent = `${text.toLowerCase()} ${share.toFixed(2)}`;
    }
    this.answer.append(table);
    const meaning = on ? `probability of yes, calibrated on ${on}` : "the model's own probability of yes, not calibrated";
    this.node.append(make("p", "meta", `Bars: ${meaning}.`));
  }
}

// Where the time went, in one line.
export function timing(result, wall) {
  const { queue, first_token: first } = result.timing_ms;
  const parts = [];
  if (result.decisions?.length) parts.push(`${result.decisions.length} decisions in ${seconds(result.timing_ms.prefill)}`);
  else parts.push(`first word ${seconds(first)}`, `${result.tokens} tokens`);
  if (wall !== undefined) parts.push(`in all ${seconds(wall)}`);
  if (queue > 250) parts.push(`waited ${seconds(queue)}`);
  if (result.stop === "length") parts.push("cut off at the length limit");
  return parts.join(" · ");
}
