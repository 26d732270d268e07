// The page: one connection to the server, the text box and its buttons, the numbers on top.
//
// Messages to the server   {type: "prompt", text}   {type: "shown", run, frames}   {type: "restart"}
// and from it              {type: "start", run, fps, joints, parents, sides, hips, head, prompt}
//                          {type: "prompt", run, text, frame}   {type: "made", run, fps}
//                          {type: "notice", text, refused}   {type: "error", text}
// and frames as float32: index of the first, count, joints, then x, y, z of each joint of each frame, in metres.

import { Player } from "./player.js";
import { PATHS, Scene } from "./scene.js";

const RETRY = 1500; // ms
const TELL = 100; // ms between two messages of what has been shown
const PATIENCE = 400; // ms without a frame until the page says so
const PATH_EVERY = 0.03; // metres between two points of the path

const $ = (id) => document.getElementById(id);
const seen = document.body.dataset; // what the page is doing, in words: state, run, received, shown, prompt

let scene = null;
let player = null;
let socket = null;
let run = 0;
let prompts = []; // {text, frame, colour}; frame null: not yet made
let paused = false;
let trouble = ""; // what ended the stream
let pose = null;
let path = []; // {x, z, frame}
let made = 0;
const speed = { frames: 0, time: 0 };

function connect() {
  const url = new URL("stream", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  url.search = url.hash = "";
  socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => (typeof data === "string" ? told(JSON.parse(data)) : arrived(data));
  socket.onclose = () => {
    if (player) player.ended = true;
    if (trouble) return;
    state("lost");
    setTimeout(connect, RETRY);
  };
}

function say(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function told(message) {
  if (message.type === "start") {
    run = message.run;
    player = new Player(message.fps, message.parents.length);
    pose = new Float32Array(3 * message.parents.length);
    scene.setBody(message);
    prompts = [{ text: message.prompt, frame: 0, colour: PATHS[0] }];
    path = [];
    trouble = "";
    notice("");
    listPrompts();
    Object.assign(seen, { run, received: 0, shown: 0 });
  } else if (message.type === "prompt" && message.run === run) {
    const last = prompts.at(-1);
    const entry = last.frame === null ? last : { colour: PATHS[prompts.length % PATHS.length] };
    if (entry !== last) prompts.push(entry);
    Object.assign(entry, { text: message.text, frame: message.frame });
    listPrompts();
  } else if (message.type === "made" && message.run === run) {
    made = made ? 0.7 * made + 0.3 * message.fps : message.fps;
  } else if (message.type === "notice") {
    notice(message.text);
    if (prompts.at(-1)?.frame === null && message.refused) prompts.pop();
    listPrompts();
  } else if (message.type === "error") {
    trouble = message.text;
    if (player) player.ended = true;
  }
}

function arrived(buffer) {
  const [index, count] = new Float32Array(buffer, 0, 3);
  player.add(index, count, new Float32Array(buffer, 12));
  seen.received = player.received;
}

function notice(text) {
  $("notice").textContent = text;
  clearTimeout(notice.timer);
  if (text) notice.timer = setTimeout(() => notice(""), 6000);
}

function minutes(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function current() {
  return prompts.findLastIndex((prompt) => prompt.frame !== null && prompt.frame < Math.max(player?.shown ?? 0, 1));
}

function listPrompts() {
  const now = current();
  $("prompts").replaceChildren(...prompts.map((prompt, i) => {
    const item = document.createElement("li"), when = document.createElement("b");
    item.className = i === now ? "now" : i > now ? "next" : "";
    item.style.setProperty("--colour", prompt.colour);
    item.title = prompt.text;
    when.textContent = prompt.frame === null ? "next" : minutes(prompt.frame / player.fps);
    item.append(when, prompt.text);
    return item;
  }));
  $("prompts").scrollLeft = $("prompts").scrollWidth;
  $("prompts").classList.toggle("more", $("prompts").scrollLeft > 0);
  listPrompts.now = now;
  seen.prompt = prompts[now]?.text ?? "";
}

function state(name) {
  if (seen.state === name && name !== "ended") return;
  seen.state = name;
  $("cover").textContent = {
    live: "", connecting: "connecting", waiting: "generating",
    paused: "paused", lost: "the server does not answer; trying again", ended: trouble,
  }[name];
}

function walk() {
  const frame = player.shown - 1, last = path.at(-1), root = { x: pose[0], z: pose[2], frame };
  if (last && last.frame > frame) path = [];
  if (!last || Math.hypot(root.x - last.x, root.z - last.z) > PATH_EVERY) path.push(root);
  while (path.length > 2 && path[0].frame < frame - player.kept) path.shift();
  scene.setPath([...path, root].map((point) => ({
    ...point,
    share: Math.min(1, Math.max(0, 1 - (frame - point.frame) / player.kept)),
    colour: (prompts.findLast((prompt) => prompt.frame !== null && prompt.frame <= point.frame) ?? prompts[0]).colour,
  })));
}

let before = performance.now(), moved = before;
function draw(now) {
  const seconds = Math.min(0.25, (now - before) / 1000);
  before = now;
  if (player) {
    if (!paused) player.advance(seconds);
    if (!player.waiting) moved = now;
    if (player.pose(pose)) {
      scene.setPose(pose);
      walk();
    }
    seen.shown = player.shown;
    if (current() !== listPrompts.now) listPrompts();
    if (socket.readyState === WebSocket.OPEN || trouble) {
      state(trouble && player.waiting ? "ended" : paused ? "paused" : now - moved > PATIENCE ? "waiting" : "live");
    }
  }
  scene.render(seconds);
  requestAnimationFrame(draw);
}

function tell() {
  if (!player) return;
  if (player.shown !== tell.last || run !== tell.run) {
    say({ type: "shown", run, frames: player.shown });
    [tell.last, tell.run] = [player.shown, run];
  }
}

function count() {
  if (!player) return;
  const now = performance.now(), passed = (now - speed.time) / 1000;
  const fps = (player.shown - speed.frames) / passed;
  Object.assign(speed, { frames: player.shown, time: now });
  $("time").textContent = minutes(player.clock / player.fps);
  $("fps").textContent = fps >= 0 && passed < 3 ? Math.round(fps) : "–";
  $("made").textContent = made ? (made < 1000 ? Math.round(made) : "999+") : "–";
  $("buffer").textContent = `${player.buffered.toFixed(1)} s`;
}

function pause(on) {
  paused = on;
  $("pause").setAttribute("aria-pressed", String(on));
  $("pause").title = on ? "go on" : "pause";
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text) return notice("type what the body should do");
  if (!player || socket.readyState !== WebSocket.OPEN) return notice("there is no stream yet");
  say({ type: "prompt", text });
  const last = prompts.at(-1);
  if (last.frame === null) last.text = text;
  else prompts.push({ text, frame: null, colour: PATHS[prompts.length % PATHS.length] });
  $("prompt").value = "";
  notice("");
  pause(false);
  listPrompts();
});
$("pause").addEventListener("click", () => pause(!paused));
$("restart").addEventListener("click", () => {
  pause(false);
  trouble = "";
  if (socket.readyState === WebSocket.OPEN) say({ type: "restart" });
  else if (socket.readyState === WebSocket.CLOSED) connect();
});
window.addEventListener("keydown", (event) => {
  if (event.key === " " && document.activeElement === document.body) pause(!paused);
  if (event.key === "Escape") document.activeElement.blur();
});

state("connecting");
try {
  scene = new Scene($("scene"));
} catch (error) {
  trouble = "this browser cannot draw: WebGL is off";
  state("ended");
  throw error;
}
if (matchMedia("(pointer: fine)").matches) $("prompt").focus();
setInterval(tell, TELL);
setInterval(count, 500);
requestAnimationFrame(draw);
connect();
