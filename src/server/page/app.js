// The chat page. Talks to the same endpoints as any client: /v1/chat/completions and, for what it shows, /stats.
"use strict";

const $ = (id) => document.getElementById(id);
const MAX_PICTURE_BYTES = 40 * 1024 * 1024;
const PICTURE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];  // what the server decodes

const state = {
  model: null,       // of /stats
  pictures: [],      // of the next message
  messages: [],      // {role, text, pictures}
  running: null,     // AbortController of the answer under way
  lastStats: null,
};

// --- pictures ---

const maxTiles = () => Number($("tiles").value);

function gridOf(picture) {
  const model = state.model || {image_size: 448, min_dynamic_patch: 1, use_thumbnail: true, tokens_per_tile: 256};
  const most = maxTiles();
  return chooseTileGrid(picture.width, picture.height, model.image_size, Math.min(model.min_dynamic_patch, most), most, model.use_thumbnail);
}

// What a picture takes of the prompt: its tiles, and the two marks around it.
const tokensOf = (grid) => grid.tiles * (state.model ? state.model.tokens_per_tile : 256) + 2;

function tileWords(grid) {
  return grid.tiles === 1 ? "1 tile" : `${grid.columns} × ${grid.rows} tiles` + (grid.tiles > grid.columns * grid.rows ? " + thumbnail" : "");
}

// The picture with the cuts over it.
function drawGrid(canvas, picture, grid) {
  const scale = Math.min(1, 480 / Math.max(picture.width, picture.height));
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const context = canvas.getContext("2d");
  context.drawImage(picture.bitmap, 0, 0, canvas.width, canvas.height);
  const lines = (color, width) => {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.beginPath();
    for (let c = 1; c < grid.columns; ++c) {
      context.moveTo((c * canvas.width) / grid.columns, 0);
      context.lineTo((c * canvas.width) / grid.columns, canvas.height);
    }
    for (let r = 1; r < grid.rows; ++r) {
      context.moveTo(0, (r * canvas.height) / grid.rows);
      context.lineTo(canvas.width, (r * canvas.height) / grid.rows);
    }
    context.stroke();
  };
  const width = Math.max(2, canvas.width / 90);  // the canvas is shown at a third of its size, or so
  lines("rgba(0,0,0,.75)", 2 * width);
  lines("#ffc21a", width);
}

function pictureFigure(picture, grid, onRemove) {
  const figure = document.createElement("figure");
  figure.className = "picture";
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${picture.name}, ${picture.width} by ${picture.height} pixels, ${tileWords(grid)}`);
  drawGrid(canvas, picture, grid);
  const caption = document.createElement("figcaption");
  caption.textContent = `${picture.width} × ${picture.height}, ${tileWords(grid)}: ${tokensOf(grid).toLocaleString()} tokens`;
  figure.append(canvas, caption);
  if (onRemove) {
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${picture.name}`);
    remove.addEventListener("click", onRemove);
    figure.append(remove);
  }
  return figure;
}

function showPictures() {
  $("pictures").replaceChildren(...state.pictures.map((picture, index) => {
    const item = document.createElement("li");
    item.append(pictureFigure(picture, gridOf(picture), () => {
      state.pictures.splice(index, 1);
      showPictures();
      $("prompt").focus();
    }));
    return item;
  }));
  const tiles = state.pictures.reduce((sum, picture) => sum + gridOf(picture).tiles, 0);
  const tokens = state.pictures.reduce((sum, picture) => sum + tokensOf(gridOf(picture)), 0);
  let text = "";
  if (state.pictures.length) {
    text = `${state.pictures.length === 1 ? "1 picture" : state.pictures.length + " pictures"}, ${tiles} ${tiles === 1 ? "tile" : "tiles"}, ${tokens.toLocaleString()} tokens`;
    if (state.model) text += ` of the session's ${state.model.session_len.toLocaleString()}`;
    if (state.model && tokens > state.model.session_len) text += ": too many, lower the tiles in Settings";
  }
  $("cost").textContent = text;
}

const readAsDataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

async function addFiles(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) continue;
    try {
      if (!PICTURE_TYPES.includes(file.type)) throw new Error("send PNG, JPEG, WebP, GIF or BMP");
      if (file.size > MAX_PICTURE_BYTES) throw new Error("larger than 40 MiB");
      // Sizes before turning: the model's grid is chosen from the stored pixels, as the server does by default.
      const bitmap = await createImageBitmap(file, {imageOrientation: "none"}).catch(() => createImageBitmap(file));
      state.pictures.push({name: file.name || "pasted picture", width: bitmap.width, height: bitmap.height, bitmap, url: await readAsDataUrl(file)});
    } catch (error) {
      showError(`${file.name || "picture"} cannot be read: ${error.message || error}`);
    }
  }
  showPictures();
}

// --- conversation ---

function messageNode(role, who) {
  $("welcome").hidden = true;
  const node = document.createElement("article");
  node.className = "message " + role;
  const name = document.createElement("p");
  name.className = "who";
  name.textContent = who;
  const text = document.createElement("div");
  text.className = "text";
  node.append(name, text);
  $("log").append(node);
  return {node, text};
}

const nearEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
const scrollToEnd = () => { $("log").scrollTop = $("log").scrollHeight; };

function showError(message) {
  const {text} = messageNode("error", "Error");
  text.textContent = message;
  text.parentNode.setAttribute("role", "alert");
  scrollToEnd();
}

function showUser(message) {
  const {node, text} = messageNode("user", "You");
  if (message.pictures.length) {
    const thumbs = document.createElement("div");
    thumbs.className = "thumbs";
    for (const picture of message.pictures) thumbs.append(pictureFigure(picture, picture.grid));
    node.insertBefore(thumbs, text);
  }
  text.textContent = message.text;
  scrollToEnd();
  return node;
}

function requestMessages() {
  const messages = [];
  const system = $("system").value.trim();
  if (system) messages.push({role: "system", content: system});
  for (const message of state.messages) {
    if (!message.pictures || !message.pictures.length) {
      messages.push({role: message.role, content: message.text});
      continue;
    }
    const parts = message.pictures.map((picture) => ({type: "image_url", image_url: {url: picture.url, max_dynamic_patch: picture.most}}));
    messages.push({role: message.role, content: [...parts, {type: "text", text: message.text}]});
  }
  return messages;
}

function requestBody() {
  const body = {messages: requestMessages(), stream: true, stream_options: {include_usage: true}, temperature: Number($("temperature").value)};
  if ($("max-tokens").value) body.max_tokens = Number($("max-tokens").value);
  return body;
}

async function errorOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// Calls `onEvent` with each object of a stream of server-sent events.
async function readEvents(body, onEvent) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    buffered += value;
    let end;
    while ((end = buffered.indexOf("\n\n")) >= 0) {
      const line = buffered.slice(0, end);
      buffered = buffered.slice(end + 2);
      if (line.startsWith("data: ") && line !== "data: [DONE]") onEvent(JSON.parse(line.slice(6)));
    }
  }
}

// Shows an answer as it grows: at most one rendering a frame, however fast tokens come.
class AnswerView {
  constructor() {
    ({node: this.node, text: this.target} = messageNode("assistant busy", state.model ? state.model.name : "Model"));
    this.text = "";
    this.tokens = 0;
    this.pending = false;
    this.started = performance.now();
  }
  append(text) {
    this.last = performance.now();
    if (!this.tokens) this.first = this.last;
    this.tokens += 1;
    this.text += text;
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => this.render());
  }
  render() {
    this.pending = false;
    const follow = nearEnd();
    Markdown.render(this.target, this.text);
    if (follow) scrollToEnd();
    const seconds = (this.last - this.first) / 1000;
    if (this.tokens > 3 && seconds > 0.02) $("speed").textContent = `${((this.tokens - 1) / seconds).toFixed(1)} tokens/s`;
  }
  finish(usage, reason) {
    this.render();
    this.node.classList.remove("busy");
    const facts = document.createElement("p");
    facts.className = "facts";
    const words = [];
    if (usage) words.push(`${usage.prompt_tokens.toLocaleString()} prompt tokens (${usage.prompt_tokens_details.image_tokens.toLocaleString()} of pictures, ${usage.prompt_tokens_details.cached_tokens.toLocaleString()} cached), ${usage.completion_tokens.toLocaleString()} new`);
    if (this.first) words.push(`first after ${((this.first - this.started) / 1000).toFixed(2)} s`);
    if (reason && reason !== "stop") words.push(reason === "length" ? "cut at the limit of tokens" : reason);
    facts.textContent = words.join(" · ");
    this.node.append(facts);
    $("announce").textContent = this.text ? "Answer: " + this.text.slice(0, 2000) : "No answer";
  }
}

function setRunning(controller) {
  state.running = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
  $("log").setAttribute("aria-busy", controller ? "true" : "false");
}

// The question goes back to where it was written, so that it can be changed or sent again.
function takeBack(question, node) {
  state.messages.pop();
  node.remove();
  state.pictures = question.pictures;
  $("prompt").value = question.text;
  fitPrompt();
  showPictures();
}

async function ask(question, questionNode) {
  const controller = new AbortController();
  const conversation = state.messages;  // a new one may begin before this answer ends
  setRunning(controller);
  const view = new AnswerView();
  let usage = null, reason = "", failure = "";
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(requestBody()), signal: controller.signal});
    if (!response.ok) throw new Error(await errorOf(response));
    await readEvents(response.body, (event) => {
      if (event.error) failure = event.error.message;
      if (event.usage) usage = event.usage;
      const choice = event.choices && event.choices[0];
      if (!choice) return;
      if (choice.delta.content) view.append(choice.delta.content);
      if (choice.finish_reason) reason = choice.finish_reason;
    });
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped";
    else failure = String(error.message || error);
  }
  setRunning(null);
  if (conversation !== state.messages) return;
  if (view.text || usage) {
    view.finish(usage, reason);
    state.messages.push({role: "assistant", text: view.text, pictures: []});
  } else {
    view.node.remove();
    takeBack(question, questionNode);
  }
  if (failure) showError(failure);
  remember();
  $("prompt").focus();
}

function send() {
  const text = $("prompt").value.trim();
  if (state.running || (!text && !state.pictures.length)) return;
  const pictures = state.pictures.map((picture) => ({...picture, grid: gridOf(picture), most: maxTiles()}));
  const message = {role: "user", text, pictures};
  state.messages.push(message);
  state.pictures = [];
  $("prompt").value = "";
  fitPrompt();
  showPictures();
  ask(message, showUser(message));
}

// --- history ---

function remember() {
  try {
    if ($("remember").checked)
      localStorage.setItem("tessera", JSON.stringify(state.messages.map(({role, text, pictures}) => ({role, text, pictures: pictures.length}))));
    else
      localStorage.removeItem("tessera");
  } catch { /* a browser may forbid it; then nothing is kept */ }
}

function recall() {
  let kept = null;
  try { kept = JSON.parse(localStorage.getItem("tessera")); } catch { /* as above */ }
  if (!Array.isArray(kept)) return;
  $("remember").checked = true;
  for (const {role, text, pictures} of kept) {
    if (typeof text !== "string" || (role !== "user" && role !== "assistant")) continue;
    const said = pictures > 0 ? `${text}\n(${pictures} picture${pictures > 1 ? "s" : ""}, not kept)` : text;
    state.messages.push({role, text, pictures: []});
    if (role === "user") showUser({text: said, pictures: []});
    else Markdown.render(messageNode("assistant", "Model").text, text);
  }
}

function newChat() {
  state.messages = [];
  if (state.running) state.running.abort();
  for (const node of document.querySelectorAll(".message")) node.remove();
  $("welcome").hidden = false;
  remember();
  $("prompt").focus();
}

function exportChat() {
  const text = JSON.stringify({messages: requestMessages()}, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "conversation.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// --- server's numbers ---

const mebibytes = (bytes) => (bytes / 1048576).toLocaleString(undefined, {maximumFractionDigits: 1}) + " MiB";

// One bar a line, all to one scale, so that what takes the memory is seen at once.
function showMemory(lines) {
  const most = Math.max(1, ...lines.map((line) => line.planned_bytes));
  $("memory-total").textContent = mebibytes(lines.reduce((sum, line) => sum + line.planned_bytes, 0)) + " planned";
  $("memory").tBodies[0].replaceChildren(...lines.filter((line) => line.planned_bytes || line.used_bytes).map((line) => {
    const row = document.createElement("tr");
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = line.name.replaceAll("_", " ");
    const bar = document.createElement("meter");
    bar.max = most;
    bar.value = line.planned_bytes;
    bar.setAttribute("aria-label", `${name.textContent}, planned`);
    row.append(name);
    row.insertCell().append(bar);
    for (const text of [mebibytes(line.planned_bytes) + " planned", line.used_bytes === undefined ? "" : mebibytes(line.used_bytes) + " used"]) row.insertCell().textContent = text;
    return row;
  }));
}

function showStats(stats) {
  if (!state.model) {
    $("tiles").max = Math.max(stats.model.max_dynamic_patch, 40);
    $("tiles").value = stats.model.max_dynamic_patch;
  }
  state.model = stats.model;
  $("tiles-value").textContent = $("tiles").value;
  $("model").textContent = $("model").title = `${stats.model.name} · session of ${stats.model.session_len.toLocaleString()} tokens · ${stats.running} running, ${stats.waiting} waiting`;
  const share = stats.kv_blocks_total ? stats.kv_blocks_used / stats.kv_blocks_total : 0;
  $("kv").value = share;
  $("kv-text").textContent = (100 * share).toFixed(0) + " %";
  showMemory(stats.memory);
}

async function pollStats() {
  try {
    const response = await fetch("/stats");
    if (!response.ok) throw new Error(await errorOf(response));
    const first = !state.model;
    showStats(await response.json());
    if (first) showPictures();
  } catch (error) {
    $("model").textContent = String(error.message || error);
  }
  setTimeout(pollStats, document.hidden ? 10000 : state.running ? 1000 : 3000);
}

// --- wiring ---

function fitPrompt() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = prompt.scrollHeight + 2 + "px";
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("prompt").addEventListener("input", fitPrompt);
$("stop").addEventListener("click", () => state.running && state.running.abort());
$("files").addEventListener("change", async (event) => { await addFiles(event.target.files); event.target.value = ""; });
$("settings-toggle").addEventListener("click", () => {
  const open = $("settings").hidden;
  $("settings").hidden = !open;
  $("settings-toggle").setAttribute("aria-expanded", String(open));
});
$("tiles").addEventListener("input", () => { $("tiles-value").textContent = $("tiles").value; showPictures(); });
$("temperature").addEventListener("input", () => { $("temperature-value").textContent = $("temperature").value; });
$("temperature-value").textContent = $("temperature").value;
$("remember").addEventListener("change", remember);
$("new-chat").addEventListener("click", newChat);
$("export").addEventListener("click", exportChat);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.running) state.running.abort(); });
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); addFiles(files); }
});
let dragDepth = 0;
document.addEventListener("dragenter", () => { ++dragDepth; document.body.classList.add("dropping"); });
document.addEventListener("dragleave", () => { if (--dragDepth <= 0) document.body.classList.remove("dropping"); });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  dragDepth = 0;
  document.body.classList.remove("dropping");
  addFiles(event.dataTransfer.files);
});
recall();
pollStats();
