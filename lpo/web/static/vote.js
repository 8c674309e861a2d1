"use strict";
// One question is on the screen while the next one and its pictures are loaded, so that a vote takes no waiting. A vote
// stays on the screen until the server says that it is stored; without a connection it is sent again.

const ROUND = 20;      // votes of one bar
const GUARD = 250;     // milliseconds after a change in which a tap meant the question before
const RETRY = 1500;    // milliseconds
const PIXELS = 160;    // a picture up to this side is pixel art, or a small model's: shown without smoothing
const $ = id => document.getElementById(id);
const stage = $("stage"), pictures = $("pictures"), note = $("note");

let current = null, next = null, last = null;  // questions; last: id of the vote that undo takes back
let order = [], shownAt = 0, paused = 0, hiddenAt = 0, zoomed = 0;
let votes = 0, started = 0, begun = performance.now();

const state = value => { stage.dataset.state = value; };
const pause = time => new Promise(done => setTimeout(done, time));

async function call(path, body) {
  const request = body === undefined ? {} : {
    method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body) };
  for (;;) {
    let answer = null;
    try { answer = await fetch(path, {...request, credentials: "same-origin"}); } catch { /* no connection */ }
    if (answer && answer.status < 500 && answer.status !== 429) {
      const data = await answer.json().catch(() => ({}));
      return {ok: answer.ok, status: answer.status, ...data};
    }
    note.textContent = "No connection. Trying again.";
    await pause(answer && answer.status === 429 ? 1000 * Number(answer.headers.get("retry-after") || 1) : RETRY);
  }
}

function loaded(question) {
  return Promise.all(question.images.map(address => {
    const image = new Image();
    image.src = address;
    return image.decode().catch(() => {}).then(() => image);
  }));
}

async function fetchNext(after) {
  const question = await call("/pair" + (after ? "?after=" + encodeURIComponent(after) : ""));
  if (question.pair) question.loaded = await loaded(question);
  return question;
}

async function advance() {
  let question = await next;
  next = null;
  if (!question || !question.pair) {
    question = await fetchNext("");
    count(question);
  }
  if (question.pair) return show(question);
  if (question.status === 401) { state("failed"); note.textContent = "Open the address with its token."; return; }
  if (question.state === "drawing") {
    state("waiting");
    note.textContent = "The next pictures are being drawn.";
    await pause(RETRY);
    return stage.dataset.state === "waiting" ? advance() : undefined;  // unless a vote was taken back meanwhile
  }
  state(question.state || "failed");
  note.textContent = question.state === "finished" ? "That was all. Thank you."
    : "No more pictures can be drawn. The terminal of lpo vote says why.";
}

function show(question, ahead) {
  current = question;
  order = [];
  $("prompt").textContent = question.prompt;
  const four = question.images.length > 2;
  $("task").textContent = four ? "Choose the best picture first, then the next best." : "Which picture is better?";
  pictures.className = four ? "four" : "";
  pictures.replaceChildren(...question.loaded.map(card));
  $("tie").disabled = four;
  note.textContent = question.enough ? "Enough votes are in. More of them make the figures sharper." : "";
  if (zoomed) enlarge(Math.min(zoomed, question.images.length));
  shownAt = performance.now();
  paused = 0;
  stage.dataset.pair = question.pair;
  state("ready");
  next = ahead || fetchNext(question.pair);
}

function card(image, place) {
  const box = document.createElement("div"), choose = document.createElement("button");
  const mark = document.createElement("span"), large = document.createElement("button");
  box.className = "picture";
  choose.className = "choose";
  choose.type = large.type = "button";
  choose.setAttribute("aria-label", "Picture " + (place + 1) + " is better");
  choose.addEventListener("click", () => pick(place));
  image.alt = "";
  image.draggable = false;
  image.classList.toggle("pixels", image.naturalWidth <= PIXELS);
  choose.append(image);
  mark.className = "mark";
  mark.textContent = place + 1;
  large.className = "enlarge";
  large.textContent = "\u2922";
  large.setAttribute("aria-label", "Enlarge picture " + (place + 1));
  large.addEventListener("click", () => enlarge(place + 1));
  box.append(choose, mark, large);
  return box;
}

const ready = () => stage.dataset.state === "ready" && performance.now() - shownAt >= GUARD;

function pick(place) {
  if (!ready() || place >= current.images.length || order.includes(place)) return;
  const boxes = pictures.children;
  boxes[place].classList.add("taken");
  if (boxes.length === 2) return send({choice: place === 0 ? "left" : "right"});
  order.push(place);
  boxes[place].querySelector(".mark").textContent = ["best", "2nd", "3rd"][order.length - 1];
  $("undo").disabled = false;
  if (order.length < boxes.length - 1) return;
  order.push([...boxes].findIndex((box, i) => !order.includes(i)));
  send({order: [...order]});
}

async function send(answer) {
  if (!ready()) return;
  const seconds = Math.round(performance.now() - shownAt - paused) / 1000, sent = current.pair;
  state("sending");
  const stored = await call("/vote", {pair: sent, seconds, ...answer});
  if (stored.ok) {
    if (answer.choice !== "skip" && stored.new) started += 1;
    count(stored);
  }
  note.textContent = "";
  return advance();
}

async function undo() {
  if (stage.dataset.state === "sending" || stage.dataset.state === "loading") return;
  if (order.length) return show(current, next);
  if (!last) return;
  state("sending");
  const again = await call("/undo", {pair: last});
  if (!again.ok) { note.textContent = again.error || "This vote cannot be taken back."; state("ready"); $("undo").disabled = true; return; }
  started = Math.max(0, started - 1);
  again.loaded = await loaded(again);
  count(again);
  show(again, next);
}

function enlarge(place) {
  if (!current) return;
  const image = pictures.children[place - 1].querySelector("img");
  zoomed = place;
  $("large").src = image.src;
  $("large").className = image.className;
  $("which").textContent = "Picture " + place;
  if (!$("zoom").open) $("zoom").showModal();
}

function turn(step) {
  const many = current.images.length;
  enlarge((zoomed - 1 + step + many) % many + 1);
}

function count(answer) {
  if (answer.progress) ({votes, last} = answer.progress);
  $("undo").disabled = !last;
  const round = votes % ROUND;
  $("count").textContent = votes + (votes === 1 ? " vote" : " votes");
  $("bar").setAttribute("aria-valuenow", round);
  $("bar").firstElementChild.style.width = 100 * round / ROUND + "%";
}

function clock() {
  const seconds = Math.floor((performance.now() - begun) / 1000);
  const pace = started ? " \u00b7 " + Math.round(seconds / started) + " s a vote" : "";
  $("clock").textContent = Math.floor(seconds / 60) + ":" + String(seconds % 60).padStart(2, "0") + pace;
}

function help(open) {
  $("keys").hidden = !open;
  $("help").setAttribute("aria-expanded", String(open));
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenAt = performance.now();
  else if (hiddenAt) { paused += performance.now() - Math.max(hiddenAt, shownAt); begun += performance.now() - hiddenAt; hiddenAt = 0; }
});
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase(), keys = {
    " ": () => current && current.images.length === 2 && send({choice: "tie"}), s: () => send({choice: "skip"}), u: undo,
    z: () => zoomed ? $("zoom").close() : enlarge(1), "?": () => help($("keys").hidden),
    arrowright: () => zoomed && turn(1), arrowleft: () => zoomed && turn(-1) };
  if (key === " " && document.activeElement.matches("#zoom button, #help")) return;
  if (key === "escape") return help(false);
  if (!keys[key] && !/^[1-4]$/.test(key)) return;
  event.preventDefault();
  if (keys[key]) keys[key](); else pick(Number(key) - 1);
});
$("tie").addEventListener("click", () => send({choice: "tie"}));
$("skip").addEventListener("click", () => send({choice: "skip"}));
$("undo").addEventListener("click", undo);
$("help").addEventListener("click", () => help($("keys").hidden));
$("zoom").addEventListener("close", () => { zoomed = 0; });
$("large").addEventListener("click", () => turn(1));
$("other").addEventListener("click", () => turn(1));
$("close").addEventListener("click", () => $("zoom").close());
setInterval(clock, 1000);
clock();
advance();
