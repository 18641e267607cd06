// The page at `/`, a client of /v1 like any other: what goes on in it. Nothing is kept but the key, and that in this tab.

import { Refusal, ask, eventsOf, forgetKey, formOf, keepKey, key } from "/ask.js";
import { howOf, picture, showBars, showRationale } from "/answers.js";
import { command, commandsOf } from "/curl.js";
import { byId, element, lasting, listed, percent, rate } from "/words.js";

let task = null; // TaskAnswer
let video = null; // what was chosen last: file, the name it has in a shell, number of the sample, context, and once answered its id
let pictures = {}; // of it: frames, and once asked for, looks, an AttentionAnswer
let running = new AbortController(); // whatever is being asked about it

// Do `work(signal)` in place of what was going on; says what it comes to, or what went wrong and, where that may help, how to try `again`.
async function run(said, work, again = () => run(said, work)) {
  running.abort();
  const mine = (running = new AbortController());
  hideError();
  say(said, true);
  try {
    const outcome = await work(mine.signal);
    if (mine === running) say(outcome);
  } catch (error) {
    if (mine !== running) return; // something else goes on already
    if (error.name === "AbortError") return say("Stopped.");
    say("");
    showError(error, again);
  }
}

function say(text, isBusy = false) {
  byId("status").textContent = text || "";
  byId("status").classList.toggle("busy", isBusy);
}

function showError(error, again) {
  if (error.status === 401) return askForKey();
  if (!(error instanceof Refusal)) console.error(error);
  const box = byId("error");
  const detail = error instanceof Refusal ? error.message : "The connection broke off, or this page has a mistake.";
  box.replaceChildren(detail[0].toUpperCase() + detail.slice(1));
  const mayHelp = error instanceof Refusal ? error.retryAfterS !== null : true;
  if (mayHelp) {
    const wait = error.retryAfterS ? ` (best in ${error.retryAfterS} s)` : "";
    box.append(element("button", { type: "button", textContent: `Try again${wait}`, onclick: again }));
  }
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
}

function hideError() {
  byId("error").hidden = true;
  byId("error").replaceChildren();
}

function askForKey() {
  const hadOne = key() !== null;
  forgetKey();
  byId("forget").hidden = true;
  byId("choose").hidden = byId("result").hidden = true;
  byId("key-form").hidden = false;
  if (hadOne) showError(new Refusal("The service does not know this key, or not any more."));
  byId("key").focus();
}

async function begin() {
  await run("", async (signal) => {
    task = await (await ask("/v1/task", { signal })).json();
    const hasKey = key() !== null;
    byId("key-form").hidden = true;
    byId("forget").hidden = !hasKey;
    showTask();
    if (hasKey && document.activeElement === document.body) byId("file").focus();
    return "";
  });
}

function showTask() {
  const { limits, sampled } = task;
  document.title = `Video classification · ${task.name}`;
  byId("question").textContent = `The model tells ${listed(task.labels)}.`;
  byId("limits").textContent = `Up to ${Math.round(limits.max_upload_bytes / 2 ** 20)} MB and ${lasting(limits.max_duration_s)}. It sees ${rate(sampled.fps)}, at most ${sampled.max_frames}.`;
  byId("model").textContent = `Model ${task.model.name}, ${task.model.fingerprint}`;
  byId("context").maxLength = limits.max_context_characters;
  const buttons = Array.from({ length: task.num_samples }, (_, index) =>
    element("button", { type: "button", textContent: `Sample ${index + 1}`, onclick: () => chooseSample(index + 1) }),
  );
  byId("samples").replaceChildren(byId("samples").firstElementChild, ...buttons);
  byId("samples").hidden = buttons.length === 0;
  byId("choose").hidden = false;
}

function chooseSample(number) {
  run("Fetching the sample …", async (signal) => {
    const file = await (await ask(`/v1/samples/${number}`, { accept: "*/*", signal })).blob();
    classify({ file, sample: number, name: `sample-${number}.mp4` });
  });
}

function chooseFile(file) {
  if (!task || !file) return;
  classify({ file, sample: null, name: file.name });
}

function classify(chosen) {
  byId("result").hidden = true;
  const context = byId("context").value.trim();
  video = { ...chosen, context, id: null };
  const mine = video;
  run("Looking at the video …", async (signal) => {
    if (mine.file.size > task.limits.max_upload_bytes) throw new Refusal("This file is larger than the service takes; choose a shorter or smaller video.");
    const answer = await (await ask("/v1/classify", { form: formOf({ video: mine.file, context }), signal })).json();
    mine.id = answer.video_id;
    showAnswer(answer);
    showFrames(mine);
    return `Answered: ${answer.label}, ${percent(answer.probabilities[answer.label])}.`;
  });
}

async function why() {
  if (byId("ask").dataset.writes) return running.abort();
  const mine = video;
  byId("why").hidden = false;
  byId("checks").textContent = "";
  byId("ask").dataset.writes = "yes";
  byId("ask").textContent = "Stop";
  const text = element("p");
  byId("rationale").replaceChildren(text);
  byId("rationale").classList.add("writing");
  await run("The model writes …", async (signal) => {
    for await (const [name, data] of eventsOf(await askAbout(mine, "/v1/rationale", { accept: "text/event-stream", signal }))) {
      if (name === "text") text.append(data.text);
      else if (name === "problem") throw new Refusal(data.detail, { status: data.status, code: data.code, retryAfterS: data.status >= 502 ? 0 : null });
      else if (name === "end") {
        showRationale(data, task.headings);
        return "The rationale is complete.";
      }
    }
    throw new Refusal("The service broke off.", { retryAfterS: 0 });
  }, why);
  if (mine === video) endOfWhy(text.textContent !== "");
}

function endOfWhy(hasText) {
  delete byId("ask").dataset.writes;
  byId("rationale").classList.remove("writing");
  byId("ask").textContent = hasText ? "Ask again" : "Ask why";
  byId("why").hidden = !hasText;
}

// By the id; by the file where the service has the video no more.
async function askAbout(chosen, path, options) {
  if (chosen.id) {
    try {
      return await ask(path, { form: formOf({ video_id: chosen.id }), ...options });
    } catch (error) {
      if (error.code !== "clip_expired") throw error;
    }
  }
  return ask(path, { form: formOf({ video: chosen.file, context: chosen.context }), ...options });
}

function showAnswer(answer) {
  byId("source").textContent = video.sample ? `Sample ${video.sample}` : video.name;
  byId("label").textContent = answer.label;
  showBars(answer);
  byId("how").textContent = howOf(answer, task.labels);
  endOfWhy(false);
  byId("shell").replaceChildren(...commandsOf(video, task.has_attention).map((line) => command(line, say)));
  byId("result").hidden = false;
  if (byId("result").getBoundingClientRect().top > innerHeight / 2) byId("result").scrollIntoView({ block: "start" });
}

async function showFrames(chosen) {
  pictures = {};
  showPictures([]);
  const miss = (text) => {
    byId("no-frames").textContent = text;
    byId("no-frames").hidden = !text;
    byId("frames").hidden = Boolean(text);
  };
  if (!chosen.id) return miss("The service keeps no frames of this video.");
  miss("");
  try {
    const { frames } = await (await ask("/v1/frames", { form: formOf({ video_id: chosen.id }) })).json();
    if (chosen !== video) return;
    pictures = { frames };
    showPictures(frames);
  } catch (error) {
    if (chosen === video) miss(`The frames cannot be shown: ${error.message}`);
  }
}

function showPictures(shown) {
  const isLooks = shown.length > 0 && shown === pictures.looks?.heatmaps;
  byId("frames").replaceChildren(...shown.map(picture));
  byId("frames").ariaLabel = isLooks ? "Sampled frames under their heatmaps" : "Sampled frames";
  byId("look").ariaPressed = String(isLooks);
  byId("look-row").hidden = !task.has_attention;
  byId("looks").hidden = !isLooks;
  if (isLooks) byId("looks").textContent = `Yellow is where the model looks most when it is about to say the label, purple where least. ${percent(pictures.looks.video_share)} of its attention goes to the video, the rest to the question.`;
}

// Frames or heatmaps in turn; the heatmaps are asked for once.
function look() {
  if (byId("look").ariaPressed === "true") {
    showPictures(pictures.frames ?? []);
    return say("The frames as they are.");
  }
  const mine = video;
  const show = (looks) => {
    pictures.looks = looks;
    byId("no-frames").hidden = true;
    byId("frames").hidden = false;
    showPictures(looks.heatmaps);
    return "Heatmaps lie over the frames.";
  };
  if (pictures.looks) return say(show(pictures.looks));
  run("Finding out where it looked …", async (signal) => {
    const looks = await (await askAbout(mine, "/v1/attention", { signal })).json();
    if (mine !== video) return "";
    return show(looks);
  }, look);
}

// --- the person ---

byId("file").addEventListener("change", () => {
  chooseFile(byId("file").files[0]);
  byId("file").value = ""; // so that the same file can be chosen again
});
byId("ask").addEventListener("click", why);
byId("look").addEventListener("click", look);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const told = byId("key").value.trim();
  byId("key").value = "";
  if (!/^[\x21-\x7e]+$/.test(told)) return showError(new Refusal("That is no key of this service: they are made of plain letters, digits and signs."));
  keepKey(told);
  begin();
});
byId("forget").addEventListener("click", () => {
  forgetKey();
  location.reload();
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  chooseFile(event.dataTransfer.files[0]);
});
begin();
