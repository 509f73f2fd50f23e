"use strict";

// Episodes: every one is in the data of the page; the filters choose, and a row is built when it comes into the list.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const films = read("films"), data = read("data-episodes");
const form = document.getElementById("filters"), list = document.getElementById("list"), more = document.getElementById("more");
const hues = [...document.querySelectorAll(".arms .dot")].map((dot) => dot.className);
const won = (outcome) => outcome >= 0 && outcome % 2 === 1;
const STEP = 40;
let found = [], shown = 0;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function fits(index) {
  const [task, episode, , outcomes] = data.rows[index];
  const { show, arm, task: wanted, number } = Object.fromEntries(new FormData(form));
  if (+wanted >= 0 && task !== +wanted) return false;
  if (number !== "" && String(episode) !== number.trim()) return false;
  const arms = +arm >= 0 ? [+arm] : outcomes.map((_, i) => i).filter((i) => i !== data.base);
  const asked = arms.length ? arms : [0];
  const base = data.base >= 0 ? outcomes[data.base] : -1;
  const tests = {
    all: () => true,
    otherwise: (o) => base >= 0 && o >= 0 && won(o) !== won(base),
    lost: (o) => o >= 0 && won(base) && !won(o),
    gained: (o) => base >= 0 && won(o) && !won(base),
    failed: (o) => o >= 0 && !won(o),
    achieved: won,
    films: (o, i) => `${index}-${i}` in data.films,
  };
  return asked.some((i) => (show === "all" ? +arm < 0 || outcomes[i] >= 0 : tests[show](outcomes[i], i)));
}

function film(index, arm) {
  const [task, episode, seed, outcomes] = data.rows[index];
  const figure = make("figure"), outcome = outcomes[arm], at = data.films[`${index}-${arm}`];
  if (at) {
    const video = make("video");
    Object.assign(video, { controls: true, muted: true, playsInline: true, preload: "metadata" });
    video.ariaLabel = `${data.arms[arm]}, ${data.tasks[task]} ${episode}`;
    video.src = (at[0] ? "data:video/mp4;base64," + films[at[0]] : at[1]) + "#t=0.1";  // a first picture as poster
    figure.append(video);
  } else {
    const how = data.commands[arm][seed], box = make("div", "made");
    box.append(make("span", "quiet", how ? "No film. This makes it:" : "No film, and the journal does not say how the run was started."));
    if (how) box.append(make("br"), make("code", "", `${how} 'only=[${data.tasks[task]}:${episode}]'`));
    figure.append(box);
  }
  const caption = make("figcaption"), name = make("span", "", ` ${data.arms[arm]}: `);
  caption.append(make("span", hues[arm]), name, make("b", won(outcome) ? "gained" : "lost", won(outcome) ? "achieved" : "failed"));
  caption.append(` after ${outcome >> 1} steps`);
  if (at && !at[0]) {
    const link = make("a", "", "file");
    link.href = at[1];
    caption.append(" · ", link);
  }
  figure.append(caption);
  return figure;
}

function row(index) {
  const [task, episode, seed, outcomes] = data.rows[index];
  const details = make("details", "row"), summary = make("summary"), marks = make("span");
  const several = new Set(data.rows.map((r) => r[2])).size > 1;
  summary.append(make("span", "what", `${data.tasks[task]} ${episode}${several ? ", seed " + seed : ""}`));
  outcomes.forEach((o, i) => {
    const mark = make("span", hues[i] + (o < 0 ? " none" : won(o) ? " yes" : ""));
    mark.title = `${data.arms[i]}: ${o < 0 ? "not run" : won(o) ? "achieved" : "failed"}`;
    marks.append(mark);
  });
  summary.append(marks);
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (!details.open) { details.querySelectorAll("video").forEach((v) => v.pause()); return; }
    if (details.childElementCount > 1) return;
    const films = make("div", "films");
    outcomes.forEach((o, i) => o >= 0 && films.append(film(index, i)));
    details.append(films);
    const videos = [...films.querySelectorAll("video")];  // side by side they start and stop together
    for (const video of videos) {
      video.addEventListener("play", () => videos.forEach((v) => v.paused && !v.ended && v.play()));
      video.addEventListener("pause", () => video.ended || videos.forEach((v) => v.pause()));
    }
  });
  return details;
}

function extend() {
  list.append(...found.slice(shown, shown + STEP).map(row));
  shown = Math.min(found.length, shown + STEP);
  more.hidden = shown === found.length;
  document.getElementById("count").textContent = `${found.length} of ${data.rows.length} episodes`;
}

function choose() {
  found = data.rows.map((_, i) => i).filter(fits);
  shown = 0;
  list.replaceChildren();
  extend();
}

form.addEventListener("input", choose);
form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", extend);
choose();

// Download: the same data as a file.
document.getElementById("download").addEventListener("click", () => {
  const quote = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const lines = ["method,task,episode,seed,success,steps"];
  for (const [task, episode, seed, outcomes] of data.rows)
    outcomes.forEach((o, i) => o >= 0 && lines.push([quote(data.arms[i]), quote(data.tasks[task]), episode, quote(seed), +won(o), o >> 1].join()));
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  link.download = "episodes.csv";
  link.click();
});
