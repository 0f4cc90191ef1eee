// Validate custom resources, read as a JSON list, against the models of npm packages.
//   node custom_resources.mjs FOLDER_WITH_NODE_MODULES < manifests.json
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const packages = {
  "gateway.networking.k8s.io": "gateway-api",
  "monitoring.coreos.com": "prometheus-operator",
};
const folder = resolve(process.argv[2], "node_modules", "@kubernetes-models");
for (const manifest of JSON.parse(readFileSync(0, "utf8"))) {
  const { apiVersion } = manifest;
  const models = resolve(folder, packages[apiVersion.split("/")[0]], apiVersion, "index.js");
  const { [manifest.kind]: Model } = await import(pathToFileURL(models));
  new Model(manifest).validate();
  console.log(manifest.kind);
}
