// Complete prompts greedily with llama.cpp: node llama_cpp.mjs MODEL.gguf LORA.gguf PROMPT...
import { getLlama, LlamaCompletion } from "node-llama-cpp";

const [modelPath, lora, ...prompts] = process.argv.slice(2);
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const model = await llama.loadModel({ modelPath });
const texts = [];
for (const prompt of prompts) {
  const context = await model.createContext({
    contextSize: 256,
    threads: 1,
    lora: { adapters: [{ filePath: lora, scale: 1 }] },
  });
  const completion = new LlamaCompletion({ contextSequence: context.getSequence() });
  const tokens = model.tokenize(prompt, true);
  texts.push(await completion.generateCompletion(tokens, { maxTokens: 12, temperature: 0 }));
  await context.dispose();
}
console.log(JSON.stringify(texts));
