// OpenAI's client for Node: every route that it can call here.
import OpenAI from "openai";

const PROMPT = "The quick brown fox";
const messages = [{ role: "user", content: PROMPT }];
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const result = {};
for (const model of ["base", "toy/plurals"]) {
  const chat = { model, messages, temperature: 0, max_tokens: 8 };
  const answer = await client.chat.completions.create(chat);
  let streamed = "";
  for await (const chunk of await client.chat.completions.create({ ...chat, stream: true })) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
  }
  const body = { model, input: PROMPT, temperature: 0, max_output_tokens: 8 };
  const response = await client.responses.create(body);
  let deltas = "";
  for await (const event of await client.responses.create({ ...body, stream: true })) {
    if (event.type === "response.output_text.delta") deltas += event.delta;
  }
  const embeddings = await client.embeddings.create({ model, input: PROMPT });
  result[model] = {
    chat: answer.choices[0].message.content,
    stream: streamed,
    response: response.output_text,
    response_stream: deltas,
    embeddings: embeddings.data.map((one) => one.embedding),
  };
}
try {
  await client.chat.completions.create({ model: "base", messages, logit_bias: { 1: 1 } });
} catch (error) {
  result.refused = error.param;
}
console.log(JSON.stringify(result));
