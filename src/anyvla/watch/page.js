"use strict";
// Every text on the page is put there as text, never as markup: what a robot is told may contain anything.
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let about = null, last = null, number = -1, chosen = "", playing = null, wanted = 0;

function shape(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function put(parent, name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  parent.append(element);
  return element;
}

function say(text, kind) {
  $("status").textContent = text;
  $("status").className = "pill" + (kind ? " " + kind : "");
}

async function ask(address) {
  const answer = await fetch(address, {cache: "no-store"});
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

// ------------------------------------------------------------------------------------------------------------- pictures

function drawCameras(moment) {
  const names = Object.keys(moment.images);
  const place = $("cameras");
  if (place.dataset.names !== JSON.stringify(names)) {
    place.replaceChildren();
    place.dataset.names = JSON.stringify(names);
    for (const name of names) {
      const figure = put(place, "figure", undefined, "camera");
      const picture = put(figure, "div", undefined, "picture");
      put(picture, "img").alt = "camera " + name;
      shape(picture, "svg", {viewBox: "0 0 1 1", preserveAspectRatio: "none"});
      put(figure, "figcaption", name);
    }
    if (!names.length) put(place, "p", "No pictures here.", "legend");
  }
  names.forEach((name, i) => {
    const figure = place.children[i];
    figure.querySelector("img").src = moment.images[name];
    const svg = figure.querySelector("svg");
    svg.replaceChildren();
    for (const kind of ["recorded", "predicted"]) {
      const drawn = moment.ways[kind]?.drawn?.[name];
      if (!drawn) continue;
      const points = drawn.filter((point) => point).map(([u, v]) => u + "," + v).join(" ");
      if (kind === "predicted") shape(svg, "polyline", {class: "way halo", points});
      shape(svg, "polyline", {class: "way " + kind, points});
    }
  });
}

function drawMap(moment) {
  const svg = $("map"), size = 360;
  svg.replaceChildren();
  const pose = moment.pose || [0, 0, 0], world = Boolean(moment.layout || moment.pose);
  const [cos, sin] = [Math.cos(pose[2]), Math.sin(pose[2])];
  const onto = ([x, y]) => [pose[0] + x * cos - y * sin, pose[1] + x * sin + y * cos];
  const ways = Object.entries(moment.ways).filter(([, way]) => way.ground).map(([kind, way]) => [kind, way.ground.map(onto)]);
  const seen = [[pose[0], pose[1]], ...moment.path, ...ways.flatMap(([, way]) => way)];
  if (moment.layout) {
    seen.push(moment.layout.goal, moment.layout.target.center, ...moment.layout.boxes.map((box) => box.center), [-0.5, 0]);
  } else {
    seen.push([pose[0] + 1.5, pose[1] + 1], [pose[0] - 0.5, pose[1] - 1]);
  }
  const xs = seen.map((point) => point[0]), ys = seen.map((point) => point[1]);
  const middle = [(Math.min(...xs) + Math.max(...xs)) / 2, (Math.min(...ys) + Math.max(...ys)) / 2];
  const span = Math.max(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys), 2) + 0.8;
  const unit = size / span;
  const at = ([x, y]) => [size / 2 - (y - middle[1]) * unit, size / 2 - (x - middle[0]) * unit];
  const joined = (points) => points.map((point) => at(point).map((value) => value.toFixed(1)).join(",")).join(" ");
  const every = span > 12 ? 5 : 1;
  for (let metre = Math.ceil((middle[0] - span / 2) / every) * every; metre <= middle[0] + span / 2; metre += every) {
    const y = at([metre, 0])[1];
    shape(svg, "line", {class: "grid", x1: 0, x2: size, y1: y, y2: y});
    shape(svg, "text", {x: 3, y: y - 3}, metre + " m");
  }
  for (let metre = Math.ceil((middle[1] - span / 2) / every) * every; metre <= middle[1] + span / 2; metre += every) {
    const x = at([0, metre])[0];
    shape(svg, "line", {class: "grid", x1: x, x2: x, y1: 0, y2: size});
  }
  if (moment.layout) {
    for (const box of moment.layout.boxes) {
      const [c, s] = [Math.cos(box.yaw), Math.sin(box.yaw)];
      const corners = [[1, 1], [1, -1], [-1, -1], [-1, 1]].map(([i, j]) => [
        box.center[0] + i * box.half[0] * c - j * box.half[1] * s, box.center[1] + i * box.half[0] * s + j * box.half[1] * c,
      ]);
      shape(svg, "polygon", {class: "box", points: joined(corners)});
    }
    const [gx, gy] = at(moment.layout.goal), [tx, ty] = at(moment.layout.target.center);
    shape(svg, "circle", {class: "goal", cx: gx, cy: gy, r: moment.layout.goal_radius * unit});
    shape(svg, "circle", {class: "target", cx: tx, cy: ty, r: 5});
  }
  if (moment.path.length > 1) shape(svg, "polyline", {class: "driven", points: joined(moment.path)});
  for (const [kind, way] of ways) shape(svg, "polyline", {class: "way " + kind, points: joined(way)});
  const [rx, ry] = at(pose), radius = (moment.layout?.robot_radius || 0.2) * unit;
  shape(svg, "circle", {class: "robot", cx: rx, cy: ry, r: radius});
  shape(svg, "polyline", {class: "robot", points: joined([pose, onto([(moment.layout?.robot_radius || 0.2) * 1.5, 0])])});
  const kinds = ways.map(([kind]) => kind === "predicted" ? "solid: predicted" : "dashed: recorded");
  const over = about.spec.some((dim) => dim.name === "linear_x");
  $("legend").textContent = ways.length
    ? kinds.join(", ") + (world ? "; in the world's frame" : "; seen from the robot, forward is up")
    : over ? "" : "These actions are no velocities over the ground: see the curves.";
}

function drawCurves(moment) {
  const place = $("curves");
  place.replaceChildren();
  const kinds = ["recorded", "predicted"].filter((kind) => moment.ways[kind]);
  if (!kinds.length) put(place, "p", "No chunk here.", "legend");
  about.spec.forEach((dim, i) => {
    if (!kinds.length) return;
    const figure = put(place, "figure");
    const caption = put(figure, "figcaption");
    put(caption, "span", dim.name + (dim.unit ? " (" + dim.unit + ")" : ""));
    const action = moment.action?.[i];
    put(caption, "span", action === undefined || action === null ? "" : action.toFixed(3));
    const lists = kinds.map((kind) => [kind, moment.ways[kind].chunk.map((row) => row[i])]);
    const values = lists.flatMap(([, list]) => list).filter((value) => value !== null);
    let low = Math.min(0, ...values), high = Math.max(0, ...values);
    if (high - low < 1e-6) [low, high] = [low - 1, high + 1];
    const y = (value) => (4 + 52 * (high - value) / (high - low)).toFixed(2);
    const svg = shape(figure, "svg", {viewBox: "0 0 100 60", preserveAspectRatio: "none"});
    shape(svg, "line", {class: "zero", x1: 0, x2: 100, y1: y(0), y2: y(0)});
    for (const [kind, list] of lists) {
      const points = list.map((value, k) => value === null ? "" : (100 * k / Math.max(1, list.length - 1)).toFixed(2) + "," + y(value));
      shape(svg, "polyline", {class: "way " + kind, points: points.filter(Boolean).join(" ")});
    }
  });
}

// -------------------------------------------------------------------------------------------------------------- numbers

function showFacts(rows) {
  const body = $("facts").tBodies[0];
  body.replaceChildren();
  for (const [name, value] of rows) {
    if (value === null || value === undefined || value === "") continue;
    const row = put(body, "tr");
    put(row, "th", name);
    put(row, "td", value);
  }
}

function showStops(stops) {
  const place = $("stops");
  place.replaceChildren();
  if (!stops.length) put(place, "li", "none", "none");
  for (const [ago, robot, cause, count] of [...stops].reverse()) {
    const line = put(place, "li");
    put(line, "span", (last?.robots?.length > 1 ? robot + ": " : "") + cause.replaceAll("_", " ") + (count > 1 ? " × " + count : ""));
    put(line, "time", ago === null ? "" : ago.toFixed(0) + " s ago");
  }
}

function milliseconds(latency) {
  return latency ? ["p50", "p95", "p99"].map((name) => latency[name].toFixed(1)).join(" / ") + " ms" : null;
}

function show(moment) {
  last = {...last, ...moment};
  if (moment.images) {
    $("instruction").textContent = moment.instruction || "(no instruction)";
    drawCameras(moment);
    drawMap(moment);
    drawCurves(moment);
  }
  $("problem").hidden = true;
}

function outcome(text) {
  say(text.replaceAll("_", " "), text === "success" ? "good" : "bad");
}

// ----------------------------------------------------------------------------------------------------------------- live

function fill(select, names, current) {
  select.hidden = names.length < 2;
  if (select.dataset.names === JSON.stringify(names)) return;
  select.dataset.names = JSON.stringify(names);
  select.replaceChildren();
  names.forEach((name, i) => { put(select, "option", name).value = i; });
  select.value = String(Math.max(0, current));
}

async function follow() {
  try {
    const moment = await ask("api/now?after=" + number + (chosen ? "&robot=" + encodeURIComponent(chosen) : ""));
    if (moment.number === undefined) say("waiting for the first step");
    else {
      show(moment);
      number = moment.number;
      fill($("robots"), moment.robots, moment.robots.indexOf(moment.robot));
      if (last.age > Math.max(2, 3 / about.fps)) say("silent for " + last.age.toFixed(0) + " s", "bad");
      else if (last.stop) say("stopped: " + last.stop.replaceAll("_", " "), "bad");
      else if (last.outcome) outcome(last.outcome);
      else say("driving", "good");
      showFacts([
        ["control rate", last.hz ? last.hz.toFixed(2) + " Hz of " + about.fps.toFixed(2) : null],
        ["step, p50 / p95 / p99", milliseconds(last.latency_ms)],
        ["steps", last.step], ["not shown", last.dropped || null], ...Object.entries(last.facts),
      ]);
      showStops(last.stops);
    }
  } catch (error) {
    say("no connection", "bad");
  }
  setTimeout(follow, 150);
}

// ------------------------------------------------------------------------------------------------------------- recorded

async function look(item, step) {
  const ticket = ++wanted;
  try {
    const moment = await ask("api/moment?item=" + item + "&step=" + step);
    if (ticket !== wanted) return;
    if (moment.error) throw new Error(moment.error);
    show(moment);
    const length = about.items[item].length;
    $("at").textContent = "step " + (step + 1) + " of " + length;
    if (moment.stop) say("stopped: " + moment.stop.replaceAll("_", " "), "bad");
    else if (moment.outcome) outcome(moment.outcome);
    else say("recorded");
    showFacts([["step", moment.step_ms === null ? null : moment.step_ms.toFixed(1) + " ms"], ...Object.entries(moment.facts)]);
    showStops(moment.stops || []);
  } catch (error) {
    $("problem").hidden = false;
    $("problem").textContent = error.message;
  }
}

const item = () => Number($("items").value || 0);

function choose() {
  $("step").max = Math.max(0, about.items[item()].length - 1);
  $("step").value = 0;
  look(item(), 0);
}

function play(on) {
  clearInterval(playing);
  playing = on ? setInterval(() => {
    const slider = $("step");
    if (Number(slider.value) >= Number(slider.max)) return play(false);
    slider.value = Number(slider.value) + 1;
    look(item(), Number(slider.value));
  }, 1000 / about.fps) : null;
  $("play").textContent = on ? "pause" : "play";
}

async function begin() {
  try {
    about = await ask("api/about");
  } catch (error) {
    say("no connection", "bad");
    return setTimeout(begin, 1000);
  }
  $("title").textContent = about.title;
  document.title = about.title + " · AnyVLA";
  if (about.live) {
    $("robots").addEventListener("change", () => { chosen = last.robots[Number($("robots").value)]; number = -1; });
    return follow();
  }
  fill($("items"), about.items.map((one) => one.name), 0);
  $("player").hidden = false;
  $("items").addEventListener("change", () => { play(false); choose(); });
  $("step").addEventListener("input", () => { play(false); look(item(), Number($("step").value)); });
  $("play").addEventListener("click", () => {
    if (!playing && $("step").value === $("step").max) $("step").value = 0;
    play(!playing);
  });
  if (about.items.length) choose();
  else say("nothing recorded", "bad");
}
begin();
