// The page: opens films, asks, and keeps both sides together.

import * as api from "./api.js";
import { FilmView, sides } from "./film.js";
import { Card, seconds, timing } from "./talk.js";

const $ = (id) => document.getElementById(id);
const OPEN_STUDY = "radvlm-study";
const REMEMBERED = 8;  // turns of a follow-up conversation

const state = { model: null, study: null, cards: [], shown: null, asking: null, turns: [] };
const view = new FilmView($("stage"), { onChange: reading });

// ---- the film

async function openFile(file) {
  if (!file || state.asking) return;
  await busy(`Looking at the film…`, async () => {
    const began = performance.now();
    const study = await api.upload(file);
    await showStudy(study);
    announce(`Film open, looked at in ${seconds(performance.now() - began)}.`);
  });
}

async function showStudy(study) {
  const bitmap = await api.picture(study.id);
  state.study = study;
  state.turns = [];
  sessionStorage.setItem(OPEN_STUDY, study.id);
  view.show(bitmap);
  $("empty").hidden = true;
  const { film, timing_ms: times } = study;
  const looked = Object.values(times).reduce((sum, ms) => sum + ms, 0);
  const spacing = film.spacing_mm ? `, ${film.spacing_mm[0].toFixed(3)} mm` : "";
  const size = `${film.width} × ${film.height}${spacing}${film.view ? `, ${film.view}` : ""}`;
  const cost = `${study.crops} crops, ${study.image_tokens} tokens, looked at in ${seconds(looked)}`;
  $("facts").textContent = [size, cost, ...study.warnings.map((text) => `⚠ ${text}`)].join("\n");
  const label = `Film viewer, ${film.width} by ${film.height} pixels${film.view ? `, view ${film.view}` : ""}`;
  $("stage").setAttribute("aria-label", label);
  [$("marker-left").textContent, $("marker-right").textContent] = sides(film.orientation);
  state.cards.forEach((card) => card.node.remove());
  state.cards = [];
  for (const record of study.history) {
    const card = addCard(record.question);
    card.finish(record);
  }
  showBoxes(state.cards.at(-1) ?? null);
  enable(true);
}

function reading({ grey, place, bitmap }) {
  $("reading").textContent = bitmap
    ? `W ${Math.round(grey.width)}  L ${Math.round(grey.level)}  ${Math.round(place.scale * 100)} %` : "";
  for (const name of ["width", "level"]) {
    $(name).value = grey[name];
    $(`${name}-out`).textContent = Math.round(grey[name]);
  }
  $("invert").setAttribute("aria-pressed", grey.inverted);
  $("boxes").setAttribute("aria-pressed", view.boxesShown);
}

function showBoxes(card) {
  state.cards.forEach((one) => one.node.classList.toggle("shown", one === card && one.boxes.length > 0));
  state.shown = card;
  view.boxes(card?.boxes ?? []);
}

async function forget() {
  if (!state.study) return;
  await busy("Forgetting the film…", async () => {
    await api.forget(state.study.id);
    closed();
    announce("The film and its history are forgotten.");
  });
}

function closed() {
  sessionStorage.removeItem(OPEN_STUDY);
  [state.study, state.turns] = [null, []];
  state.cards.forEach((card) => card.node.remove());
  state.cards = [];
  view.show(null);
  view.draw();
  for (const id of ["facts", "marker-left", "marker-right"]) $(id).textContent = "";
  $("stage").setAttribute("aria-label", "Film viewer, no film open");
  $("empty").hidden = false;
  enable(false);
}

// ---- questions

async function ask(question, shape) {
  question = question.trim();
  if (!question || !state.study || state.asking) return;
  const leaving = new AbortController();
  state.asking = leaving;
  enable(true);
  complain("");
  const card = addCard(question);
  showBoxes(null);
  const began = performance.now();
  const turns = $("follow").checked && !shape ? state.turns.slice(-REMEMBERED) : [];
  try {
    const request = { model: state.model.id, study: state.study.id, turns, question, shape, signal: leaving.signal };
    const result = await api.ask(request, (piece) => { if (!shape) card.write(piece); });
    const wall = performance.now() - began;
    card.finish(result, wall);
    showBoxes(card);
    if (!shape) state.turns.push({ question, text: result.text });
    announce(`${shape ? "Checklist done." : result.text} ${timing(result, wall)}`);
  } catch (error) {
    if (error.name === "AbortError") card.stopped("stopped");
    else {
      card.stopped("no answer");
      failed(error);
    }
  } finally {
    state.asking = null;
    enable(Boolean(state.study));
  }
}

function addCard(question) {
  const card = new Card($("log"), question, showBoxes);
  state.cards.push(card);
  $("hint").hidden = true;
  return card;
}

function task(name, phrase) {
  const own = state.model.radvlm;
  if (name !== "checklist") return ask(own.tasks[name].replace("{}", phrase ?? ""));
  const entries = own.checklist.map((question) => [question, { type: "boolean", description: question }]);
  return ask("Which of these findings are there?", { type: "object", properties: Object.fromEntries(entries) });
}

// ---- the page itself

function enable(open) {
  const asking = Boolean(state.asking);
  for (const node of document.querySelectorAll(".tasks button, .tasks input, #question, #send, #forget")) {
    node.disabled = !open || !state.model || (asking && node.id !== "question");
  }
  for (const id of ["open", "choose"]) $(id).disabled = asking;
  $("send").hidden = asking;
  $("stop").hidden = !asking;
}

async function busy(text, work) {
  complain("");
  $("busy-text").textContent = text;
  $("busy").hidden = false;
  announce(text);
  try {
    await work();
  } catch (error) {
    failed(error);
  } finally {
    $("busy").hidden = true;
  }
}

function failed(error) {
  if (!(error instanceof api.ServiceError)) console.error(error);
  if (error.status === 404 && state.study) closed();
  complain(error.message);
}

function complain(text) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
}

function announce(text) {
  $("status").textContent = text;
}

function askToken() {
  const dialog = $("token-dialog");
  $("token").value = "";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve($("token").value.trim()), { once: true });
    dialog.showModal();
  });
}

const KEYS = {
  "+": () => view.zoom(1.25), "=": () => view.zoom(1.25), "-": () => view.zoom(0.8), 0: () => view.fit(),
  ArrowLeft: () => view.move(40, 0), ArrowRight: () => view.move(-40, 0),
  ArrowUp: () => view.move(0, 40), ArrowDown: () => view.move(0, -40),
  "[": () => view.set({ width: view.grey.width - 10 }), "]": () => view.set({ width: view.grey.width + 10 }),
  ",": () => view.set({ level: view.grey.level - 5 }), ".": () => view.set({ level: view.grey.level + 5 }),
  i: () => $("invert").click(), b: () => $("boxes").click(), r: () => view.reset(),
  "?": () => $("help-dialog").showModal(), "/": () => $("question").focus(),
};

function wire() {
  const file = $("file");
  for (const id of ["open", "choose"]) $(id).addEventListener("click", () => file.click());
  file.addEventListener("change", () => { openFile(file.files[0]); file.value = ""; });
  for (const tool of ["pan", "window"]) {
    $(`tool-${tool}`).addEventListener("click", () => {
      view.tool = tool;
      for (const one of ["pan", "window"]) $(`tool-${one}`).setAttribute("aria-pressed", one === tool);
      $("stage").classList.toggle("windowing", tool === "window");
    });
  }
  $("zoom-in").addEventListener("click", () => view.zoom(1.25));
  $("zoom-out").addEventListener("click", () => view.zoom(0.8));
  $("zoom-fit").addEventListener("click", () => view.fit());
  $("invert").addEventListener("click", () => view.set({ inverted: !view.grey.inverted }));
  $("boxes").addEventListener("click", () => { view.boxesShown = !view.boxesShown; view.draw(); });
  $("reset").addEventListener("click", () => view.reset());
  $("help").addEventListener("click", () => $("help-dialog").showModal());
  $("forget").addEventListener("click", forget);
  for (const name of ["width", "level"]) $(name).addEventListener("input", () => view.set({ [name]: Number($(name).value) }));
  $("stage").addEventListener("keydown", (event) => {
    if (event.target !== $("stage") || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.asking) return;
    ask($("question").value);
    $("question").value = "";
  });
  $("stop").addEventListener("click", () => state.asking?.abort());
  for (const button of document.querySelectorAll("[data-task]")) {
    button.addEventListener("click", () => task(button.dataset.task));
  }
  $("locate-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const phrase = $("locate").value.trim();
    if (phrase) task("locate", phrase);
    else $("locate").focus();
  });
  dropping();
}

function dropping() {
  const over = (on) => $("stage").classList.toggle("over", on);
  window.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    openFile(event.dataTransfer.files[0]);
  });
}

async function start() {
  wire();
  api.onTokenNeeded(askToken);
  try {
    state.model = await api.model();
  } catch (error) {
    $("model").textContent = "no connection";
    failed(error);
    return;
  }
  const own = state.model.radvlm;
  $("model").textContent = `${state.model.id} · ${own.language}`;
  $("model").title = `bundle ${own.bundle.sha256}`;
  $("demonstration").hidden = !own.bundle.demonstration;
  if (own.bundle.demonstration) $("notice").textContent += " The demonstration model was trained mostly on synthetic films.";
  const id = sessionStorage.getItem(OPEN_STUDY);
  if (!id) return;
  try {
    await showStudy(await api.study(id));
  } catch {
    sessionStorage.removeItem(OPEN_STUDY);  // forgotten meanwhile: begin anew
  }
}

start();
