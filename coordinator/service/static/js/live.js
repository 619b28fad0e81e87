// News over /api/v1/stream (server-sent events) where the coordinator has it; polling goes on beside it, only more slowly.
//
// Read by fetch and not by EventSource, which cannot send a token. A stream that says nothing for SILENCE_MS (it has heartbeats every 15 s)
// is taken for dead and opened anew, from where it was (Last-Event-ID).
import { headers } from "./session.js";
import { offers } from "./api.js";

const SILENCE_MS = 40000;
const RETRY_MS = 5000;
let open = null; // AbortController of the stream
let last = null; // id of the newest event
let alive = false;

export const streaming = () => alive;

export async function follow(onNews) {
  if (open || document.hidden || !(await offers("/stream")) || open) return; // another call may have opened it meanwhile
  const control = open = new AbortController();
  let watch = setTimeout(() => control.abort(), SILENCE_MS);
  try {
    const response = await fetch("/api/v1/stream", { headers: { ...headers(), Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) }, signal: control.signal });
    if (!response.ok) return;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    alive = true;
    for (let text = ""; ;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(watch);
      watch = setTimeout(() => control.abort(), SILENCE_MS);
      const blocks = (text + value.replaceAll("\r\n", "\n")).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event.id) last = event.id;
        if (event.data) onNews(event);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof TypeError)) throw error; // cut off or unreachable: the poll says so
  } finally {
    clearTimeout(watch);
    if (alive) onNews({ id: null, topic: "end", data: "" }); // polling goes faster again from now on
    alive = false;
    open = null;
    setTimeout(() => follow(onNews), RETRY_MS);
  }
}
export const unfollow = () => { if (open) open.abort(); };

// One block of a stream. Pure.
export function parse(block) {
  const event = { id: null, topic: "message", data: "" };
  for (const line of block.split("\n")) {
    const [, field, value] = /^([a-z]+): ?(.*)$/.exec(line) || [];
    if (field === "id") event.id = value;
    else if (field === "event") event.topic = value;
    else if (field === "data") event.data += (event.data ? "\n" : "") + value;
  }
  return event;
}
