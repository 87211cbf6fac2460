// Talks to this service, and to nothing else.

const TOKEN = "radvlm-token";

export class ServiceError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// Asked when the service wants a token; set by the page.
let askForToken = async () => { throw new ServiceError("a token is needed", 401); };
export function onTokenNeeded(ask) { askForToken = ask; }

async function request(path, options = {}) {
  for (let attempt = 0; ; attempt += 1) {
    const headers = { ...options.headers };
    const token = sessionStorage.getItem(TOKEN);
    if (token) headers.Authorization = `Bearer ${token}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServiceError("The service cannot be reached. Is it still running?", 0);
    }
    if (response.status === 401 && attempt < 5) {
      sessionStorage.setItem(TOKEN, await askForToken());
      continue;
    }
    if (!response.ok) throw new ServiceError(await reason(response), response.status);
    return response;
  }
}

async function reason(response) {
  if (response.status === 429) {
    return `Others are being answered. Try again in ${response.headers.get("Retry-After")} s.`;
  }
  try {
    return (await response.json()).error.message;
  } catch {
    return `The service answered ${response.status}.`;
  }
}

export async function model() {
  return (await (await request("/v1/models")).json()).data[0];
}

export async function upload(file) {
  const headers = { "Content-Type": "application/octet-stream" };
  return (await request("/v1/studies", { method: "POST", body: file, headers })).json();
}

export async function study(id) {
  return (await request(`/v1/studies/${encodeURIComponent(id)}`)).json();
}

export async function forget(id) {
  await request(`/v1/studies/${encodeURIComponent(id)}`, { method: "DELETE" });
}

export async function picture(id) {
  const response = await request(`/v1/studies/${encodeURIComponent(id)}/film.png`);
  return createImageBitmap(await response.blob());
}

// Ask; `onText` gets each piece, the result is the record under `radvlm`.
export async function ask({ model: name, study: id, turns, question, shape, signal }, onText) {
  const film = { type: "image_url", image_url: { url: `study:${id}` } };
  const said = [...turns.flatMap((turn) => [["user", turn.question], ["assistant", turn.text]]), ["user", question]];
  const messages = said.map(([role, text]) => ({ role, content: text }));
  messages[0].content = [film, { type: "text", text: messages[0].content }];
  const body = { model: name, messages, stream: true };
  if (shape) body.response_format = { type: "json_schema", json_schema: { name: "findings", schema: shape } };
  const headers = { "Content-Type": "application/json" };
  const response = await request("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), headers, signal });
  let result = null;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServiceError(chunk.error.message, 500);
    const piece = chunk.choices[0]?.delta?.content;
    if (piece) onText(piece);
    if (chunk.radvlm) result = chunk.radvlm;
  }
  if (!result) throw new ServiceError("The answer broke off.", 0);
  return result;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
      const data = held.slice(0, end);
      held = held.slice(end + 2);
      if (data.startsWith("data: ")) yield data.slice(6);
    }
  }
}
